"""Tests of common.watchdog; those that hang whole runs are in test_resume.py and test_hosts.py."""

import subprocess
from pathlib import Path

import pytest

from common.watchdog import end_stuck_launcher, find_launcher
from tests.ranks import on_ranks


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
