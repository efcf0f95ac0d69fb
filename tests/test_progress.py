"""What a terminal's screen, or a pipe, shows of a run."""

import argparse
import fcntl
import io
import math
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pyte
import pytest

from common import progress
from tests.ranks import ROOT, rank_environment

# Five iterations of what a learner shows, with something that goes wrong in the fourth.
SCRIPT = """
import os, signal, sys, time, warnings
from mpi4py import MPI
from common import logger, progress

folder, event = sys.argv[1:]
progress.REDRAW_SECONDS = 0.0
logger.configure(folder, ["stdout", "log"] if MPI.COMM_WORLD.Get_rank() == 0 else ["log"])
limits = [progress.Limit("timesteps_so_far", 1000, "steps")]
with progress.console_while_training(limits, quiet=event == "quiet") as show:
    for i in range(5):
        show({"tstart": time.monotonic(), "timesteps_so_far": 205 * i})
        logger.detail(f"**** Iteration {i} ****")
        if i == 3:
            logger.log("a line of the log, longer than a narrow screen is wide")
            logger.warn("WARNING: a warning")
            warnings.warn("Python's own")
            print("printed")
            if event == "raises":
                raise ValueError("broken")
            if event == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
        if MPI.COMM_WORLD.Get_rank() == 0:
            logger.logkvs({"EpRewMean": i + 0.5, "TimestepsPerSec": 1234.5})
            logger.dumpkvs()
logger.log("the last line")
"""


class Screen:
    """What a command shows on a terminal of its own.

    Attributes:
        lines: all that is on the screen or was scrolled off it, without what was drawn over.
        raw: the bytes.
        returncode: of the command.
        is_sane: whether the cursor shows and stands at the start of an empty line.
    """

    def __init__(self, *command, columns=100, rows=40, cwd=None, interrupt_at=None, **extra):
        terminal = pyte.HistoryScreen(columns, rows, history=10_000)
        stream = pyte.ByteStream(terminal)
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, start_new_session=True,
            env=rank_environment(TERM="xterm-256color", MPIEXEC_TIMEOUT="90", **extra),
        )  # fmt: skip
        os.close(slave)
        self.raw = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # nobody has the terminal open any more
                break
            self.raw += data
            stream.feed(data)
            if interrupt_at and interrupt_at in self.raw:
                os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
                interrupt_at = None
        os.close(master)
        self.returncode = process.wait(timeout=30)
        above = ["".join(row[i].data for i in range(columns)) for row in terminal.history.top]
        self.lines = [line.rstrip() for line in [*above, *terminal.display]]
        self.is_sane = (
            not terminal.cursor.hidden and terminal.cursor.x == 0
            and not terminal.display[terminal.cursor.y].strip()
        )  # fmt: skip
        self.text = "\n".join(self.lines).rstrip()


def script(tmp_path, event="none", **options):
    return Screen(sys.executable, "-c", SCRIPT, str(tmp_path / "run"), event, **options)


TABLE = """\
------------------------------
| EpRewMean       | 4.5      |
| TimestepsPerSec | 1.23e+03 |
------------------------------
"""


def test_a_terminal_shows_the_latest_table_and_a_bar(tmp_path):
    screen = script(tmp_path)
    (bar,) = [line for line in screen.lines if "%" in line]
    assert re.fullmatch(r"━+╸?╺?━*  82%  820/1,000 steps  1,234/s  0:00:0\d left  return 4.5", bar)
    assert len(bar) < 100
    assert screen.text.endswith(f"{TABLE}{bar}\nthe last line")
    assert screen.text.count("EpRewMean") == 1  # each table took the place of the one before
    assert screen.raw.count(b"EpRewMean") >= 5
    assert "Iteration" not in screen.text
    for line in ("a line of the log, longer than a narrow screen is wide", "WARNING: a warning",
                 "printed"):  # fmt: skip
        assert screen.lines.count(line) == 1
    assert "UserWarning: Python's own" in screen.text
    assert screen.is_sane
    assert b"\x1b[?" not in screen.raw  # no mode is ever changed, the cursor's visibility included


def test_the_text_log_is_the_same_whatever_the_console_shows(tmp_path):
    texts = []
    for event in ("none", "quiet"):
        for columns in (100, 30):
            folder = tmp_path / f"{event}{columns}"
            script(folder, event, columns=columns)
            texts.append((folder / "run" / "log.txt").read_text().replace(str(folder), ""))
    plain = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), "none"], env=rank_environment(),
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.replace(str(tmp_path), "")  # fmt: skip
    assert {*texts} == {plain.replace("printed\n", "")}  # a pipe has it all
    assert plain.count("EpRewMean") == 5
    assert "\x1b" not in plain


