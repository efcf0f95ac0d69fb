import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mpi4py import MPI
from PIL import Image, ImageSequence

import ppo1
import run_atari
import run_mujoco
from common import cmd_util, play
from common.cmd_util import make_mujoco_env
from common.play import evaluate, record
from ppo1.cnn_policy import CnnPolicy
from ppo1.mlp_policy import MlpPolicy
from tests.envs import Countdown
from tests.ranks import ROOT, mpirun, on_ranks, rank_environment

ATARI = argparse.Namespace(env="BreakoutNoFrameskip-v4", clip_rewards=True, frame_stack=4)


def mlp(env):
    return MlpPolicy("pi", env.observation_space, env.action_space, hid_size=8, num_hid_layers=1)


def atari(render_mode=None):
    """Return an environment of cut lives and clipped rewards, and a policy."""
    env = run_atari.make_env(ATARI, None, render_mode)
    return env, CnnPolicy("pi", env.observation_space, env.action_space, kind="small")


# ---- Evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_evaluation_equals_a_loop_by_hand(deterministic):
    env = make_mujoco_env("Hopper-v4", None, reward_scale=0.1)
    pi = mlp(env)
    results = evaluate(pi, env, 3, seed=5, deterministic=deterministic)
    plain = env.unwrapped
    for number in range(3):
        pi.rng = np.random.default_rng([1, 5 + number])
        ob, _ = plain.reset(seed=5 + number)
        returned, length, over = 0.0, 0, False
        while not over:
            ob, reward, over, _, _ = plain.step(pi.act(not deterministic, ob)[0])
            returned, length = returned + reward, length + 1
        assert (results.returns[number], results.lengths[number]) == (returned, length)
    assert len(set(results.returns)) == 3


@pytest.mark.parametrize("name", ["pol/final/bias", "obfilter/count"])
def test_a_policy_that_is_not_finite_is_not_evaluated(name):
    env = Countdown(3)
    pi = mlp(env)
    pi.get_parameter("vf/final/bias").data.fill_(1.0)
    variables = {**pi._statistics(), **dict(pi.named_parameters())}
    variables[name].data.fill_(np.nan)
    with pytest.raises(FloatingPointError, match=f"variable {name} holds numbers that are not fin"):
        evaluate(pi, env, 1)
    assert env.episodes == 0


@pytest.mark.parametrize("culprit", ["observation", "policy"])
def test_a_value_that_is_not_finite_ends_an_evaluation(culprit):
    faults = {1: lambda ob, reward: (ob * np.nan, reward)} if culprit == "observation" else {}
    env = Countdown(3, faults=faults)
    pi = mlp(env)
    if culprit == "policy":
        pi.preprocess = lambda ob: MlpPolicy.preprocess(pi, ob) + (np.nan if ob < 2 else 0)
    message = f"the predicted value is nan at step 2 of .* seed 5: the {culprit} is at fault"
    with pytest.raises(FloatingPointError, match=message):
        evaluate(pi, env, 1, seed=5)


@pytest.mark.slow
def test_a_game_is_whole_and_its_rewards_raw():
    env, pi = atari()
    (returned,), (length,) = evaluate(pi, env, 1, seed=1, deterministic=False)
    pi.rng = np.random.default_rng([1, 1])
    env, lives, rewards, steps = atari()[0], 0, [], 0
    game = env.unwrapped
    step = game.step
    game.step = lambda action: (out := step(action), rewards.append(out[1]))[0]
    ob, _ = env.reset(seed=1)
    del rewards[:]
    while game.ale.lives() > 0:
        ob, _, terminated, _, _ = env.step(pi.act(True, ob)[0])
        steps += 1
        if terminated:
            lives += 1
            if game.ale.lives() > 0:
                ob, _ = env.reset()
    assert lives == 5
    assert returned == sum(rewards)
    assert steps <= length <= steps + 3 * lives  # Monitor counts what begins a life, too


def evaluate_on_ranks(_):
    env = make_mujoco_env("Hopper-v4", None)
    np.random.seed(0)  # the same policy on all ranks
    pi = mlp(env)
    rng = pi.rng
    results = evaluate(pi, env, 5, seed=2**32 - 2, deterministic=False)
    assert pi.rng is rng
    return results


