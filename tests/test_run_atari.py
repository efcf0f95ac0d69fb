import csv
import os
from pathlib import Path

import numpy as np
import pytest

import run_atari
from common import cmd_util, logger
from common.atari_wrappers import ClipRewardEnv, FrameStack
from common.monitor import find_monitor
from tests.ranks import ROOT, mpirun
from tests.test_run_mujoco import COLUMNS, check_refusal, run_without


def parse(*argv):
    return cmd_util.parse_args(run_atari.arg_parser(), run_atari.PRESETS, argv)


# ---- Flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, numbers",
    [
        ("ppo1", "11000000 256 0.2 0.01 4 0.001 linear constant 64 0.99 0.95 large 4 False"),
        ("baselines", "11000000 256 0.2 0.01 4 0.001 linear constant 64 0.99 0.95 large 1 True"),
        ("paper", "10000000 128 0.1 0.01 3 0.00025 linear linear 32 0.99 0.95 small 4 True"),
    ],
)
def test_presets(preset, numbers):
    args = parse("--preset", preset)
    got = [
        args.max_timesteps, args.timesteps_per_actorbatch, args.clip_param, args.entcoeff,
        args.optim_epochs, args.optim_stepsize, args.schedule, args.clip_schedule,
        args.optim_batchsize, args.gamma, args.lam, args.kind, args.frame_stack,
        args.clip_rewards,
    ]  # fmt: skip
    assert " ".join(map(str, got)) == numbers
    assert (args.env, args.num_timesteps) == ("PongNoFrameskip-v4", 10_000_000)
    assert args.adam_epsilon == 1e-5


def test_ppo1_is_the_default_and_flags_beat_it():
    assert vars(parse()) == vars(parse("--preset", "ppo1"))
    assert parse("--clip_rewards").clip_rewards
    assert not parse("--preset", "paper", "--no-clip-rewards").clip_rewards
    assert parse("--num-timesteps", "1e5").max_timesteps == 110_000
    assert parse("--num-timesteps", "1e5", "--timesteps-factor", "1").max_timesteps == 100_000


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse("--help", "--preset", "paper")
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 64
    assert "None" not in text
    assert "minibatch; 0: the segment (32)" in text


# ---- The environment ----------------------------------------------------------------------------


@pytest.mark.parametrize("preset, channels, clipped", [("ppo1", 4, False), ("baselines", 1, True)])
def test_environment_of_a_preset(preset, channels, clipped, tmp_path):
    logger.configure(tmp_path, [])
    env = run_atari.make_env(parse("--preset", preset, "--env", "BreakoutNoFrameskip-v4"), 3)
    assert np.random.get_state()[1][0] == 3
    ob, _ = env.reset()
    assert (ob.shape, ob.dtype) == ((84, 84, channels), np.uint8)
    assert env.observation_space.shape == ob.shape
    chain = [env]
    while chain[-1] is not find_monitor(env):
        chain.append(chain[-1].env)
    assert any(isinstance(each, ClipRewardEnv) for each in chain) == clipped
    assert isinstance(env, FrameStack) == (channels == 4)  # last; Monitor sees the raw game
    env.close()
    assert (tmp_path / "0.monitor.csv").exists()


def test_environment_is_seeded():
    def play(seed):
        env = run_atari.make_env(parse("--env", "BreakoutNoFrameskip-v4"), seed)
        actions = [env.action_space.sample() for _ in range(30)]
        obs = [env.reset()[0], *(env.step(action)[0] for action in actions)]
        return actions, np.array(obs)

    (actions, obs), (again, obs_again), (other, _) = play(1), play(1), play(2)
    assert actions == again != other
    np.testing.assert_array_equal(obs, obs_again)


def test_a_limit_and_arguments_of_the_game():
    args = parse("--env", "BreakoutNoFrameskip-v4", "--max-episode-steps", "9",
                 "--env-kwargs", '{"full_action_space": true}')  # fmt: skip
    env = run_atari.make_env(args, 1)
    assert env.action_space.n == 18
    env.reset()
    while not (over := env.step(0)[2:4])[0] | over[1]:
        pass
    assert over == (False, True)
    assert find_monitor(env).episode_lengths == [9]  # timesteps, of four frames
    args.env_kwargs = {"lives": 9}
    with pytest.raises(ValueError, match="with --env-kwargs .*unexpected keyword argument 'lives'"):
        run_atari.make_env(args, 1)


# ---- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, message",
    [
        ("--env Pong-v4", "'Pong-v4' does not fit: .*NoFrameskip.*mean PongNoFrameskip-v4\\?"),
        ("--env ALE/Pong-v5", "did you mean PongNoFrameskip-v4\\?"),
        ("--env Pong-ramNoFrameskip-v4", "did you mean PongNoFrameskip-v4\\?"),
        ("--env Hopper-v4", "'Hopper-v4' does not fit: need an Atari game"),
        ("--env PnogNoFrameskip-v4", "did you mean PongNoFrameskip-v4"),
        ("--frame-stack 0", "--frame-stack: need a whole number above 0, got '0'"),
        ("--timesteps-factor nan", "--timesteps-factor: need a number above 0, got 'nan'"),
        ("--kind huge", "--kind: invalid choice: 'huge'"),
        ("--preset mujoco", "--preset: invalid choice: 'mujoco' .*ppo1.*baselines.*paper"),
        ("--optim-batchsize 257", "--optim-batchsize must be .*256.* got 257"),
        ("--max-iters 2", "add --schedule constant \\("),
        ("--max-iters 2 --preset paper", "add --schedule constant --clip-schedule constant \\("),
    ],
)
def test_bad_input_gets_one_line(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leave:
        run_atari.main(command.split())
    assert leave.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)
    assert os.listdir() == []


@pytest.mark.parametrize(
    "module, package, nprocs",
    [("ale_py", "ale-py", 0),
     pytest.param("cv2", "opencv-python-headless", 2, marks=[pytest.mark.mpi, pytest.mark.slow])],
)  # fmt: skip
def test_a_missing_package_is_named(module, package, nprocs, tmp_path):
    done, seconds = run_without(module, "run_atari.py", folder=tmp_path, nprocs=nprocs)
    message = f"module '{module}' is missing: pip install {package}"
    check_refusal(done, message, seconds, tmp_path)


# ---- A whole run --------------------------------------------------------------------------------


@pytest.mark.mpi
def test_training_on_two_ranks(tmp_path):
    done = mpirun(
        2, "-W", "error", str(ROOT / "run_atari.py"), "--timesteps-per-actorbatch", "64",
        "--optim-batchsize", "32", "--kind", "small", "--max-iters", "2", "--schedule", "constant",
        cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = tmp_path.glob("runs/PongNoFrameskip-v4__ppo1__*")
    seed = folder.name.split("__")[2]
    first, second, *_, last = done.stdout.splitlines()
    assert first == f"Logging to {folder}"
    assert second == f"ppo1 on PongNoFrameskip-v4, preset ppo1, 2 ranks, seed {seed}"
    assert last == f"Logged to {folder}"
    with open(folder / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert set(rows[0]) == COLUMNS | {"FramesSoFar"}
    first, second = (int(row["FramesSoFar"]) for row in rows)
    assert second - first == 2 * 64 * 4  # of two ranks, in mid-game
    assert 2 <= first - 2 * 64 * 4 <= 2 * (30 + 2 * 4)  # and no-ops and FIRE at the start
    for name in ("0.monitor.csv", "1.monitor.csv"):
        header, columns = Path(folder, name).read_text().splitlines()
        assert "PongNoFrameskip-v4" in header
        assert columns == "r,l,t"