@pytest.mark.parametrize(("columns", "kept"), [(60, "steps.* left"), (32, "82%"), (12, "82%")])
def test_a_narrow_terminal_shows_what_fits(columns, kept, tmp_path):
    screen = script(tmp_path, columns=columns)
    (bar,) = [line for line in screen.lines if "%" in line]
    assert re.search(kept, bar)
    assert re.match("━+", bar)
    assert ("EpRewMean" in screen.text) == (columns > 30)
    assert screen.text.count("EpRewMean") <= 1
    assert screen.is_sane


def test_a_low_terminal_shows_the_bar_alone(tmp_path):
    screen = script(tmp_path, rows=5)
    assert [line for line in screen.lines if "return 4.5" in line]
    assert "EpRewMean" not in screen.text


def test_quiet_shows_first_lines_warnings_and_the_last_line(tmp_path):
    screen = script(tmp_path, "quiet")
    lines = [line for line in screen.lines if line and "warnings.warn" not in line]
    assert lines == [f"Logging to {tmp_path}/run", "WARNING: a warning", lines[2], "printed",
                     "the last line"]  # fmt: skip
    assert lines[2].endswith("UserWarning: Python's own")
    assert b"\x1b" not in screen.raw


def test_a_traceback_stands_below_the_bar(tmp_path):
    screen = script(tmp_path, "raises")
    bar, after = (next(i for i, line in enumerate(screen.lines) if word in line)
                  for word in ("61%", "Traceback"))  # fmt: skip
    assert after == bar + 1
    assert screen.lines[bar - 1].startswith("-----")
    assert screen.text.endswith("ValueError: broken")
    assert screen.returncode == 1
    assert screen.is_sane


def test_a_killed_process_leaves_a_sane_terminal(tmp_path):
    screen = script(tmp_path, "dies")
    assert screen.returncode == -signal.SIGKILL
    assert screen.is_sane


def test_no_color(tmp_path):
    def colors(**extra):
        return re.findall(rb"\x1b\[[^m]*[34]8;5;\d+m", script(tmp_path, **extra).raw)

    assert colors()
    assert not colors(NO_COLOR="1")


def test_a_dumb_terminal_gets_plain_tables(tmp_path):
    screen = Screen("env", "TERM=dumb", sys.executable, "-c", SCRIPT, str(tmp_path / "run"), "none")
    assert screen.text.count("EpRewMean") == 5
    assert "%" not in screen.text
    assert b"\x1b" not in screen.raw


@pytest.mark.mpi
def test_under_mpirun_the_launchers_terminal_counts(tmp_path):
    command = ["mpirun", "-np", "2", sys.executable, "-c", SCRIPT, str(tmp_path / "run"), "none"]
    screen = Screen(*command)
    (bar,) = [line for line in screen.lines if "%" in line]
    assert bar.endswith("return 4.5")
    assert screen.text.count("EpRewMean") == 1
    assert b"\x1b" not in (tmp_path / "run" / "log.txt").read_bytes()
    for shell in ("{} 2>/dev/null | cat", "{} 2>/dev/null > out; cat out"):  # on that terminal
        plain = Screen("sh", "-c", shell.format('"$@"'), "sh", *command, cwd=tmp_path,
                       PYTHONPATH=str(ROOT))  # fmt: skip
        assert plain.text.count("EpRewMean") == 5
        assert b"\x1b" not in plain.raw


TINY = ["--env", "CartPole-v1", "--seed", "1", "--timesteps-per-actorbatch", "64", "--optim-epochs",
        "1", "--no-compile", "--log-path", "run"]  # fmt: skip


def test_a_run_on_a_terminal_and_its_interruption(tmp_path):
    command = [sys.executable, str(ROOT / "run_mujoco.py"), *TINY, "--num-timesteps", "1e7"]
    screen = Screen(*command, cwd=tmp_path, columns=200,
                    interrupt_at=b"TimestepsSoFar")  # fmt: skip
    assert screen.returncode == 128 + signal.SIGINT
    (bar,) = [line for line in screen.lines if "/10,000,000 steps" in line]
    last = [line for line in screen.lines if line][-1]
    assert last == f"stopped by SIGINT, and saved; go on with --resume {tmp_path}/run"
    assert screen.text.count("| EpRewMean") == 1
    assert screen.is_sane
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "\x1b" not in log
    assert "Optimizing...\n" in log


