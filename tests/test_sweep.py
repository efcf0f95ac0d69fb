"""Sweeps, with the real script."""

import csv
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.checkpoint import checkpoint_files
from common.files import FolderLock
from common.sweep import (
    look,
    main,
    make_jobs,
    set_aside_other_summary,
    sweep,
    telling_line,
    values_of,
)
from tests.ranks import ROOT, rank_environment
from tests.test_resume import assert_equal

SCRIPT = str(ROOT / "run_mujoco.py")
TINY = [
    "--num-timesteps", "300", "--timesteps-per-actorbatch", "128", "--optim-batchsize", "32",
    "--optim-epochs", "2",
]  # fmt: skip
PAUSE = ["--stop-timesteps", "100"]


def summary(out):
    with open(Path(out, "summary.csv")) as file:
        return list(csv.DictReader(file))


def test_values():
    assert values_of("0-3,7") == ["0", "1", "2", "3", "7"]
    assert values_of("Hopper-v4,ALE/Pong-v5") == ["Hopper-v4", "ALE/Pong-v5"]
    one, two = '{"a": 1, "b": "x,y"}', '{"a": 2}'
    assert values_of(f"{one},{two}") == [one, two]


def test_a_json_object_is_a_flag_as_any_other():
    given = {"env": ["Pendulum-v1"], "env-kwargs": ['{"g": 1.5}', '{"g": 2, "a": 1}']}
    for job in make_jobs(SCRIPT, given, Path("out"), []):
        look(job, SCRIPT)
        assert job.args.env_kwargs == json.loads(job.values["env_kwargs"])
    (job,) = make_jobs(SCRIPT, {}, Path("out"), ["--env-kwargs", '{"a": {"b": 1}, "c": 2}'])
    look(job, SCRIPT)
    assert job.args.env_kwargs == {"a": {"b": 1}, "c": 2}


def test_folders():
    grid = {"env": ["Hopper-v4", "a.b:C/D-v0"], "seed": range(2)}
    jobs = make_jobs(SCRIPT, grid, Path("out"), ["--gamma", "0.9"])
    assert [str(job.folder) for job in jobs] == [
        "out/Hopper-v4/seed0", "out/Hopper-v4/seed1", "out/a.b-C-D-v0/seed0", "out/a.b-C-D-v0/seed1"
    ]  # fmt: skip
    command = "--gamma 0.9 --env Hopper-v4 --seed 1 --log-path out/Hopper-v4/seed1 --resume"
    assert jobs[1].argv == command.split()
    grid = {"hid_size": [8, 16, 8], "lam": [0.9]}
    jobs = make_jobs(SCRIPT, grid, Path("out"), [])
    assert [str(job.folder) for job in jobs] == [
        "out/hid-size8/lam0.9/seed0", "out/hid-size16/lam0.9/seed0"
    ]  # fmt: skip
    command = "--hid-size 16 --lam 0.9 --seed 0 --log-path out/hid-size16/lam0.9/seed0 --resume"
    assert jobs[1].argv == command.split()


def test_another_sweeps_summary_is_set_aside(tmp_path, capsys):
    jobs = make_jobs(SCRIPT, {"seed": [0, 1]}, tmp_path, [])
    path, earlier = tmp_path / "summary.csv", []
    ours = f"folder,status\n{jobs[0].folder},finished\n"
    for text in (ours, "name,grade\nme,1\n", "\xff", f"{ours}{tmp_path}/other,finished\n"):
        path.write_text(text, encoding="latin-1")
        set_aside_other_summary(path, jobs)
        assert path.exists() == (text == ours)
        earlier += [text] if text != ours else []
    kept = [(tmp_path / f"earlier-{n}" / "summary.csv").read_text("latin-1") for n in (1, 2, 3)]
    assert kept == earlier
    assert capsys.readouterr().out.count(", of other runs, is now in ") == 3


