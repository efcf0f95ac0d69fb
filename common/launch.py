"""Ranks from Python: `run` computes a function on several ranks and returns what each returned.

    from common.launch import run

    pi, *_ = run(train, nprocs=4)

The function goes to the ranks by value, with all that it refers to: it may be a notebook's, a
closure, or a script's that has no `if __name__` guard. The ranks live no longer than the call.
"""

import codecs
import contextlib
import fcntl
import os
import pickle
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import cloudpickle

from common.watchdog import PROCESS_MARK

T = TypeVar("T")

MARK = "PPO1_LAUNCHED"  # set where ranks were started from here, whatever their mpirun sets
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", MARK)
LAUNCHER_PREFIXES = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "HYDI_", "MPI_LOCAL", MARK)
OPEN_MPI = {  # what `run` needs and MPICH passes over
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # More ranks than cores, and none bound to a core: all jobs would be bound to the same. For
    # Open MPI 5, then 4.
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}
SIZE_VARIABLES = {
    MARK: "mpirun",
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "an mpirun of MPICH's kind",
}
SLURM_SPECIAL_STEPS = 0xFFFFFFF0  # from here on: batch scripts, interactive shells
TAIL = 2000  # characters of the ranks' messages that an error shows


class LaunchError(ValueError):
    """Ranks cannot be started here; the message is one line."""


class RankError(RuntimeError):
    """A rank's traceback, or the end of a rank that left none."""


