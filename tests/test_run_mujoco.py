import csv
import json
import os
import time
from pathlib import Path

import pytest
import torch

import run_mujoco
from common import cmd_util
from common.monitor import load_results
from tests.ranks import OPEN_MPI, ROOT, mpirun

COLUMNS = {
    "loss_pol_surr", "loss_pol_entpen", "loss_vf_loss", "loss_kl", "loss_ent", "ev_tdlam_before",
    "EpLenMean", "EpRewMean", "EpTrueLenMean", "EpTrueRewMean", "EpThisIter", "EpisodesSoFar",
    "TimestepsSoFar", "TimeElapsed", "TimestepsPerSec",
}  # fmt: skip


def parse(*argv):
    return cmd_util.parse_args(run_mujoco.arg_parser(), run_mujoco.PRESETS, argv)


# ---- Flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, numbers",
    [
        (
            "mujoco",
            "Reacher-v4 1000000 1.0 2048 0.2 0.0 10 0.0003 linear constant 64 0.99 0.95 64 2",
        ),
        (
            "humanoid",
            "Humanoid-v4 50000000 0.1 2048 0.1 0.0 10 0.0001 constant constant 64 0.99 0.95 64 2",
        ),
        (
            "robotics",
            "FetchReach-v4 1000000 1.0 2048 0.2 0.0 5 0.0003 linear constant 256 0.99 0.95 256 3",
        ),
    ],
)
def test_presets_are_baselines_numbers(preset, numbers):
    args = parse("--preset", preset)
    got = [
        args.env, args.max_timesteps, args.reward_scale, args.timesteps_per_actorbatch,
        args.clip_param, args.entcoeff, args.optim_epochs, args.optim_stepsize, args.schedule,
        args.clip_schedule, args.optim_batchsize, args.gamma, args.lam, args.hid_size,
        args.num_hid_layers,
    ]  # fmt: skip
    assert " ".join(map(str, got)) == numbers
    assert args.adam_epsilon == 1e-5
    assert not args.bootstrap_truncated


def test_mujoco_is_the_default_and_flags_beat_it():
    assert vars(parse()) == vars(parse("--preset", "mujoco"))
    changed = parse("--preset", "humanoid", "--hid_size", "8", "--env", "Hopper-v4")
    assert (changed.hid_size, changed.env, changed.clip_param) == (8, "Hopper-v4", 0.1)


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 64
    assert all(group in text for group in ("\nrun:\n", "\nalgorithm:\n", "\nnetwork:\n"))
    assert "None" not in text
    assert "units of a layer (64)" in text


