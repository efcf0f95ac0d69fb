import sys
import time

import pytest
from mpi4py import MPI

from common.mpi_util import CollectiveError, abort_job_on_error, agree, offset_seed, wait_for_all
from tests.ranks import mpirun, on_ranks


def test_offset_seed():
    assert offset_seed(3, rank=2, stride=1000) == 2003
    assert offset_seed(2**32 - 1, rank=1, stride=1000) == 999  # stays a seed that NumPy takes
    assert offset_seed(None, rank=2, stride=1000) is None


# ---- Shared verdicts ----------------------------------------------------------------------------


def verdicts(comm):
    """Return what `agree` says of checks that fail nowhere, everywhere, and on the last rank."""
    rank, last = comm.Get_rank(), comm.Get_size() - 1

    def fail(message):
        raise ValueError(message)

    return [
        agree(lambda: None),
        agree(lambda: fail("no")),
        agree(lambda: fail("")),
        agree(lambda: fail(f"no, says {rank}")),
        agree(lambda: fail("no") if rank == last else None),
        agree(lambda: sys.exit("no"), describe=lambda error: f"{type(error).__name__}!"),
    ]


@pytest.mark.mpi
@pytest.mark.parametrize("nprocs", [1, 2, 3])
def test_agree_gives_the_same_message_on_all_ranks(nprocs):
    want = [None, "no", "ValueError", "rank 0: no, says 0", f"rank {nprocs - 1}: no", "SystemExit!"]
    if nprocs == 1:  # alone, it need not say who
        want[3:5] = ["no, says 0", "no"]
    assert on_ranks(nprocs, verdicts) == [want] * nprocs


def waiting_times(comm):
    start = time.process_time()
    if comm.Get_rank() == 0:
        time.sleep(0.5)
    wait_for_all(comm)
    return time.process_time() - start, time.time()


@pytest.mark.mpi
def test_wait_for_all_waits_asleep():
    (_, left0), (busy1, left1) = on_ranks(2, waiting_times)
    assert abs(left0 - left1) < 0.3
    assert busy1 < 0.25  # of the half second; a Barrier would be busy all the time


# ---- The end of the job -------------------------------------------------------------------------

# In each, rank 0 leaves the others waiting in a collective if nobody ends the job.
ENDINGS = {
    "error": "if rank == 1: raise ValueError('odd')",
    "interrupt": "if rank == 1: raise KeyboardInterrupt",
    "together": "raise CollectiveError('all at once')",
    "together, but rank 0": "if rank == 1: raise CollectiveError('not quite all')",
    "exit": "sys.exit(3)",
}
PROGRAM = """
import sys
from mpi4py import MPI
from common.mpi_util import CollectiveError, abort_job_on_error
rank = MPI.COMM_WORLD.Get_rank()
with abort_job_on_error():
    {ending}
    MPI.COMM_WORLD.Barrier()
    MPI.COMM_WORLD.Barrier()
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    "ending, code, speaker, text",
    [
        ("error", 1, 1, "ValueError: odd"),
        ("interrupt", 130, 1, "KeyboardInterrupt"),
        ("together", 1, 0, "CollectiveError: all at once"),
        ("together, but rank 0", 1, 1, "CollectiveError: not quite all"),
        ("exit", 3, None, ""),
    ],
)
def test_one_rank_ends_the_job(ending, code, speaker, text):
    start = time.time()
    done = mpirun(2, "-c", PROGRAM.format(ending=ENDINGS[ending]))
    assert done.returncode == code
    assert time.time() - start < 10
    assert text in done.stderr
    assert done.stderr.count("Traceback") == (0 if speaker is None else 1)
    if speaker is not None:
        assert f"rank {speaker} of 2: Traceback" in done.stderr


@pytest.mark.parametrize("error", [ValueError, CollectiveError, KeyboardInterrupt, SystemExit])
def test_alone_an_error_passes_as_it_is(error, capsys):
    with pytest.raises(error), abort_job_on_error(MPI.COMM_SELF):
        raise error
    assert capsys.readouterr().err == ""