def run(
    fn: Callable[[], T],
    nprocs: int = 4,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> list[T]:
    """Return what `fn()` returned on each of `nprocs` ranks, in order of rank.

    Every rank is a fresh process on this machine with this one's `sys.path`, working directory and
    environment, and one thread unless OMP_NUM_THREADS says otherwise. What they print appears
    here. When this call ends, by Ctrl-C or however, so have mpirun and all ranks, and no file is
    left. Ctrl-C reaches the ranks too; what goes on 5 seconds later is killed.

    Args:
        fn: takes no arguments. It is pickled with what it refers to, so environments and policies
            should be made within it; what it returns is pickled too.
        nprocs: number of ranks, at least 1; may be more than there are cores.
        env: environment variables to set on the ranks.
        timeout: seconds after which the job is ended.

    Raises:
        LaunchError: where there is no mpirun, it belongs to another MPI than mpi4py's, or this
            process is itself one of several ranks.
        TimeoutError: after `timeout` seconds.
        RankError: if a rank was killed, or left otherwise than by returning or raising.
        Exception: what the first rank to fail raised; its cause is a RankError with the rank's
            number and traceback.
    """
    if nprocs < 1:
        raise ValueError(f"nprocs must be at least 1, got {nprocs}")
    check_world()
    if is_launched() and (size := world_size()) > 1:
        raise LaunchError(
            f"run() starts ranks of its own, but this process is one of {size} that mpirun started"
        )
    command = mpirun_command(nprocs)
    try:
        job = cloudpickle.dumps((nprocs, os.environ.get("TMPDIR"), cloudpickle.dumps(fn)))
    except Exception as error:
        error.add_note("run() ships the function with all that it refers to")
        raise
    with tempfile.TemporaryDirectory(prefix="ppo1-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "job").write_bytes(job)
        (folder / "rank.py").write_text(
            f"import sys\nsys.path[:] = {sys.path!r}\n"
            f"from common.launch import work\nwork({name!r})\n"
        )
        environment = {
            "OMP_NUM_THREADS": "1",
            **launch_environment(),
            **(env or {}),
            MARK: str(nprocs),
            "TMPDIR": name,  # for what mpirun leaves if it is killed; the ranks get theirs back
        }
        with open(folder / "caller", "w") as caller:
            fcntl.flock(caller, fcntl.LOCK_EX)
            process = subprocess.Popen(
                [*command, str(folder / "rank.py")],
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C comes to this process alone
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            try:
                messages = _pass_on(process, folder, timeout)
            finally:
                _end(process, folder, caller)
        return _results(folder, nprocs, process.returncode, messages)


def _pass_on(process: subprocess.Popen[bytes], folder: Path, timeout: float | None) -> str:
    """Print what the ranks print until they end or one fails; return the end of it."""
    deadline = None if timeout is None else time.monotonic() + timeout
    messages = ""
    with selectors.DefaultSelector() as selector:
        for pipe, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            selector.register(pipe, selectors.EVENT_READ, (out, decoder))  # type: ignore[arg-type]
        while selector.get_map():
            failed = any(folder.glob("error[0-9]*"))  # looked at first: its output is there by then
            ready = selector.select(0.2)
            for key, _ in ready:
                out, decoder = key.data
                data = os.read(key.fd, 65536)
                text = decoder.decode(data, final=not data)
                out.write(text)
                out.flush()
                messages = (messages + text)[-TAIL:]
                if not data:
                    selector.unregister(key.fileobj)
            if failed and not ready:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"the ranks were ended after {timeout:g} seconds")
        else:
            process.wait()
    return messages


def _end(process: subprocess.Popen[bytes], folder: Path, caller: TextIO) -> None:
    """End mpirun and the ranks, if they have not ended, and wait until they have."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
    finally:
        (folder / "caller").unlink()
        caller.close()  # a rank that is left sees that and kills itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(2.0)
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        with open(folder / "ranks", "w") as ranks:
            for _ in range(100):
                try:
                    fcntl.flock(ranks, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05)
        for shared in folder.glob("shared[0-9]*"):
            for path in shared.read_text().split():
                Path(path).unlink(missing_ok=True)


def _results(folder: Path, nprocs: int, returncode: int, messages: str) -> list[Any]:
    """Return what the ranks returned, or raise what the first rank to fail raised."""
    errors = sorted(folder.glob("error[0-9]*"), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        pickled, text = pickle.loads(errors[0].read_bytes())
        if pickled is None:
            raise RankError(text)
        raise pickle.loads(pickled) from RankError(text)
    paths = [folder / f"result{rank}" for rank in range(nprocs)]
    missing = [str(rank) for rank, path in enumerate(paths) if not path.exists()]
    if missing:
        raise RankError(
            f"rank {', '.join(missing)} of {nprocs} ended without returning; exit code of mpirun "
            f"{returncode}, the last that was printed\n{messages.strip()}"
        )
    if returncode:
        warnings.warn(
            f"all ranks returned, then mpirun ended with exit code {returncode}", stacklevel=3
        )
    return [pickle.loads(path.read_bytes()) for path in paths]


# ---- On the ranks -------------------------------------------------------------------------------


def work(folder_name: str) -> None:
    """Do this rank's part of a job of `run`, whose files are in the folder.

    Collective: every rank must call it.
    """
    from common.leftovers import ending_what_is_left
    from common.mpi import MPI
    from common.mpi_util import abort_job_on_error

    leave_at_once = os._exit  # within the job it is taken for a mistake
    folder = Path(folder_name)
    rank, size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    fcntl.flock(os.open(folder / "ranks", os.O_CREAT | os.O_RDWR), fcntl.LOCK_SH)
    caller = os.open(folder / "caller", os.O_RDONLY)  # both stay open as long as this process
    # MPI leaves its shared memory behind where a rank is killed.
    shared = sorted(set(re.findall(r"/dev/shm/\S+", _read("/proc/self/maps"))))
    (folder / f"shared{rank}").write_text(" ".join(shared))
    threading.Thread(target=_end_with, args=(caller, folder, shared), daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    failure: BaseException | None = None
    with ending_what_is_left(), abort_job_on_error():
        try:
            nprocs, tmpdir, pickled = pickle.loads((folder / "job").read_bytes())
            check_world()
            os.environ.pop("TMPDIR")
            if tmpdir is not None:
                os.environ["TMPDIR"] = tmpdir
            fn = pickle.loads(pickled)
            content = cloudpickle.dumps(fn())
        except BaseException as error:
            failure = error
            text = f"rank {rank} of {size}: {''.join(traceback.format_exception(error))}".rstrip()
            content = cloudpickle.dumps((_pickle_error(error), text))
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / f"partial{rank}").write_bytes(content)
        os.replace(folder / f"partial{rank}", folder / f"{'error' if failure else 'result'}{rank}")
        if failure is not None:
            with contextlib.suppress(KeyboardInterrupt):
                while not isinstance(failure, KeyboardInterrupt):
                    time.sleep(1.0)  # until the caller ends the job
            leave_at_once(1)


def _end_with(caller: int, folder: Path, shared: Iterable[str]) -> NoReturn:
    """End this process when the caller has given up its lock on the file, or is no more."""
    while True:
        time.sleep(0.2)
        try:
            fcntl.flock(caller, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        for path in shared:
            Path(path).unlink(missing_ok=True)
        if (folder / "caller").exists():  # it was killed, so that it could not remove this
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.5)  # mpirun kills the other ranks when the first ends
        os.kill(os.getpid(), signal.SIGKILL)


def _pickle_error(error: BaseException) -> bytes | None:
    """Return an exception pickled; None for one that cannot be, or would end the caller."""
    try:
        pickled = cloudpickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        return None
    return pickled if isinstance(error, Exception) else None


def _read(path: str) -> str:
    """Return a file's text, "" if there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


# ---- mpirun -------------------------------------------------------------------------------------


def relaunch(nprocs: int, *, as_called: bool = False) -> None:
    """Replace this process by `mpirun -np nprocs` of itself, unless it is one of `nprocs` ranks.

    Exit code and signals are then mpirun's.

    Args:
        nprocs: number of ranks.
        as_called: whether another program called this one's `main`, which is not to be replaced.

    Raises:
        LaunchError: if this is one of another number of ranks, was called by another program, or
            there is no mpirun.
    """
    size = world_size()
    if size == nprocs:
        return
    if is_launched():
        ranks = f"{size} rank{'s' if size > 1 else ''}"
        raise LaunchError(f"--num-procs {nprocs}: but mpirun has started {ranks}")
    if as_called:
        raise LaunchError(f"--num-procs {nprocs}: from Python, use common.launch.run")
    from common.mpi import MPI

    command = [*mpirun_command(nprocs), *sys.orig_argv[1:]]
    sys.stdout.flush()
    sys.stderr.flush()
    MPI.Finalize()
    os.execve(command[0], command, {**launch_environment(), MARK: str(nprocs)})


def mpirun_command(nprocs: int) -> list[str]:
    """Return the start of a command line: this Python on `nprocs` ranks.

    Raises:
        LaunchError: if there is no mpirun.
    """
    return [find_mpirun(), "-np", str(nprocs), sys.executable]


def find_mpirun() -> str:
    """Return the path of the mpirun beside this Python, else of that on PATH.

    Raises:
        LaunchError: if there is none.
    """
    folder = os.path.dirname(sys.executable)
    found = shutil.which("mpirun", path=folder) or shutil.which("mpirun")
    if found is None:
        raise LaunchError(f"no mpirun in {folder} or on PATH: pip install mpich")
    return found


def launch_environment() -> dict[str, str]:
    """Return the environment for a launcher or a job: this process's, less what its own set."""
    environment = {name: value for name, value in os.environ.items() if name != PROCESS_MARK}
    if is_launched():
        environment = {
            name: value
            for name, value in environment.items()
            if not name.startswith(LAUNCHER_PREFIXES)
        }
    return OPEN_MPI | environment


def check_world() -> None:
    """Raise LaunchError if a launcher started more ranks than MPI shows: each would run alone."""
    (launcher, started), size = launched_ranks(), world_size()
    if started <= size:
        return
    from common.mpi import mpi_library

    if launcher == "srun":
        remedy = "give srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI"
    else:
        own = shutil.which("mpirun", path=os.path.dirname(sys.executable))
        remedy = f"start it with {own or 'the mpirun of that MPI'}"
    raise LaunchError(
        f"{launcher} started {started} processes, but MPI shows each of them {size}: it does not "
        f"belong to the MPI that mpi4py has loaded ({mpi_library()}); {remedy}"
    )


def launched_ranks() -> tuple[str, int]:
    """Return this process's launcher and the number of ranks that it says it started, 0 if none.

    An mpirun that `srun` has started comes before it. A batch script or a shell is no rank,
    although Slurm sets its variables there, too.
    """
    counts = {name: int(text) for name, text in os.environ.items() if text.isdecimal()}
    for name, launcher in SIZE_VARIABLES.items():
        if name in counts:
            return launcher, counts[name]
    is_rank = (
        counts.get("SLURM_STEP_ID", SLURM_SPECIAL_STEPS) < SLURM_SPECIAL_STEPS
        and "SLURM_PROCID" in counts
        and "SLURM_PTY_PORT" not in counts
    )
    return "srun", counts.get("SLURM_STEP_NUM_TASKS", 0) if is_rank else 0


def launched_rank() -> int:
    """Return this process's number by its launcher's variables, 0 where there are none."""
    texts = (os.environ.get(name, "") for name in (*RANK_VARIABLES[:3], "SLURM_PROCID"))
    return next((int(text) for text in texts if text.isdecimal()), 0)


def is_launched() -> bool:
    """Return whether this process was started by mpirun or its like."""
    return any(name in os.environ for name in RANK_VARIABLES)


def world_size() -> int:
    """Return the number of ranks that this process is one of."""
    from common.mpi import MPI

    return MPI.COMM_WORLD.Get_size()
