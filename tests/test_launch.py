"""Ranks from Python: what comes back, what is raised, and that nothing is left."""

import atexit
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from mpi4py import MPI

from common import launch
from common.launch import LaunchError, RankError, run
from ppo1.mlp_policy import MlpPolicy
from tests.ranks import ROOT, mpirun, rank_environment
from tests.test_resume import assert_equal

pytestmark = pytest.mark.mpi
SLOW = pytest.mark.slow
WARNINGS = {"PYTHONWARNINGS": "error"}


class Point:
    def __init__(self, x):
        self.x = x


class TwoArguments(Exception):
    """Cannot be unpickled, as exceptions with arguments of their own often cannot."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_every_rank_returns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GREETING", "hello")
    array = np.arange(3.0)
    module = Path("neighbour.py")
    module.write_text("answer = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def compute():
        import neighbour

        rank = MPI.COMM_WORLD.Get_rank()
        print(f"rank {rank} prints ä")
        print("and warns", file=sys.stderr)
        large = np.full(2_000_000, rank)  # 16 MB
        variables = [os.environ.get(name) for name in ("GREETING", "MORE", "OMP_NUM_THREADS")]
        total = MPI.COMM_WORLD.allreduce(array * (rank + 1))
        return rank, Path.cwd(), variables, total, large, Point(neighbour.answer)

    results = run(compute, 2, env={**WARNINGS, "MORE": "please"})
    for rank, (got_rank, cwd, variables, total, large, point) in enumerate(results):
        assert (got_rank, cwd) == (rank, tmp_path)
        assert variables == ["hello", "please", os.environ.get("OMP_NUM_THREADS", "1")]
        np.testing.assert_array_equal(total, [0.0, 3.0, 6.0])
        np.testing.assert_array_equal(large, np.full(2_000_000, rank))
        assert isinstance(point, Point)
        assert point.x == 42
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["rank 0 prints ä", "rank 1 prints ä"]
    assert err.splitlines() == ["and warns"] * 2


def test_a_policy_comes_back():
    ob_space, ac_space = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
    ob = np.array([0.1, -0.2, 0.3])

    def make():
        pi = MlpPolicy("pi", ob_space, ac_space, hid_size=8, num_hid_layers=2)
        pi.ob_rms.update(np.random.normal(size=(100, 3)))
        return pi, pi.act(False, ob)

    ((pi, (ac, vpred)),) = run(make, 1)
    np.testing.assert_equal(pi.act(False, ob), (ac, vpred))
    before = pi.ob_rms.mean
    pi.ob_rms.update(np.full((1000, 3), 9.0))
    assert (pi.ob_rms.mean > before + 5).all()


def test_a_rank_raises(capsys):
    def fail():
        if MPI.COMM_WORLD.Get_rank() == 1:
            print("about to fail")
            raise FloatingPointError("the loss is not finite")
        MPI.COMM_WORLD.Barrier()  # in which the others would wait for ever

    with pytest.raises(FloatingPointError, match="the loss is not finite") as caught:
        run(fail, 2)
    cause = caught.value.__cause__
    assert isinstance(cause, RankError)
    assert str(cause).startswith("rank 1 of 2: Traceback (most recent call last):\n")
    assert f'{__file__}", line ' in str(cause)
    assert 'raise FloatingPointError("the loss is not finite")' in str(cause)
    assert "about to fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (lambda: sys.exit(3), "rank 0 of 1: Traceback .*SystemExit: 3"),
        (lambda: exec("raise error(1, 2)", {"error": TwoArguments}), "TwoArguments: 1 and 2"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "rank 0 of 1 ended without returning"),
        (lambda: os._exit(0), r"left by os._exit\(0\) in the middle of a run"),
    ],
)
def test_what_cannot_be_raised_here_is_a_rank_error(failure, message):
    with pytest.raises(RankError, match=f"(?s){message}"):
        run(failure, 1)


def test_a_rank_that_is_killed_ends_the_others():
    def die():
        if MPI.COMM_WORLD.Get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)

    with pytest.raises(
        RankError, match="^rank 0, 1, 2 of 3 ended without returning; exit code of mpirun"
    ):
        run(die, 3)


def test_a_rank_that_dies_after_it_returned_is_a_warning():
    def compute():
        atexit.register(os._exit, 3)
        return 1

    with pytest.warns(UserWarning, match="all ranks returned, then mpirun ended with exit code 3"):
        assert run(compute, 1) == [1]


def test_what_cannot_be_shipped():
    file = sys.stdout.buffer
    with pytest.raises(TypeError) as caught:
        run(lambda: file, 1)
    assert caught.value.__notes__ == ["run() ships the function with all that it refers to"]
    with pytest.raises(TypeError, match="cannot pickle") as caught:
        run(lambda: sys.stdout.buffer, 1)
    assert "rank 0 of 1" in str(caught.value.__cause__)


def test_a_time_limit():
    def wait():
        print("waiting")
        time.sleep(1000)

    with pytest.raises(TimeoutError, match="after 0.5 seconds"):
        run(wait, 2, timeout=0.5)


def test_where_no_ranks_can_be_started(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nprocs must be at least 1, got 0"):
        run(int, 0)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=f"no mpirun in {tmp_path} or on PATH: pip install mpich"):
        run(int, 2)


def test_the_mpirun_beside_the_interpreter_comes_first(tmp_path, monkeypatch):
    for folder in ("bin", "other"):
        Path(tmp_path, folder).mkdir()
        Path(tmp_path, folder, "mpirun").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert launch.find_mpirun() == str(tmp_path / "bin" / "mpirun")
    Path(tmp_path, "bin", "mpirun").unlink()
    assert launch.find_mpirun() == str(tmp_path / "other" / "mpirun")


def test_an_mpirun_of_another_mpi(tmp_path, monkeypatch):
    """Its ranks do not find each other: each is a job of one."""
    fake = tmp_path / "mpirun"
    fake.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(launch, "find_mpirun", lambda: str(fake))
    with pytest.raises(LaunchError, match=r"started 2 processes, but MPI shows each of them 1: it"):
        run(int, 2)


def test_a_job_within_a_job():
    def nest():
        try:
            run(int, 2)
        except LaunchError as error:
            return str(error)

    want = "run() starts ranks of its own, but this process is one of 2 that mpirun started"
    assert run(nest, 2) == [want] * 2
    assert run(lambda: run(lambda: MPI.COMM_WORLD.Get_size(), 2), 1) == [[2, 2]]


@pytest.mark.parametrize(
    ("variables", "want"),
    [
        ("", 0),
        ("PMI_SIZE=4 PMI_RANK=1", 4),
        ("OMPI_COMM_WORLD_SIZE=3 PMIX_RANK=0", 3),
        ("PMI_SIZE=4 SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2", 4),  # under srun
        ("SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2", 2),
        ("SLURM_PROCID=0 SLURM_NTASKS=16 SLURM_STEP_NUM_TASKS=16", 0),  # a batch script
        ("SLURM_STEP_ID=4294967291 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=8", 0),
        ("SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=8 SLURM_PTY_PORT=99", 0),  # a shell
    ],
)
def test_ranks_of_another_mpi_are_found(variables, want, monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("PMI", "OMPI_", "SLURM_", launch.MARK)):
            monkeypatch.delenv(name)
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    assert launch.launched_ranks()[1] == want
    if want > MPI.COMM_WORLD.Get_size():
        with pytest.raises(LaunchError, match=f"started {want} processes, but MPI shows each of"):
            launch.check_world()
    else:
        launch.check_world()


def test_the_launchers_first_rank_speaks_for_all(monkeypatch, capsys):
    import run_mujoco

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    for rank in ("0", "1"):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
        with pytest.raises(SystemExit) as leave:
            run_mujoco.main([])
        assert leave.value.code == 2
        err = capsys.readouterr().err
        assert err.count("Open MPI's mpirun started 3 processes, but") == (rank == "0")


# ---- Scripts and notebooks ----------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, time
from mpi4py import MPI
from common.launch import run

class Point:
    pass

size = 2

def work():
    rank = MPI.COMM_WORLD.Get_rank()
    return rank * size, Point()

results = run(work, nprocs=size)
print([value for value, _ in results], {type(point) is Point for _, point in results})

def wait():
    if os.environ.get("STUBBORN"):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    MPI.COMM_WORLD.Barrier()
    if MPI.COMM_WORLD.Get_rank() == 0:
        print("ready")
    time.sleep(1000)

run(wait, nprocs=size)
"""


