"""Tests of common.watchdog; those that hang whole runs are in test_resume.py and test_hosts.py."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import watchdog
from common.mpi_util import wait_for_all
from common.watchdog import Watchdog, end_stuck_launcher, find_launcher, patience
from tests.ranks import ROOT, on_ranks, rank_environment


def test_no_launcher_above_this_process():
    assert find_launcher() is None


def rank_finds_launcher(comm):
    return Path(f"/proc/{find_launcher()}/comm").read_text()


@pytest.mark.mpi
def test_launcher_of_ranks():
    assert set(on_ranks(2, rank_finds_launcher)) <= {"mpirun\n", "prterun\n"}


def test_a_launcher_that_stays_is_killed():
    launcher = subprocess.Popen(["sleep", "60"])
    with launcher, end_stuck_launcher(launcher.pid, grace_seconds=1):
        assert launcher.wait(timeout=30) == -9


# ---- What is progress, and what ends the process ------------------------------------------------


class Clock:
    """Stands for `time` and `faulthandler`: what the watchdog did, at looks a second apart."""

    def __init__(self, monkeypatch, looks):
        self.now, self.ended, self.timers = 0.0, [], []
        self.looks = iter(looks)
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(watchdog, "end_process", self.end)
        monkeypatch.setattr(
            watchdog.faulthandler, "dump_traceback_later", lambda t, **_: self.timers.append(t)
        )
        monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda file: None)

    def end(self, code):
        self.ended.append((self.now, code))
        raise EOFError

    def wait(self, seconds):
        self.now += 1.0
        return next(self.looks, True) is True

    def watch(self, timeout, progress=lambda: "same"):
        dog = Watchdog.__new__(Watchdog)
        dog.timeout_seconds, dog.progress, dog.name, dog._stopped = (
            timeout,
            progress,
            "rank 0",
            self,
        )
        with contextlib.suppress(EOFError):
            dog._watch()
        return self.ended


def test_no_progress_ends_the_process(monkeypatch):
    assert Clock(monkeypatch, [0] * 10).watch(3.0) == [(5.0, 1)]  # 3 s after a look saw progress


def test_a_console_that_is_closed_does_not_keep_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert Clock(monkeypatch, [0] * 10).watch(3.0) == [(5.0, 1)]


def test_a_rank_that_compiles_has_time(monkeypatch):
    with patience(8.0):
        assert Clock(monkeypatch, [0] * 9).watch(3.0) == []
        assert Clock(monkeypatch, [0] * 15).watch(3.0) == [(10.0, 1)]
    assert Clock(monkeypatch, [0] * 9).watch(3.0) == [(5.0, 1)]


def test_who_waits_for_a_rank_makes_progress(monkeypatch):
    class Request:
        def __init__(self):
            self.left = 5

        def Test(self):
            self.left -= 1
            return self.left < 0

    class Comm:
        def Ibarrier(self):
            return Request()

    clock = Clock(monkeypatch, [0] * 20)
    assert clock.watch(3.0, lambda: clock.now < 15 and wait_for_all(Comm())) == [(19.0, 1)]


def test_without_a_timeout_only_a_launcher_that_is_gone_ends_it(monkeypatch, capsys):
    clock = Clock(monkeypatch, [0] * 50)
    assert clock.watch(math.inf) == []
    assert clock.timers == []
    for gone in (watchdog.LAUNCHERS, watchdog.PROXIES):
        clock = Clock(monkeypatch, [0] * 50)
        monkeypatch.setattr(
            watchdog, "find_launcher",
            lambda names=watchdog.LAUNCHERS, gone=gone, clock=clock: (
                None if names == gone and clock.now > 20 else 77
            ),
        )  # fmt: skip
        assert clock.watch(math.inf) == [(21.0, 1)]
        assert "rank 0: its launcher has ended" in capsys.readouterr().err


@pytest.mark.faults
@pytest.mark.mpi
def test_ranks_end_soon_after_a_launcher_that_was_killed(tmp_path):
    command = [
        "mpirun", "-np", "2", sys.executable, str(ROOT / "run_mujoco.py"), "--env", "CartPole-v1",
        "--num-timesteps", "1e8", "--no-compile", "--stall-timeout", "0", "--log-path", "run",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, env=rank_environment(), text=True, stdout=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            if "Iteration 2 " in line:
                break
        ranks = [
            int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cwd")
            if path.exists() and os.readlink(path) == str(tmp_path)
        ]  # fmt: skip
        for pid in set(ranks) - {process.pid}:  # those between, too, which would end the ranks
            if "hydra" in Path(f"/proc/{pid}/comm").read_text():
                os.kill(pid, signal.SIGSTOP)
        process.kill()
        begin = time.monotonic()
        while any(b"run_mujoco" in command_of(pid) for pid in ranks if pid != process.pid):
            assert time.monotonic() - begin < 10
            time.sleep(0.1)
        for pid in set(ranks) - {process.pid}:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)


def command_of(pid):
    """Return a process's command line, empty for one that has ended but is still listed."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
