"""What every rank needs beyond its collectives: seeds, shared verdicts, and the abort of the job.

Source: baselines/common/mpi_util.py @ ea25b9e, of which only the idea is left.
Differs: an uncaught exception on one rank ends the whole job instead of leaving the others waiting.
"""

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpi4py import MPI


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


def agree(check: Callable[[], object], *, comm: MPI.Comm | None = None) -> str | None:
    """Run `check` on every rank and return the first failure's message, the same on all ranks.

    A check that may fail on one rank alone (a missing package, a full disk) must not let that rank
    leave while the others walk into a collective. Returns None if the check passed everywhere.

    Collective: every rank must call it.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    try:
        check()
        message = None
    except Exception as error:
        message = str(error) or type(error).__name__
    failures = [(rank, m) for rank, m in enumerate(comm.allgather(message)) if m is not None]
    if not failures:
        return None
    rank, message = failures[0]
    alike = all(m == message for _, m in failures) and len(failures) == comm.Get_size()
    return message if alike else f"rank {rank}: {message}"


@contextmanager
def abort_job_on_error(comm: MPI.Comm | None = None) -> Iterator[None]:
    """Turn an uncaught exception on one rank into the end of the whole job, exit code 1.

    Started as `mpirun python script.py`, the other ranks would wait in their next collective for
    ever when one rank raises. Inside this context the rank prints its traceback under its own
    name and calls `Abort`. A `SystemExit` passes: leaving is then the caller's considered choice.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    try:
        yield
    except Exception as error:
        rank, size = comm.Get_rank(), comm.Get_size()
        if isinstance(error, CollectiveError) and rank != 0:
            time.sleep(2.0)  # rank 0 raises the same error: let it speak for all, then it aborts
        else:
            name = f"rank {rank} of {size}: " if size > 1 else ""
            sys.stderr.write(f"{name}{traceback.format_exc()}")
        sys.stdout.flush()
        sys.stderr.flush()
        comm.Abort(1)
