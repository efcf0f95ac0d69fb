"""What environments leave behind, at the end of scripts and of `launch.run`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpi4py import MPI

from common.launch import launch_environment, run
from common.leftovers import Sweeper, _exit_code, descendants
from tests.ranks import ROOT, mpirun, rank_environment

SCRIPT = """
import multiprocessing, os, signal, subprocess, sys, threading, time
from common.leftovers import ending_what_is_left
with ending_what_is_left():
    subprocess.run("sleep 300 &", shell=True)  # whose parent ends at once
    subprocess.Popen(["sleep", "300"], start_new_session=True)
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,)).start()
    threading.Thread(target=time.sleep, args=(300,)).start()
    print("ready", flush=True)
    exec(sys.argv[1])
"""


def processes_in(folder):
    return [path for path in Path("/proc").glob("[0-9]*/cwd") if is_link_to(path, folder)]


def is_link_to(path, folder):
    try:
        return os.readlink(path) == str(folder)
    except OSError:
        return False


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        pytest.param("pass", 0, marks=pytest.mark.faults),
        pytest.param("sys.exit(138)", 138, marks=pytest.mark.faults),
        pytest.param("raise ValueError('broken')", 1, marks=pytest.mark.faults),
        pytest.param(
            "time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)", -9, marks=pytest.mark.slow
        ),
    ],
)
def test_nothing_outlives_a_script_for_long(ending, code, tmp_path):
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ending], cwd=tmp_path, env=rank_environment(),
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == code
    assert time.monotonic() - begin < 15  # 4 and the start of Python
    assert ("ValueError: broken" in done.stderr) == ("broken" in ending)
    while processes_in(tmp_path):
        assert time.monotonic() - begin < 15
        time.sleep(0.1)


@pytest.mark.faults
@pytest.mark.mpi
def test_a_run_whose_environment_does_not_end_and_does_not_close(tmp_path):
    done = mpirun(
        2, str(ROOT / "run_mujoco.py"), "--env", "tests.envs:toy/leaving-v0", "--num-timesteps",
        "200", "--timesteps-per-actorbatch", "64", "--optim-batchsize", "32", "--optim-epochs", "1",
        "--evaluate", "2", "--save-path", "policy", "--log-path", "run", cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 episodes of" in done.stdout
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert (tmp_path / "policy").exists()
    assert not processes_in(tmp_path)


@pytest.mark.faults
@pytest.mark.mpi
def test_a_job_from_python_whose_ranks_leave_a_child_behind():
    def leave():
        subprocess.Popen(["sleep", "300"])
        return MPI.COMM_WORLD.Get_rank()

    begin = time.monotonic()
    assert run(leave, 2) == [0, 1]
    assert time.monotonic() - begin < 15


# ---- Parts --------------------------------------------------------------------------------------


def test_children_are_killed_once_the_sweeper_closes(monkeypatch):
    monkeypatch.setattr("common.leftovers.GRACE_SECONDS", 0)
    monkeypatch.setenv("PPO1_PROCESS", "")  # which the sweeper sets
    sweeper = Sweeper()
    with subprocess.Popen(["sh", "-c", "sleep 300 & wait"]) as child:
        while not (grandchildren := descendants(child.pid)):
            time.sleep(0.01)
        assert descendants(os.getpid()) >= {child.pid, *grandchildren}
        orphan = int(
            subprocess.check_output("sleep 300 >/dev/null & echo $!", shell=True, text=True)
        )
        assert orphan not in descendants(os.getpid())
        sweeper.close()
        assert child.wait(timeout=10) == -signal.SIGKILL
        for pid in (orphan, *grandchildren):
            while is_alive(pid):
                time.sleep(0.01)


def test_a_launcher_is_nothing_that_is_left(monkeypatch):
    """Else what --num-procs has put in the place of a script would be ended as its child."""
    monkeypatch.setenv("PPO1_PROCESS", "1-2")
    assert "PPO1_PROCESS" not in launch_environment()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # of a zombie it is empty
    except OSError:
        return False


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0), (SystemExit(), 0), (SystemExit(138), 138), (SystemExit("why"), 1),
        (KeyboardInterrupt(), 130), (ValueError(), 1),
    ],
)  # fmt: skip
def test_exit_codes(error, code):
    assert _exit_code(error) == code
