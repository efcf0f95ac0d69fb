"""Runs a test's function, or a command, on several ranks."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

from common.launch import run

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

    One rank runs in a process of its own as well, so that it starts as fresh as several do.
    """
    return run(
        lambda: function(MPI.COMM_WORLD, *args),
        nprocs,
        env={"PYTHONWARNINGS": "error"},
        timeout=timeout,
    )