def ranks_alive(folder):
    """Return the processes whose command line names a file in the folder."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in path.read_bytes():
                alive.append(path.parent.name)
        except OSError:
            continue
    return alive


@pytest.mark.parametrize(
    ("number", "stubborn", "seconds"),
    [
        (signal.SIGINT, "", 8),
        pytest.param(signal.SIGINT, "yes", 20, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "", 8, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_script_leaves_nothing(number, stubborn, seconds, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    files = tmp_path / "files"
    files.mkdir()
    environment = rank_environment(TMPDIR=str(files), STUBBORN=stubborn)
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(script)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines == ["[0, 2] {True}\n", "ready\n"]
        (folder,) = files.glob("ppo1-*")  # Open MPI has files of its own
        segments = {
            Path(name) for path in folder.glob("shared*") for name in path.read_text().split()
        }
        assert len(ranks_alive(str(folder))) >= 3  # mpirun and the ranks
        start = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -number
    while number == signal.SIGKILL and ranks_alive(str(folder)):
        assert time.monotonic() - start < seconds
        time.sleep(0.05)
    assert time.monotonic() - start < seconds
    assert ranks_alive(str(folder)) == []
    assert list(files.glob("ppo1-*")) == []
    assert not [path for path in segments if path.exists()]
    if number == signal.SIGINT:
        assert err.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.slow
def test_in_a_notebook(tmp_path):
    """In a real kernel: __main__ is no file, MPI is initialized, Ctrl-C comes from outside."""
    script = tmp_path / "drive.py"
    script.write_text(NOTEBOOK)
    done = mpirun(0, str(script), cwd=tmp_path, JUPYTER_PLATFORM_DIRS="1", HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all is well"


NOTEBOOK = '''
import threading, time
from jupyter_client import KernelManager

kernel = KernelManager(kernel_name="python3")
kernel.start_kernel()
client = kernel.client()
client.start_channels()
client.wait_for_ready(timeout=60)

def cell(code, meanwhile=None):
    """Return what a cell prints, and the name of what it raises."""
    printed, error, heard = "", "", set()
    request = client.execute(code)
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != request:
            continue
        content, kind = message["content"], message["msg_type"]
        if kind == "stream":
            printed += content["text"]
        elif kind == "error":
            error = content["ename"] + ": " + content["evalue"]
            printed += "".join(content["traceback"])
        elif kind == "status" and content["execution_state"] == "idle":
            return printed, error
        if meanwhile is not None and "ready" in printed:
            meanwhile()
            meanwhile = None

print(cell("""
import time
from mpi4py import MPI
from common.launch import run
class Point: pass
size = 2
def work():
    print(f"rank {MPI.COMM_WORLD.Get_rank()} at work")
    return Point()