def test_the_line_that_tells():
    assert telling_line("a\nValueError: boom\nin iteration 3\n\n") == "ValueError: boom"
    assert telling_line("a\nterror\n\n") == "terror"
    assert telling_line("") == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{SCRIPT} --out out --seed", "--seed : need a flag and its values, such as --seed 0-4"),
        (f"{SCRIPT} --out out --seed 0 --gamma --lam 1", "--gamma --lam: need a flag"),
        (f"{SCRIPT} --out out --gama 0.9", "seed0: unrecognized arguments: --gama 0.9; did you me"),
        (f"{SCRIPT} --out out --hid-size 8,x", "hid-sizex/seed0: argument --hid-size: need a whol"),
        (f"{SCRIPT} --out out -- --num-timesteps 5 --max-iters 5", "seed0: give one limit, not bo"),
        (SCRIPT + ' --out out --env-kwargs {"a":{"b":1},"c":2}', "-kwargs: need a JSON object, su"),
        (f"{SCRIPT} --out out --env Hoper-v4", "unknown environment 'Hoper-v4'; did you mean Hop"),
        (f"{SCRIPT} --out out -- --num-timesteps 0 --save-path x", "seed0: nothing to train; a sw"),
        (f"{SCRIPT} --out out --seed 0,1 -- --save-path x", "--save-path TMP/x: several runs wo"),
        (f"{SCRIPT} --out other.py/out", "Not a directory: 'TMP/other.py/out'"),
        ("nothing.py --out out", "No such file or directory: '"),
        ("other.py --out out", "other.py has no arg_parser and PRESETS, as run_mujoco.py has"),
        (f"{SCRIPT} --env Hopper-v4", "the following arguments are required: --out"),
        (f"{SCRIPT} --out out --jobs 0", "need a whole number above 0, got '0'"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("other.py").touch()
    with pytest.raises(SystemExit) as leave:
        main(command.split())
    assert leave.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message.replace("TMP", str(tmp_path)) in err
    assert len(err.splitlines()) == 1
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_job_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    grid = {"env": ["tests.envs:toy/raises-v0", "CartPole-v1"]}
    paused = sweep(SCRIPT, {"env": grid["env"][1:]}, out="out", flags=[*TINY, *PAUSE])
    assert sweep(SCRIPT, {"env": grid["env"][1:]}, out="out", flags=[*TINY, *PAUSE]) == paused
    assert paused[0]["status"] == "paused"
    assert 100 <= paused[0]["timesteps"] < 300
    assert "1 run, 0 to do" in capsys.readouterr().out
    rows = sweep(SCRIPT, grid, out="out", flags=TINY)
    failed, finished = rows
    assert [dict(row) for row in summary("out")] == [
        {name: str(value) for name, value in row.items()} for row in rows
    ]
    assert failed["status"] == "failed"
    assert finished["status"] == "finished"
    assert finished["folder"] == str(tmp_path / "out/CartPole-v1/seed0")
    assert finished["timesteps"] >= 300
    with open("out/CartPole-v1/seed0/progress.csv") as file:
        *_, last = csv.DictReader(file)
    assert finished["timesteps"] == int(last["TimestepsSoFar"])
    assert finished["episodes"] == int(last["EpisodesSoFar"])
    assert finished["return_mean"] == pytest.approx(float(last["EpTrueRewMean"]), rel=1e-6)
    folder = str(tmp_path / "out/tests.envs-toy-raises-v0/seed0")
    line = f"{folder} failed: RuntimeError: the robot fell off the table (see {folder}/job.log)"
    assert line in capsys.readouterr().out
    assert "in iteration 0 on rank 0" in Path(folder, "job.log").read_text()
    # What is finished is not started again, and flags that differ are noticed
    before = Path("out/CartPole-v1/seed0/log.txt").read_bytes()
    assert sweep(SCRIPT, {"env": ["CartPole-v1"]}, out="out", flags=TINY) == [finished]
    assert "1 run, 0 to do" in capsys.readouterr().out
    assert Path("out/CartPole-v1/seed0/log.txt").read_bytes() == before
    with pytest.raises(ValueError, match=r"CartPole-v1/seed0: differs .*--gamma 0.5 \(saved: 0.99"):
        sweep(SCRIPT, {"env": ["CartPole-v1"]}, out="out", flags=[*TINY, "--gamma", "0.5"])
    with pytest.raises(ValueError, match=r"the run that is there has 1 rank, not 2"):
        sweep(SCRIPT, {"env": ["CartPole-v1"]}, out="out", flags=[*TINY, "--num-procs", "2"])


class FakeProcess:
    """Ends at once, having trained nothing."""

    def __init__(self, command, **options):
        folder = Path(command[command.index("--log-path") + 1])
        assert not FolderLock.is_held(folder)
        (folder / "started").touch()

    def poll(self):
        return 0


def test_damage_and_jobs_that_still_live(tmp_path, monkeypatch, capsys):
    """A damaged run is failed, one that a killed sweep has left is waited for, the others run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("common.sweep.subprocess.Popen", FakeProcess)
    damaged, alive, fresh = (Path(f"out/seed{seed}") for seed in range(3))
    (damaged / "checkpoints").mkdir(parents=True)
    (damaged / "checkpoints" / "iteration-000000003.ckpt").write_text("nonsense")
    alive.mkdir()
    lock = open(alive / ".lock", "w")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    naps = []

    def sleep(seconds):
        naps.append((alive / "started").exists())
        if len(naps) == 5:
            lock.close()

    monkeypatch.setattr("common.sweep.time.sleep", sleep)
    rows = sweep(SCRIPT, {"seed": range(3)}, out="out", flags=TINY, jobs=3)
    assert naps == [False] * 5 + [True]
    out = capsys.readouterr().out
    assert "3 runs, 2 to do" in out
    assert "out/seed1 still runs: waiting for it" in out
    assert re.search("out/seed0 failed: no good checkpoint in .*out/seed0/checkpoints: ", out)
    assert [row["status"] for row in rows] == ["failed"] * 3  # nothing was trained
    assert (fresh / "started").exists()
    assert not (damaged / "started").exists()


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "signum"), [(1, signal.SIGINT), (2, signal.SIGINT), (1, signal.SIGKILL)]
)
def test_a_sweep_that_was_stopped_goes_on_and_equals_one_that_was_not(ranks, signum, tmp_path):
    """The killed one dies with its jobs, as with the machine."""

    def command(out):
        return [
            sys.executable, "-m", "common.sweep", SCRIPT, "--env", "Reacher-v4", "--seed", "0-2",
            "--jobs", "2", "--out", out, "--", *TINY, "--num-timesteps", "6000",
            "--num-procs", str(ranks),
        ]  # fmt: skip

    environment = rank_environment()
    with subprocess.Popen(
        command("stopped"), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        logs = [tmp_path / f"stopped/Reacher-v4/seed{seed}/progress.csv" for seed in (0, 1)]
        deadline = time.monotonic() + 90
        while not all(path.exists() and path.stat().st_size for path in logs):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signum)
        if signum == signal.SIGKILL:
            for child in children:
                os.kill(int(child), signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
    was_killed = signum == signal.SIGKILL
    assert process.returncode == (-signum if was_killed else 130)
    assert ("2 jobs to save at the next iteration's start" in out) != was_killed
    status = "running" if was_killed else "stopped"
    rows = summary(tmp_path / "stopped")
    assert [row["status"] for row in rows] == [status, status, "waiting"]
    saved = (
        []
        if was_killed
        else [checkpoint_files(path.parent / "checkpoints")[0].name for path in logs]
    )
    for out in ("stopped", "whole"):
        subprocess.run(command(out), cwd=tmp_path, env=environment, check=True, timeout=200)
        assert {row["status"] for row in summary(tmp_path / out)} == {"finished"}
    for seed in range(3):
        folder = f"Reacher-v4/seed{seed}"
        assert_equal(tmp_path / "stopped" / folder, tmp_path / "whole" / folder)
    for path, name in zip(logs, saved, strict=not was_killed):
        iteration = int(name[10:19])
        assert f"Resuming before iteration {iteration}, exactly" in (
            path.with_name("log.txt").read_text()
        )
