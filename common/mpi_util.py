"""What every rank needs beyond its collectives: seeds, shared verdicts, and the abort of the job.

Source: baselines/common/mpi_util.py @ ea25b9e, of which only the idea is left.
Differs: an uncaught exception on one rank ends the whole job instead of leaving the others waiting.
"""

import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from common import watchdog
from common.mpi import MPI

ABORT_SECONDS = 8.0  # at most, from an error to the end of this process


class CollectiveError(RuntimeError):
    """An error that every rank raises together, so that one rank's report is enough."""


def offset_seed(seed: int | None, *, rank: int, stride: int) -> int | None:
    """Return this rank's seed: `seed + stride * rank`, modulo 2**32; None stays None.

    Args:
        seed: the job's seed, or None for no seeding.
        rank: this rank's number.
        stride: 1000 for MuJoCo, 10000 for Atari and Robotics, as in baselines.
    """
    return None if seed is None else (seed + stride * rank) % 2**32


def agree(
    check: Callable[[], object],
    *,
    describe: Callable[[BaseException], str] = str,
    comm: MPI.Comm | None = None,
) -> str | None:
    """Run `check` on every rank and return the first failure's message, the same on all ranks.

    A check that may fail on one rank alone (a missing package, a full disk) must not let that rank
    leave while the others walk into a collective. Returns None if the check passed everywhere.

    Args:
        check: fails by raising an Exception, or SystemExit.
        describe: turns that into a message; an empty one is replaced by the exception's type.
        comm: the ranks; None is COMM_WORLD.

    Collective: every rank must call it.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    try:
        check()
        message = None
    except (Exception, SystemExit) as error:
        message = describe(error) or type(error).__name__
    messages = comm.allgather(message)
    failures = [(rank, text) for rank, text in enumerate(messages) if text is not None]
    if not failures:
        return None
    rank, text = failures[0]
    # Whose failure it is matters where it is not everybody's.
    return text if messages == [text] * comm.Get_size() else f"rank {rank}: {text}"


def wait_for_all(comm: MPI.Comm) -> None:
    """Wait until all ranks are here, asleep: MPI's own barrier would take a core from the others.

    Collective: every rank must call it.
    """
    request = comm.Ibarrier()
    while not request.Test():
        watchdog.note_life()  # whoever is waited for has a watchdog of its own
        time.sleep(0.02)


def rank_on_machine(comm: MPI.Comm | None = None) -> int:
    """Return this rank's number among those on its machine. Collective: every rank must call it."""
    machine = (MPI.COMM_WORLD if comm is None else comm).Split_type(MPI.COMM_TYPE_SHARED)
    rank = machine.Get_rank()
    machine.Free()
    return rank


def say(text: str) -> None:
    """Write to the standard error, if there is one that takes it, and flush what is printed."""
    with suppress(Exception):  # None, closed, or a pipe that nobody reads any more
        sys.stderr.write(text)
        sys.stderr.flush()
    with suppress(Exception):
        sys.stdout.flush()


@contextmanager
def abort_job_on_error(comm: MPI.Comm | None = None) -> Iterator[None]:
    """Turn an uncaught exception on one of several ranks into the end of the whole job.

    Started as `mpirun python script.py`, the other ranks would wait in their next collective for
    ever when one rank raises. Inside this context the rank prints its traceback under its own
    name and calls `Abort`: exit code 1, or 130 for a KeyboardInterrupt. A CollectiveError is
    printed by rank 0 alone.

    A `SystemExit` passes: leaving is then the caller's considered choice. So does every exception
    of a job of one rank, where nobody waits. `os._exit(0)`, which MPICH takes for a success,
    becomes a failure.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    pid, leave_at_once = os.getpid(), os._exit

    def leave(status: int) -> NoReturn:
        if os.getpid() == pid:  # not a child, such as those of multiprocessing
            name = f"rank {comm.Get_rank()} of {comm.Get_size()}"
            say(f"{name}: left by os._exit({status}) in the middle of a run\n")
        leave_at_once(status or int(os.getpid() == pid))

    os._exit = leave
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if comm.Get_size() == 1:
            raise
        if isinstance(error, CollectiveError) and comm.Get_rank() != 0:
            time.sleep(2.0)  # rank 0 raises the same error: let it speak for all, then it aborts
        # A console that takes nothing, or an Abort that waits, must not keep the others waiting
        faulthandler.dump_traceback_later(ABORT_SECONDS, exit=True, file=2)
        say(f"rank {comm.Get_rank()} of {comm.Get_size()}: {traceback.format_exc()}")
        time.sleep(0.5)  # MPICH's mpirun may lose what it has not yet passed on (3 % of the time)
        comm.Abort(130 if isinstance(error, KeyboardInterrupt) else 1)
    finally:
        os._exit = leave_at_once
