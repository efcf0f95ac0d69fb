"""Stopping, resuming and breaking whole runs, through the command line."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import run_mujoco
from common.checkpoint import checkpoint_files, read_checkpoint
from tests.ranks import OPEN_MPI, ROOT, mpirun, rank_environment

TINY = [
    "--seed", "3", "--num-timesteps", "1500", "--timesteps-per-actorbatch", "128",
    "--optim-batchsize", "32", "--optim-epochs", "2", "--save-interval", "2", "--keep", "99",
]  # fmt: skip
RUNS = {
    "hopper": ("run_mujoco.py", "--env", "Hopper-v4", *TINY),
    "compiled": ("run_mujoco.py", "--env", "Hopper-v4", *TINY, "--compile"),
    "reacher": ("run_mujoco.py", "--env", "Reacher-v4", *TINY),
    "pong": (
        "run_atari.py", "--env", "BreakoutNoFrameskip-v4", "--kind", "small", *TINY,
        "--num-timesteps", "500", "--timesteps-factor", "1",
    ),
}  # fmt: skip


def launch(nprocs, name, *flags, folder, expect=0, **options):
    script, *rest = RUNS[name]
    done = mpirun(nprocs, str(ROOT / script), *rest, *flags, cwd=folder, **options)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def results(folder):
    """Return all that two equal runs have equal: columns but times, episodes, and last state."""
    with open(folder / "progress.csv") as file:
        rows = [
            {key: x for key, x in row.items() if key != "TimeElapsed" and "PerSec" not in key}
            for row in csv.DictReader(file)
        ]
    episodes = [
        [line.split(",")[:2] for line in path.read_text().splitlines()[2:]]
        for path in sorted(folder.glob("*.monitor.csv"))
    ]
    newest = checkpoint_files(folder / "checkpoints")[0]
    shared = read_checkpoint(newest)["shared"]
    return rows, episodes, newest.name, {name: shared[name] for name in ("theta", "adam_m")}


def assert_equal(one, two):
    for got, want in zip(results(one), results(two), strict=True):
        np.testing.assert_equal(got, want)


def rewind(run, copy, iteration):
    """Copy a run's folder, without the checkpoints after `iteration`; its logs stay as they are."""
    shutil.copytree(run, copy)
    for path in checkpoint_files(copy / "checkpoints"):
        if path.name > f"iteration-{iteration:09d}.ckpt":
            path.unlink()


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "nprocs"),
    [
        ("reacher", 2),
        pytest.param("hopper", 1, marks=pytest.mark.slow),
        pytest.param("hopper", 2, marks=pytest.mark.slow),
        pytest.param("compiled", 1, marks=pytest.mark.slow),
        pytest.param("compiled", 2, marks=pytest.mark.slow),
        pytest.param("pong", 1, marks=pytest.mark.slow),
        pytest.param("pong", 2, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_one_that_was_never_stopped(name, nprocs, tmp_path):
    launch(nprocs, name, "--log-path", "whole", folder=tmp_path)
    rewind(tmp_path / "whole", tmp_path / "again", iteration=2)
    done = launch(nprocs, name, "--resume", "again", folder=tmp_path)
    assert "Resuming before iteration 2, exactly" in done.stdout
    assert_equal(tmp_path / "again", tmp_path / "whole")
    assert len(results(tmp_path / "again")[0]) > 2  # more than the checkpoint had
    text = (tmp_path / "again" / "log.txt").read_text()
    iterations = re.findall(r"Iteration (\d+) ", text)
    assert iterations == [str(i) for i in range(len(iterations))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("runs")
    launch(0, "hopper", "--log-path", "run", folder=folder)
    return folder / "run"


@pytest.mark.mpi
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_the_run_at_the_next_iteration_saved(number, finished, tmp_path):
    if OPEN_MPI and number != signal.SIGUSR1:
        pytest.skip("Open MPI kills a second after TERM and INT")
    script, *flags = RUNS["hopper"]
    command = ["mpirun", "-np", "1", sys.executable, str(ROOT / script), *flags,
               "--save-interval", "0", "--log-path", "run"]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, env=rank_environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        for line in process.stdout:
            if "Iteration 2 " in line:
                process.send_signal(number)
                break
        out, _ = process.communicate(timeout=60)
    assert f"stopped by {number.name}, and saved; go on with --resume" in out
    assert process.returncode not in (0, 1)
    launch(0, "hopper", "--save-interval", "2", "--resume", "--log-path", "run", folder=tmp_path)
    assert_equal(tmp_path / "run", finished)


@pytest.mark.slow
def test_a_paused_run_goes_on_as_if_it_never_had(finished, tmp_path):
    """Schedules reach over --num-timesteps all the same, also when the run is paused again."""
    for flags, stops in [
        (("--log-path", "run", "--stop-timesteps", "300"), 300),
        (("--resume", "run", "--stop-timesteps", "700"), 700),
    ]:
        done = launch(0, "hopper", *flags, "--save-interval", "0", folder=tmp_path)
        (paused,) = re.findall(r"paused after (\d+) timesteps, and saved; go on with", done.stdout)
        assert stops <= int(paused) < stops + 200
        assert done.stdout.endswith(f"Logged to {tmp_path}/run\n")
        assert int(results(tmp_path / "run")[0][-1]["TimestepsSoFar"]) == int(paused)
    done = launch(0, "hopper", "--resume", "run", folder=tmp_path)
    assert "paused after" not in done.stdout
    assert_equal(tmp_path / "run", finished)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_said(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    newest, before, *_ = checkpoint_files(tmp_path / "run" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:1000])
    done = launch(0, "hopper", "--resume", "run", folder=tmp_path)
    assert f"{newest.name} is damaged" in done.stdout
    assert f"Resuming before iteration {int(before.stem[-9:])}, exactly" in done.stdout
    assert_equal(tmp_path / "run", finished)


@pytest.mark.slow
def test_another_number_of_ranks_is_announced(finished, tmp_path):
    rewind(finished, tmp_path / "run", iteration=4)
    done = launch(2, "hopper", "--resume", "run", folder=tmp_path)
    assert "number of ranks now 2 instead of 1: not exactly" in done.stdout
    assert len(results(tmp_path / "run")[1]) == 2


@pytest.mark.slow
def test_an_environment_of_unknown_state_begins_a_fresh_episode(tmp_path):
    script, _, _, *flags = RUNS["hopper"]
    command = [str(ROOT / script), "--env", "tests.envs:toy/dict-v0", *flags]
    assert mpirun(0, *command, "--log-path", "run", cwd=tmp_path).returncode == 0
    rewind(tmp_path / "run", tmp_path / "again", iteration=4)
    done = mpirun(0, *command, "--resume", "again", cwd=tmp_path)
    assert done.returncode == 0
    assert "with fresh episodes: the environment's own state cannot be saved" in done.stdout


@pytest.mark.slow
def test_resume_before_the_first_checkpoint_starts_from_the_beginning(finished, tmp_path):
    done = launch(0, "hopper", "--resume", "--log-path", "run", folder=tmp_path)
    assert f"No checkpoint in {tmp_path}/run yet: starting from the beginning" in done.stdout
    assert_equal(tmp_path / "run", finished)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "run", "--gamma", "0.5", "--seed", "4"],
         "--seed 4 (saved: 3), --gamma 0.5 (saved: 0.99); --override to go on"),
        (["--resume", "run", "--env", "Walker2d-v4"], "--env Walker2d-v4 (saved: Hopper-v4)"),
        (["--resume", "run", "--env", "Walker2d-v4", "--override"],
         "the checkpoint is of Hopper-v4, not Walker2d-v4"),
        (["--resume", "run", "--hid-size", "8", "--override"], "the saved network has"),
        (["--resume", "nothing"], "cannot read checkpoint TMP/nothing: No such file"),
        (["--resume", "text"], "text is not a checkpoint"),
        (["--resume", "empty"], "no checkpoint in TMP/empty"),
        (["--resume"], "--resume needs the run's folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_resumed_is_one_line(
    flags, message, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    before = results(tmp_path / "run")
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(flags)
    assert leave.value.code == 2
    error = capsys.readouterr().err
    assert message.replace("TMP", str(tmp_path)) in error
    assert len(error.splitlines()) == 1
    np.testing.assert_equal(results(tmp_path / "run"), before)


@pytest.mark.slow
def test_flags_that_agree_or_compute_nothing_may_be_given(finished, tmp_path):
    rewind(finished, tmp_path / "run", iteration=4)
    launch(0, "hopper", "--resume", "run", "--env", "Hopper-v4", "--keep", "2", folder=tmp_path)
    assert len(checkpoint_files(tmp_path / "run" / "checkpoints")) == 2
    with open(tmp_path / "run" / "progress.csv") as file:
        assert len(list(csv.DictReader(file))) == len(results(finished)[0])


# ---- Ranks that die or hang ---------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("dies", ""),
        ("leaves", r"rank 1 of 2: left by os._exit\(0\) in the middle of a run"),
        ("hangs", r"rank 1 of 2: no progress for 3 s, ending the job; all stacks:(.|\n)*_hang"),
    ],
)
def test_a_rank_that_dies_leaves_or_hangs_ends_the_job(fault, message, tmp_path):
    script, _, _, *flags = RUNS["hopper"]
    done = mpirun(
        2, str(ROOT / script), "--env", f"tests.envs:toy/{fault}-v0", *flags,
        "--timesteps-per-actorbatch", "64", "--stall-timeout", "3", "--log-path", "run",
        cwd=tmp_path,
    )  # fmt: skip
    seconds = time.time() - float((tmp_path / "fault").read_text())
    assert done.returncode != 0
    assert re.search(message, done.stderr)
    assert seconds < 10
    time.sleep(0.5)
    assert not [path for path in Path("/proc").glob("[0-9]*/cwd") if cwd_of(path) == tmp_path]