# ---- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, message",
    [
        ("--timesteps-per-actorbatch 0", "--timesteps-per-actorbatch must be .* above 0, got 0"),
        ("--timesteps-per-actorbatch -5", "above 0, got -5"),
        ("--optim-batchsize 2049", "--optim-batchsize must be .*2048.* got 2049"),
        ("--optim-batchsize -1", "--optim-batchsize must be .* got -1"),
        ("--optim-epochs 0", "--optim-epochs must be .* above 0, got 0"),
        ("--optim-stepsize 0", "--optim-stepsize must be a finite number above 0, got 0"),
        ("--optim-stepsize nan", "--optim-stepsize .* got nan"),
        ("--optim-stepsize inf", "--optim-stepsize .* got inf"),
        ("--adam-epsilon -1", "--adam-epsilon must be a finite number above 0, got -1"),
        ("--clip-param 0", "--clip-param must be a finite number above 0, got 0"),
        ("--entcoeff -1", "--entcoeff must be a finite number of at least 0, got -1"),
        ("--gamma nan", "--gamma must be in \\[0, 1\\], got nan"),
        ("--lam 1.5", "--lam must be in \\[0, 1\\], got 1.5"),
        ("--hid-size 0", "--hid-size: need a whole number above 0, got '0'"),
        ("--num-hid-layers -2", "--num-hid-layers: need a whole number above 0, got '-2'"),
        ("--reward-scale -1", "--reward-scale: need a number above 0, got '-1'"),
        ("--preset robot", "--preset: invalid choice: 'robot' .*mujoco.*humanoid.*robotics"),
        ("--env Hoper-v4", "unknown environment 'Hoper-v4'; did you mean Hopper-v4"),
        ("--preset robotics --env Hopper-v4", "'Hopper-v4' has no goals"),
        ("--env tests.envs:toy/sequence-v0", "unsupported observation space Sequence"),
        ("--env tests.envs:toy/dict-action-v0", "unsupported action space Dict"),
        ("--env tests.envs:toy/box2d-action-v0", "unsupported action space Box"),
        ("--env tests.envs:toy/buggy-v0", "KeyError: 'gravity' \\(.*envs.py, line "),
        ("--log-path file/logs", "cannot write logs: Not a directory: "),
        ("--device gpu", "--device gpu: need cpu, cuda or cuda:N"),
        pytest.param(
            "--device cuda",
            "--device cuda: PyTorch sees no CUDA GPU on this machine",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_bad_input_gets_one_line(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(command.split())
    assert leave.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)
    assert os.listdir() == ["file"]


def check_refusal(done, message, seconds, folder):
    """Check that a whole job ended with one message, soon, and left nothing in its folder."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert seconds < 20  # 2 or 3 on an idle machine
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    if not OPEN_MPI:  # whose mpirun adds a paragraph of its own
        assert done.stderr.splitlines() == errors
    assert [path.name for path in folder.iterdir() if path.name != "blocked"] == []


@pytest.mark.parametrize(
    "module, command, message",
    [
        ("mujoco", "--env Hopper-v4", "'Hopper-v4': MuJoCo is not installed, run `pip install \""),
        pytest.param(
            "gymnasium_robotics",
            "--preset robotics",
            "'FetchReach-v4': module 'gymnasium_robotics' is missing: pip install gymnasium-robot",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_missing_package_is_named(module, command, message, tmp_path):
    done, seconds = run_without(module, "run_mujoco.py", *command.split(), folder=tmp_path)
    check_refusal(done, message, seconds, tmp_path)


def run_without(module, script, *command, folder, nprocs=0):
    """Run a script where `module` cannot be imported; return the process and its seconds."""
    blocked = folder / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(f"import sys; sys.modules[{module!r}] = None\n")
    start = time.time()
    path = os.pathsep.join([str(blocked), str(ROOT)])
    done = mpirun(nprocs, str(ROOT / script), *command, cwd=folder, PYTHONPATH=path)
    return done, time.time() - start


@pytest.mark.mpi
@pytest.mark.parametrize(
    "command, message",
    [
        ("--env Hoper-v4", "unknown environment 'Hoper-v4'; did you mean Hopper-v4"),
        pytest.param(
            "--gamma abc", "argument --gamma: invalid float value: 'abc'", marks=pytest.mark.slow
        ),
    ],
)
def test_bad_input_ends_the_whole_job(command, message, tmp_path):
    start = time.time()
    done = mpirun(2, str(ROOT / "run_mujoco.py"), *command.split(), cwd=tmp_path)
    check_refusal(done, message, time.time() - start, tmp_path)


# ---- Faults during a run ------------------------------------------------------------------------


def processes_that_name(text):
    """Return the command lines of this machine's processes that hold `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if text in command:
            found.append(command)
    return found


@pytest.mark.mpi
@pytest.mark.parametrize(
    "fault, speaker, cause",
    [
        pytest.param("raises", 1, "RuntimeError: the robot fell", marks=pytest.mark.slow),
        ("exits", 1, "RuntimeError: training was left by sys.exit\\(0\\)"),
        ("nan-reward", 1, "FloatingPointError: .*reward nan at step 30"),
        pytest.param(
            "nan-observation",
            1,
            "FloatingPointError: .*observation.*component .* = nan at step 31",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "wrong-shape",
            1,
            "ValueError: .* an observation of shape \\(2,\\), but the space says \\(1,\\)",
            marks=pytest.mark.slow,
        ),
        ("huge-reward", 0, "CollectiveError: the gradient is not finite \\(from rank 1\\)"),
    ],
)
def test_a_fault_on_one_rank_ends_the_job(fault, speaker, cause, tmp_path):
    done = mpirun(
        2, str(ROOT / "run_mujoco.py"), "--env", f"tests.envs:toy/{fault}-v0", "--max-iters", "99",
        "--schedule", "constant", "--timesteps-per-actorbatch", "64", "--optim-batchsize", "32",
        "--optim-epochs", "1", "--log-path", str(tmp_path / "logs"), cwd=tmp_path,
    )  # fmt: skip
    seconds_since = time.time() - float((tmp_path / "fault").read_text())
    assert seconds_since < 10
    assert done.returncode == 1
    while processes_that_name(str(tmp_path)):  # being killed, they may outlive mpirun for a moment
        assert seconds_since < 10
        time.sleep(0.1)
        seconds_since += 0.1
    assert done.stderr.count("rank 0 of 2: ") + done.stderr.count("rank 1 of 2: ") == 1
    assert f"rank {speaker} of 2: Traceback" in done.stderr
    if fault != "exits":
        where = "in iteration 1\n" if fault == "huge-reward" else "in iteration 1 on rank 1\n"
        assert where in done.stderr  # iterations of 64 steps each, from 0
    with pytest.raises(ValueError, match=cause):
        raise ValueError(done.stderr)


# ---- Whole runs ---------------------------------------------------------------------------------


@pytest.mark.mpi
def test_training_on_two_ranks(tmp_path):
    done = mpirun(
        2, "-W", "error", str(ROOT / "run_mujoco.py"), "--env", "Hopper-v4", "--seed", "1",
        "--num-timesteps", "3000", "--timesteps-per-actorbatch", "512", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = tmp_path.glob("runs/Hopper-v4__ppo1__1__*")
    first, second, third, fourth, *_, last = done.stdout.splitlines()
    assert first == f"Logging to {folder}"
    assert second == "ppo1 on Hopper-v4, preset mujoco, 2 ranks, seed 1"
    assert third.startswith("python 3")
    assert "Iteration 0" in fourth
    assert last == f"Logged to {folder}"

    with open(folder / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == COLUMNS
    steps = [float(row["TimestepsSoFar"]) for row in rows]
    assert steps[-2] < 3000 <= steps[-1]
    assert done.stdout.count("Iteration ") == len(rows)
    config = json.loads((folder / "config.json").read_text())
    assert config["ranks"] == 2
    want = vars(
        parse("--env", "Hopper-v4", "--seed", "1", "--num-timesteps", "3000",
              "--timesteps-per-actorbatch", "512", "--log-path", str(folder))
    )  # fmt: skip
    del want["checkpoint"], want["loaded"]  # which are no arguments
    assert config["arguments"] == want | {"given_env": "Hopper-v4"}
    episodes = load_results(folder)
    assert len(episodes) == float(rows[-1]["EpisodesSoFar"])
    assert episodes["l"].sum() == steps[-1]
    assert {path.name for path in folder.iterdir()} == {
        "0.monitor.csv", "1.monitor.csv", "config.json", "log.txt", "log-rank001.txt",
        "progress.csv", "checkpoints", ".lock",
    }  # fmt: skip
    assert (folder / "log.txt").read_text() == done.stdout


@pytest.mark.parametrize(
    "preset, env", [("humanoid", "Humanoid-v4"), ("robotics", "FetchReach-v4")]
)
def test_an_iteration_of_the_other_presets(preset, env, tmp_path, capsys):
    run_mujoco.main(
        ["--preset", preset, "--max-iters", "1", "--schedule", "constant", "--optim-epochs", "1",
         "--timesteps-per-actorbatch", "256", "--log-path", str(tmp_path)]
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert f"ppo1 on {env}, preset {preset}, 1 rank, seed " in out
    assert err == ""
    with open(tmp_path / "progress.csv") as file:
        (row,) = csv.DictReader(file)
    episodes = load_results(tmp_path)
    assert ("is_success" in episodes) == (preset == "robotics")
    assert float(row["EpTrueRewMean"]) == pytest.approx(episodes["r"].mean(), abs=1e-6)  # rounded
    scale = 0.1 if preset == "humanoid" else 1.0
    assert float(row["EpRewMean"]) == pytest.approx(scale * float(row["EpTrueRewMean"]))


def test_any_registered_environment_runs(tmp_path):
    run_mujoco.main(
        ["--env", "tests.envs:toy/dict-v0", "--num-timesteps", "100", "--optim-batchsize", "32",
         "--timesteps-per-actorbatch", "64", "--log-path", str(tmp_path), "--log-format", "csv"]
    )  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["arguments"]["env"] == (
        "tests.envs:toy/dict-v0"
    )
    assert (tmp_path / "progress.csv").read_text().count("\n") == 3
