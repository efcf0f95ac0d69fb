"""Runs a test's function on several ranks, and proves that each of them came to its end."""

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

ROOT = Path(__file__).resolve().parent.parent
OPEN_MPI = "Open MPI" in MPI.Get_library_version()


def rank_environment(**extra: str) -> dict[str, str]:
    """Return an environment without what this process's own MPI has put into its."""
    keep = ("HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment["PYTHONPATH"] = str(ROOT)
    environment["OMP_NUM_THREADS"] = "1"
    if OPEN_MPI:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        # More ranks than cores, which then must not spin while they wait
        environment |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    return environment | extra


def mpirun(
    nprocs: int, *command: str, timeout: float = 90, cwd: Path = ROOT, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `python *command` on `nprocs` ranks; mpirun itself enforces the time limit in seconds."""
    launcher = [] if nprocs == 0 else ["mpirun", "-np", str(nprocs)]
    return subprocess.run(
        [*launcher, sys.executable, *command],
        env=rank_environment(MPIEXEC_TIMEOUT=str(int(timeout)), **extra),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout + 30,
    )


def on_ranks(
    nprocs: int, function: Callable[..., Any], *args: Any, timeout: float = 90
) -> list[Any]:
    """Return function(comm, *args) of each of `nprocs` ranks, in order of rank.

    The function is one of a test module, by name; arguments and results are pickled. One rank runs
    in a process of its own as well, so that it starts as fresh as several do.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "args").write_bytes(pickle.dumps(args))
        name = f"{function.__module__}:{function.__qualname__}"
        done = mpirun(nprocs, "-W", "error", "-m", "tests.ranks", name, folder, timeout=timeout)
        results = []
        for rank in range(nprocs):
            path = Path(folder, f"result{rank}")
            assert path.exists(), f"rank {rank} did not finish:\n{done.stdout}\n{done.stderr}"
            results.append(pickle.loads(path.read_bytes()))
        assert done.returncode == 0, done.stderr
        return results


def main() -> None:
    from common.mpi_util import abort_job_on_error

    name, folder = sys.argv[1:]
    with abort_job_on_error():
        module, function = name.split(":")
        args = pickle.loads(Path(folder, "args").read_bytes())
        result = getattr(importlib.import_module(module), function)(MPI.COMM_WORLD, *args)
        path = Path(folder, f"result{MPI.COMM_WORLD.Get_rank()}")
        path.write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main()