@pytest.mark.parametrize(
    ("flags", "tables"), [([], 3), pytest.param(["--quiet"], 0, marks=pytest.mark.slow)]
)
def test_a_run_in_a_pipe(flags, tables, tmp_path):
    command = [sys.executable, str(ROOT / "run_mujoco.py"), *TINY, *flags, "--schedule", "constant",
               "--max-iters", "3"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=rank_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("| TimestepsSoFar") == 3
    assert done.stdout.count("| TimestepsSoFar") == tables
    first, second, third, *_, last = log.splitlines()
    if tables:
        assert done.stdout == log
    else:
        assert done.stdout.splitlines() == [first, second, third, last]


# ---- Parts --------------------------------------------------------------------------------------


def test_limits_and_the_nearest_of_them():
    args = argparse.Namespace(max_timesteps=1000, stop_timesteps=500, max_episodes=0, max_iters=0,
                              max_seconds=0)  # fmt: skip
    assert [limit.total for limit in progress.limits_of(args)] == [1000, 500]
    args = argparse.Namespace(max_timesteps=0, stop_timesteps=None, max_episodes=7, max_iters=8,
                              max_seconds=9.5)  # fmt: skip
    assert [tuple(limit)[1:] for limit in progress.limits_of(args)] == [
        (7, "episodes"), (8, "iterations"), (9.5, "s"),
    ]  # fmt: skip


def test_the_first_iteration_says_nothing_of_the_pace(monkeypatch):
    """It compiles: here it takes 30 s, and the others 1 s each."""
    master, slave = os.openpty()
    limits = [progress.Limit("iters_so_far", 10, "iterations")]
    live = progress.LiveOutputFormat(limits, os.ttyname(slave))
    for iteration, now in enumerate([0.0, 30.0, 31.0, 32.0]):
        with monkeypatch.context() as patch:
            patch.setattr(progress.time, "monotonic", lambda now=now: now)
            live.show({"tstart": 0.0, "iters_so_far": iteration})
    assert progress.seconds_left(live.history) == pytest.approx(7.0)
    live.close()
    os.close(master)
    os.close(slave)


def test_the_bar_counts_the_steps_of_running_episodes_of_all_ranks():
    master, slave = os.openpty()
    limits = [progress.Limit("timesteps_so_far", 1000, "steps")]
    live = progress.LiveOutputFormat(limits, os.ttyname(slave))
    local = {"tstart": 0.0, "comm": SimpleNamespace(Get_size=lambda: 2), "timesteps_so_far": 400}
    for running, done, text in ((0, 0.4, "400/1,000 steps"), (150, 0.7, "700/1,000 steps"),
                                (5000, 1.0, "10,400/1,000 steps")):  # fmt: skip
        live.show({**local, "seg": {"carry": {"cur_ep_len": running}}})
        assert live.fraction_done() == done
        assert text in [field for _, field in live.fields()]
    live.values = {"TimestepsPerSec": math.nan}  # of a clock that stood still
    assert not [field for _, field in live.fields() if field.endswith("/s")]
    live.close()
    os.close(master)
    os.close(slave)


def test_time_left_is_at_the_pace_of_the_history():
    assert progress.seconds_left([(10.0, 0.1), (15.0, 0.2), (20.0, 0.3)]) == pytest.approx(35.0)
    assert progress.seconds_left([(10.0, 0.0), (30.0, 1.0)]) == 0.0
    for unknown in ([], [(1.0, 0.5)], [(1.0, 0.5), (2.0, 0.5)]):
        assert math.isnan(progress.seconds_left(unknown))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00:00"), (0.2, "0:00:01"), (61.0, "0:01:01"), (90_000, "25:00:00"),
     (math.nan, "-:--:--"), (math.inf, "-:--:--")],
)  # fmt: skip
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


def test_the_least_wanted_fields_go_first():
    fields = [(0, "aa"), (2, "bbbb"), (1, "cccc")]
    assert progress.fit(fields, 16) == ["aa", "bbbb", "cccc"]
    assert progress.fit(fields, 15) == ["aa", "cccc"]
    assert progress.fit(fields, 0) == ["aa"]


def test_what_python_redirects_is_no_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert progress.terminal_of(1) is None