points = run(work, nprocs=size)
print(len(points), all(type(point) is Point for point in points))
"""))
printed, error = cell("print(len(run(work, nprocs=2)))")
assert (sorted(printed.split("\\n")[:2]), error) == (["rank 0 at work", "rank 1 at work"], "")
assert printed.endswith("2\\n")
printed, error = cell("""
def fail():
    if MPI.COMM_WORLD.Get_rank() == 1:
        raise ValueError("of this rank")
    MPI.COMM_WORLD.Barrier()
run(fail, nprocs=2)
""")
assert error == "ValueError: of this rank", (printed, error)
assert "rank 1 of 2: Traceback" in printed
printed, error = cell("""
def wait():
    MPI.COMM_WORLD.Barrier()
    print("ready")
    time.sleep(1000)
run(wait, nprocs=2)
""", kernel.interrupt_kernel)
assert error.startswith("KeyboardInterrupt"), (printed, error)
printed, error = cell("print(len(run(work, nprocs=2)))")
assert printed.endswith("2\\n")
client.stop_channels()
kernel.shutdown_kernel(now=True)
print("all is well")
'''


# ---- --num-procs --------------------------------------------------------------------------------

SCRIPT = str(ROOT / "run_mujoco.py")
TINY = [
    "--num-timesteps", "400", "--timesteps-per-actorbatch", "128", "--optim-batchsize", "32",
    "--optim-epochs", "2", "--seed", "3",
]  # fmt: skip


@pytest.mark.slow
def test_num_procs_is_mpirun(tmp_path):
    done = mpirun(0, SCRIPT, *TINY, "--num-procs", "2", "--log-path", "relaunched", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 ranks, seed 3" in done.stdout
    assert mpirun(2, SCRIPT, *TINY, "--log-path", "launched", cwd=tmp_path).returncode == 0
    assert_equal(tmp_path / "relaunched", tmp_path / "launched")


@pytest.mark.parametrize(
    ("ranks", "flags", "message"),
    [
        (2, "--num-procs 3", "--num-procs 3: but mpirun has started 2 ranks"),
        pytest.param(1, "--num-procs 3", "but mpirun has started 1 rank ", marks=SLOW),
        pytest.param(0, "--num-procs 0", "need a whole number above 0, got '0'", marks=SLOW),
        pytest.param(0, "--num-procs 2 --gamma 3", "--gamma must be in [0, 1]", marks=SLOW),
    ],
)
def test_bad_numbers_of_ranks_get_one_line(ranks, flags, message, tmp_path):
    done = mpirun(ranks, SCRIPT, *flags.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert len(re.findall("error:", done.stderr)) == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_no_endless_relaunching(tmp_path):
    """Where mpirun belongs to another MPI, every rank sees itself alone."""
    done = mpirun(0, SCRIPT, "--num-procs", "2", cwd=tmp_path, PPO1_LAUNCHED="2")
    assert done.returncode == 2
    assert "started 2 processes, but MPI shows each of them 1" in done.stderr


def test_a_program_that_calls_main_is_not_replaced(capsys):
    import run_mujoco

    with pytest.raises(SystemExit):
        run_mujoco.main(["--num-procs", "2"])
    assert "--num-procs 2: from Python, use common.launch.run" in capsys.readouterr().err


@pytest.mark.slow
def test_signals_reach_the_ranks(tmp_path):
    command = [sys.executable, SCRIPT, *TINY, "--num-timesteps", "1e6", "--num-procs", "2",
               "--log-path", "run"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, env=rank_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "Iteration 2 " in line:
                process.send_signal(signal.SIGUSR1)
                break
        out, _ = process.communicate(timeout=60)
    assert "stopped by SIGUSR1, and saved; go on with --resume" in out
    assert process.returncode not in (0, 1)
