import importlib
import re
import sys
import time
from types import ModuleType

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


# ---- No MPI -------------------------------------------------------------------------------------


def test_without_an_mpi_library_one_sentence_says_what_to_install(monkeypatch, capsys):
    """As mpi4py fails then, or as it does where there is none."""
    reason = "cannot open shared object file: No such file or directory"
    text = f"cannot load MPI library\nlibmpi.so.12: {reason}\nlibmpi.so.40: {reason}"

    def fail(name):
        raise RuntimeError(text)

    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # put back afterwards
    module = ModuleType("mpi4py")
    module.__getattr__ = fail
    monkeypatch.setitem(sys.modules, "mpi4py", module)
    monkeypatch.delitem(sys.modules, "common.mpi")
    want = "no MPI library was found: pip install 'ppo1[mpich]', or in a checkout pip install mpich"
    with pytest.raises(ImportError, match=f"^{re.escape(want)}$") as caught:
        importlib.import_module("common.mpi")
    sys.excepthook(caught.type, caught.value, caught.tb)
    assert capsys.readouterr().err == f"{want}\n"
    sys.excepthook(ValueError, ValueError("another"), None)
    assert capsys.readouterr().err == "ValueError: another\n"


@pytest.mark.slow
def test_a_script_without_mpi_prints_that_sentence_alone():
    for command in ("run_mujoco.py", "-m ppo1.export policy"):
        done = mpirun(0, *command.split(), MPI4PY_LIBMPI="/nowhere/libmpi.so")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("no MPI library was found: pip install 'ppo1[mpich]', or in")
    for command in ("import ppo1", "import common.plot_util"):  # which need none
        done = mpirun(0, "-c", command, MPI4PY_LIBMPI="/nowhere/libmpi.so")
        assert (done.returncode, done.stderr) == (0, "")