@pytest.mark.faults
@pytest.mark.mpi
@pytest.mark.parametrize("nprocs", [0, 2])
def test_an_environment_that_hangs_in_the_evaluation_ends_the_job(nprocs, tmp_path):
    done = mpirun(
        nprocs, str(ROOT / "run_mujoco.py"), "--env", "tests.envs:toy/hangs-v0", "--num-timesteps",
        "40", "--timesteps-per-actorbatch", "64", "--optim-batchsize", "32", "--evaluate", "40",
        "--stall-timeout", "3", "--log-path", "run", cwd=tmp_path,
    )  # fmt: skip
    assert time.time() - float((tmp_path / "fault").read_text()) < 10
    assert done.returncode == 1
    rank, size = (1, 2) if nprocs else (0, 1)
    assert f"rank {rank} of {size}: no progress for 3 s, ending the job; all stacks:" in done.stderr
    assert "in play_episode" in done.stderr


@pytest.mark.faults
def test_a_console_whose_reader_has_left(tmp_path):
    """As in `python run_mujoco.py | head -1`."""
    script, *flags = RUNS["reacher"]
    command = [sys.executable, str(ROOT / script), *flags, "--log-path", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=rank_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0
    assert "could not write its log to stdout: [Errno 32] Broken pipe" in err
    assert len(err.splitlines()) == 1
    assert "Logged to" in (tmp_path / "run" / "log.txt").read_text()


def cwd_of(path):
    try:
        return Path(os.readlink(path))
    except OSError:
        return None