@pytest.mark.slow
@pytest.mark.mpi
def test_an_evaluation_does_not_depend_on_the_ranks():
    alone = evaluate_on_ranks(None)
    assert len(set(alone.returns)) == 5
    assert on_ranks(2, evaluate_on_ranks) == [alone] * 2


def test_an_environment_without_a_monitor():
    env = Countdown(3, 5, 7, truncate=True)
    results = evaluate(mlp(env), env, 3)
    assert results == ([3.0, 5.0, 7.0], [3, 5, 7])
    summary = results.summary()
    assert summary["length"] == {
        "mean": 5.0, "standard_error": pytest.approx(2 / 3**0.5), "min": 3, "max": 7,
    }  # fmt: skip
    header, _, first, second = results.table().splitlines()
    assert header.split(" | ")[1:] == [
        name.rjust(14) for name in ("mean", "standard error", "min", "max")
    ]
    assert first.split() == ["return", "|", "5", "|", "1.1547", "|", "3", "|", "7"]
    assert second.split()[0] == "length"
    assert play.Evaluation([1.0], [1]).summary()["return"]["standard_error"] is None
    assert play.Evaluation([1.0], [1]).table().splitlines()[2].split()[4] == "-"


def test_an_episode_is_the_same_in_any_order():
    env = make_mujoco_env("tests.envs:toy/drawing-v0", None)
    pi = mlp(env)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    results = evaluate(pi, env, 4, seed=2**32 - 2, deterministic=False).returns
    assert len(set(results)) == 4
    for number in (3, 1, 0, 2):
        options = {"seed": 2**32 - 2 + number, "deterministic": False}
        assert play.play_episode(pi, env, **options)[0] == results[number]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


def evaluate_on_ranks_what_does_not_end(_):
    """Return the error of each rank: only the last rank's episodes are endless."""
    rank = MPI.COMM_WORLD.Get_rank()
    env = Countdown(3, 10**9 if rank == MPI.COMM_WORLD.Get_size() - 1 else 3)
    play.MAX_EVALUATION_STEPS = 50
    with pytest.raises(play.EndlessEpisode) as error:
        evaluate(mlp(env), env, 6, seed=7)
    return str(error.value)


def test_an_episode_that_does_not_end_ends_the_evaluation(monkeypatch):
    monkeypatch.setattr(play, "MAX_EVALUATION_STEPS", 50)
    message = evaluate_on_ranks_what_does_not_end(None)
    assert message == (
        "episode 1, from seed 8, has not ended after 50 steps: limit episodes by "
        "--max-episode-steps N"
    )


@pytest.mark.slow
@pytest.mark.mpi
def test_an_episode_that_does_not_end_on_one_rank_is_named_by_all():
    messages = on_ranks(2, evaluate_on_ranks_what_does_not_end)
    assert messages[0] == messages[1]
    assert "episode 3, from seed 10, has not ended after 50 steps" in messages[0]


def test_a_longer_limit_of_the_environments_own_counts(monkeypatch):
    monkeypatch.setattr(play, "MAX_EVALUATION_STEPS", 50)
    env = make_mujoco_env("tests.envs:toy/endless-v0", None, max_episode_steps=60)
    assert evaluate(mlp(env), env, 2) == ([60.0, 60.0], [60, 60])


# ---- Videos -------------------------------------------------------------------------------------


class Painted(Countdown):
    """A Countdown that can be seen: each frame has a gray of its own."""

    metadata = {"render_fps": 30}
    render_mode = "rgb_array"

    def render(self):
        return np.full((32, 48, 3), 250 - 10 * self.left, np.uint8)


def frames_of(path):
    """Return a film's frames, read by other libraries than the one that wrote it."""
    if path.suffix == ".gif":
        with Image.open(path) as film:
            return np.stack([np.asarray(x.convert("RGB")) for x in ImageSequence.Iterator(film)])
    film, frames = cv2.VideoCapture(str(path)), []
    while (frame := film.read()[1]) is not None:
        frames.append(frame)
    return np.stack(frames)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize("fps, stride", [(30, 1), (125, 3)])
def test_a_video_decoded_again(suffix, fps, stride, tmp_path, monkeypatch):
    monkeypatch.setitem(Painted.metadata, "render_fps", fps)
    path = tmp_path / "new" / f"film{suffix}"
    env = Painted(9, 4)
    assert record(mlp(env), env, path) == -(-10 // stride)
    frames = frames_of(path)
    assert frames.shape == (-(-10 // stride), 32, 48, 3)
    grays = 250 - 10 * np.arange(9, -1, -1)[::stride]
    assert np.abs(frames.mean(axis=(1, 2, 3)) - grays).max() < 3  # what compression costs
    assert list(path.parent.iterdir()) == [path]


def test_a_video_of_a_number_of_steps_goes_on_over_episodes(tmp_path):
    env = Painted(4)
    assert record(mlp(env), env, tmp_path / "film.mp4", steps=10) == 3 + 10  # 3 begin
    assert len(frames_of(tmp_path / "film.mp4")) == 13


def test_a_video_that_fails_leaves_nothing(tmp_path):
    def fail(ob, reward):
        raise RuntimeError("the robot fell off the table")

    env = Painted(9, faults={3: fail})
    with pytest.raises(RuntimeError, match="fell off"):
        record(mlp(env), env, tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_a_game_has_all_its_frames(tmp_path):
    env, pi = atari("rgb_array")
    count = record(pi, env, tmp_path / "film.mp4", steps=5, deterministic=False)
    frames = frames_of(tmp_path / "film.mp4")
    # A reset's frame, 1 to 30 no-ops, two actions that begin the game, and five steps, of 4 each
    assert len(frames) == count
    assert 1 + 1 + 4 * (2 + 5) <= count <= 1 + 30 + 4 * (2 + 5)
    assert frames.shape[1:] == (210, 160, 3)
    assert frames[-1].mean() > 10


# ---- The command line ---------------------------------------------------------------------------


TINY = ["--env", "InvertedPendulum-v4", "--hid-size", "8", "--max-iters", "1", "--seed", "3"]
TINY += ["--schedule", "constant", "--timesteps-per-actorbatch", "64", "--optim-batchsize", "32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a run and the policy that it saved."""
    folder = tmp_path_factory.mktemp("trained")
    run_mujoco.main([*TINY, "--log-path", str(folder / "run"), "--save-path",
                     str(folder / "policy"), "--evaluate", "3"])  # fmt: skip
    return folder


def test_the_folder_comes_first_and_last(tmp_path, capsys):
    run_mujoco.main([*TINY, "--log-path", str(tmp_path), "--evaluate", "1"])
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert (first, last) == (f"Logging to {tmp_path}", f"Logged to {tmp_path}")
    assert lines[-1] == f"Wrote {tmp_path}/evaluation.json"
    assert last not in lines


def test_results_that_cannot_be_written_cost_the_exit_code_alone(tmp_path, capsys, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(play, "write_evaluation", fail)
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main([*TINY, "--log-path", str(tmp_path / "run"), "--evaluate", "1",
                         "--save-path", str(tmp_path / "policy")])  # fmt: skip
    assert leave.value.code == 1
    out = capsys.readouterr().out
    assert "standard error" in out  # the table
    assert "evaluation.json was not written: [Errno 28] No space left on device" in out
    assert out.endswith(f"Logged to {tmp_path}/run\n")
    assert (tmp_path / "policy").exists()


def test_training_then_evaluating_is_evaluating_the_run_or_its_policy(trained, tmp_path, capsys):
    want = json.loads((trained / "run" / "evaluation.json").read_text())
    assert (want["env"], want["seed"], want["policy"]) == ("InvertedPendulum-v4", 3, None)
    assert len(want["returns"]) == len(want["lengths"]) == want["episodes"] == 3
    assert want["return"]["mean"] == np.mean(want["returns"])
    assert (trained / "run" / "0.monitor.csv").read_text().count("\n") > 2 + 3
    files = sorted(path.name for path in trained.rglob("*"))
    for source in ("run", "policy"):
        path = tmp_path / f"{source}.json"
        run_mujoco.main(["--load-path", str(trained / source), "--seed", "3",
                         "--evaluate", "3", "--json", str(path)])  # fmt: skip
        got = json.loads(path.read_text())
        assert got == want | {"policy": str(trained / source)}
        out = capsys.readouterr().out
        assert "3 episodes of InvertedPendulum-v4, deterministic, from seed 3" in out
        assert "Logg" not in out
    run_mujoco.main(["--load-path", str(trained / "run"), "--seed", "3", "--evaluate", "3",
                     "--log-path", str(tmp_path / "new")])  # fmt: skip
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["evaluation.json"]
    got = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert got == want | {"policy": str(trained / "run")}
    assert sorted(path.name for path in trained.rglob("*")) == files


def test_training_begins_with_a_loaded_policy(trained, tmp_path, capsys):
    run_mujoco.main(["--load-path", str(trained / "policy"), "--num-timesteps", "0",
                     "--save-path", str(tmp_path / "again")])  # fmt: skip
    one, two = (ppo1.load_policy(path) for path in (trained / "policy", tmp_path / "again"))
    np.testing.assert_equal(one.variables(), two.variables())
    run_mujoco.main([*TINY, "--load-path", str(trained / "policy"), "--optim-stepsize", "1e-9",
                     "--log-path", str(tmp_path / "run")])  # fmt: skip
    three = ppo1.load_policy(tmp_path / "run").variables()
    count = one.variables()["obfilter/count"]
    assert three["obfilter/count"] == pytest.approx(count + 64)
    np.testing.assert_allclose(three["pol/fc1/kernel"], one.variables()["pol/fc1/kernel"], 0, 1e-6)
    assert (tmp_path / "run" / "progress.csv").exists()


BAD = {
    "--load-path nowhere --play": f"cannot read policy {ROOT}/nowhere: No such file or directory",
    "--load-path setup.py": "setup.py is neither a policy nor variables: no such format is known",
    "--load-path {policy} --env Hopper-v4": "for observations Box(4,), this environment's are Box(",
    "--load-path {policy} --hid-size 9": "does not fit: cannot load these variables: vf/fc1/kernel",
    "--load-path {run} --hid-size 9": "does not fit: the saved network has",
    "--play": "--play needs a display, and DISPLAY is not set; --video needs none",
    "--load-path {policy} --play": "--play needs a display",
    "--video film.avi": f"--video {ROOT}/film.avi: need a name that ends in .mp4 or .gif",
    "--video setup.py/film.mp4": f"cannot write {ROOT}/setup.py/film.mp4: Not a directory",
    "--video /proc/film.mp4": "cannot write /proc/film.mp4: No such file or directory",
    "--save-path tests": f"cannot write {ROOT}/tests: Is a directory",
    "--json there": "--json is where the results of --evaluate go: give that, too",
    "--video-steps 3": "--video-steps is for --video: give that, too",
    "--evaluate 0": "argument --evaluate: need a whole number above 0, got '0'",
    "--env tests.envs:toy/raises-v0 --video film.mp4": "does not render: ",
    "--load-path {policy} --env InvertedDoublePendulum-v4 --evaluate 1": (
        "is a policy of InvertedPendulum-v4, not of InvertedDoublePendulum-v4: it can be trained"
    ),
    "--load-path {policy} --preset humanoid --max-iters 1": (
        "is a policy of InvertedPendulum-v4, preset mujoco: with --preset humanoid, give --env"
    ),
    "--load-path {policy} --evaluate 1 --log-path setup.py": (
        f"cannot write {ROOT}/setup.py/evaluation.json: Not a directory"
    ),
}


def test_what_was_learned_stays_when_an_evaluation_does_not_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(play, "MAX_EVALUATION_STEPS", 50)
    endless = ["--env", "tests.envs:toy/endless-v0", "--log-path", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main([*TINY, *endless, "--evaluate", "2", "--save-path", str(tmp_path / "p")])
    assert leave.value.code == 1
    out = capsys.readouterr().out
    assert "WARNING: no evaluation of tests.envs:toy/endless-v0: episode 0, from seed 3," in out
    assert out.endswith(f"Logged to {tmp_path}/run\n")
    assert not (tmp_path / "run" / "evaluation.json").exists()
    ppo1.load_policy(tmp_path / "p")
    command = ["--load-path", str(tmp_path / "p"), *endless[:2], "--evaluate", "2"]
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(command)
    assert leave.value.code == 1
    run_mujoco.main([*command, "--max-episode-steps", "7", "--json", str(tmp_path / "json")])
    assert json.loads((tmp_path / "json").read_text())["lengths"] == [7, 7]


def test_a_policy_brings_along_how_its_environment_was_made(trained, tmp_path):
    def parse(path, *argv):
        script = run_mujoco.arg_parser(), run_mujoco.PRESETS
        return cmd_util.env_options(cmd_util.parse_args(*script, ["--load-path", str(path), *argv]))

    none = {"max_episode_steps": None, "env_kwargs": None, "clip_actions": None}
    own = {"max_episode_steps": 9, "env_kwargs": {"frame_skip": 1}, "clip_actions": True}
    given = ["--max-episode-steps", "9", "--env-kwargs", '{"frame_skip": 1}', "--clip-actions"]
    pendulum = [*TINY, "--env", "InvertedPendulum-v5"]
    run_mujoco.main([*pendulum, *given, "--log-path", str(tmp_path / "run"), "--save-path",
                     str(tmp_path / "policy"), "--evaluate", "1"])  # fmt: skip
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["lengths"] == [9]
    config = json.loads((tmp_path / "run" / "config.json").read_text())["arguments"]
    assert {name: config[name] for name in own} == own
    for path in (tmp_path / "run", tmp_path / "policy"):
        assert parse(path) == parse(path, "--env", "InvertedPendulum-v4") == own
        assert parse(path, "--env", "Hopper-v4") == none  # has arguments of its own
        assert parse(path, "--no-clip-actions")["clip_actions"] is False
    assert parse(trained / "policy") == none


@pytest.mark.parametrize("command", BAD)
def test_bad_input_ends_before_training(command, trained, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    before = set(ROOT.iterdir())
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(command.format(policy=trained / "policy", run=trained / "run").split())
    out, err = capsys.readouterr()
    assert (leave.value.code, out, err.count("\n")) == (2, "", 1)
    assert BAD[command] in err
    assert set(ROOT.iterdir()) == before


def test_another_version_is_the_same_environment(trained, capsys):
    run_mujoco.main(["--load-path", str(trained / "policy"), "--env", "InvertedPendulum-v5",
                     "--evaluate", "1"])  # fmt: skip
    assert "of InvertedPendulum-v5, deterministic" in capsys.readouterr().out


def test_another_preset_beats_the_policys_where_an_environment_is_given(trained):
    args = cmd_util.parse_args(
        run_mujoco.arg_parser(), run_mujoco.PRESETS,
        ["--load-path", str(trained / "policy"), "--preset", "humanoid", "--env", "Ant-v4"],
    )  # fmt: skip
    assert (args.env, args.preset, args.clip_param, args.hid_size) == ("Ant-v4", "humanoid", 0.1, 8)


def test_a_file_has_no_package_imported(tmp_path, monkeypatch, capsys):
    env = make_mujoco_env("CartPole-v1", None)
    ppo1.save_policy(tmp_path / "policy", mlp(env), env_id="evil_module:CartPole-v1")
    (tmp_path / "evil_module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    command = ["--load-path", str(tmp_path / "policy"), "--hid-size", "8", "--num-hid-layers", "1",
               "--evaluate", "1"]  # fmt: skip
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(command)
    assert leave.value.code == 2
    want = "a policy of evil_module:CartPole-v1: give --env evil_module:CartPole-v1"
    assert want in capsys.readouterr().err
    assert "evil_module" not in sys.modules
    run_mujoco.main([*command, "--env", "evil_module:CartPole-v1"])
    assert sys.modules.pop("evil_module")


def test_an_environment_without_a_window_is_refused_before_training(monkeypatch, capsys):
    monkeypatch.setattr(play, "check_display", lambda: None)
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(["--env", "tests.envs:toy/raises-v0", "--play"])
    assert leave.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--play: tests.envs:toy/raises-v0 has no window: " in err


def test_a_policy_of_the_other_script(trained, capsys):
    with pytest.raises(SystemExit) as leave:
        run_atari.main(["--load-path", str(trained / "policy")])
    assert leave.value.code == 2
    assert "a policy of preset 'mujoco', which this script does not know" in capsys.readouterr().err


def test_a_display_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setenv("DISPLAY", ":12345")
    with pytest.raises(ValueError, match="--play: cannot open a window on display ':12345'"):
        play.check_display()


def test_no_renderer_at_all(monkeypatch):
    monkeypatch.setattr(play, "GL_TEST", "import no_such_module_as_{}")
    with pytest.raises(ValueError, match="neither by EGL nor by OSMesa .*apt-get install"):
        play.find_renderer()


def renders():
    command = [sys.executable, "-c", play.GL_TEST.format("egl")]
    env = {**os.environ, "MUJOCO_GL": "egl"}
    return subprocess.run(command, env=env, capture_output=True).returncode == 0


@pytest.mark.mpi
@pytest.mark.skipif(not renders(), reason="MuJoCo does not render by EGL here")
def test_a_robot_is_filmed_without_a_display(trained, tmp_path):
    film = tmp_path / "film.mp4"
    done = mpirun(
        2, str(ROOT / "run_mujoco.py"), "--load-path", str(trained / "policy"), "--video",
        str(film), "--video-steps", "4", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    count = int(done.stdout.split()[-2])
    assert done.stdout == f"Wrote {film}: {count} frames\n"
    frames = frames_of(film)
    assert len(frames) == count >= 5
    assert frames.shape[1:] == (480, 480, 3)
    assert frames.std() > 10
    assert [path for path in tmp_path.iterdir() if path != film] == []


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="no Xvfb here")
@pytest.mark.parametrize("env", ["InvertedPendulum-v4", "CartPole-v1"])
def test_playing_in_a_real_window(env, tmp_path):
    read, write = os.pipe()
    server = ["Xvfb", "-displayfd", str(write), "-screen", "0", "800x600x24", "-nolisten", "tcp"]
    command = [sys.executable, str(ROOT / "run_mujoco.py"), "--env", env, "--num-timesteps", "0",
               "--play", "--seed", "0"]  # fmt: skip
    with subprocess.Popen(server, pass_fds=[write], stderr=subprocess.DEVNULL) as screen:
        os.close(write)
        try:
            with open(read) as file:
                display = f":{file.readline().strip()}"
            with subprocess.Popen(
                command, cwd=tmp_path, env=rank_environment(DISPLAY=display),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ) as process:  # fmt: skip
                lines = [process.stdout.readline() for _ in range(2)]
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
        finally:
            screen.terminate()
    assert (process.returncode, lines[0]) == (0, "Playing until the window is closed, or Ctrl-C\n")
    assert lines[1].startswith("Episode 0: return ")
    assert "Error" not in err
    assert list(tmp_path.iterdir()) == []


class Window(Painted):
    """Closes its window after some steps."""

    def __init__(self, *lengths, closed_after):
        super().__init__(*lengths)
        self.closed_after = closed_after


def test_playing_ends_when_the_window_is_closed(monkeypatch, capsys):
    env = Window(4, closed_after=10)
    monkeypatch.setattr(
        play, "window_is_closed", lambda env: env.unwrapped.steps >= env.unwrapped.closed_after
    )
    play.play(mlp(env), env)
    assert capsys.readouterr().out.splitlines() == [
        "Episode 0: return 4, 4 steps", "Episode 1: return 4, 4 steps",
        "Episode 2: return 2, 2 steps",
    ]  # fmt: skip
    assert env.steps == 10


def test_files_are_found_writable_without_a_trace(tmp_path):
    play.check_writable(tmp_path / "a" / "b" / "file")
    assert list(tmp_path.iterdir()) == []
    assert Path("relative").parent == Path()
    play.check_writable(Path("relative"))


def test_the_camera_goes_with_the_robot():
    env = make_mujoco_env("Hopper-v4", None)
    play.follow_robot(env)
    renderer = env.unwrapped.mujoco_renderer
    assert env.unwrapped.model.camera(renderer.camera_id).name == "track"
    assert renderer.default_cam_config["trackbodyid"] == env.unwrapped.model.body("torso").id
    play.follow_robot(Countdown(1))  # has none
