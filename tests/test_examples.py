"""The examples do what they show."""

import csv
import runpy
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from common import logger
from tests.ranks import ROOT, mpirun, rank_environment

EXAMPLES = ROOT / "examples"


def test_an_environment_of_ones_own(tmp_path):
    env = gym.make("examples.custom_env:Catch-v0", disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    rewards = [env.step(1)[1] for _ in range(6)]
    assert rewards[:5] == [0.0] * 5
    assert abs(rewards[5]) == 1.0
    done = mpirun(
        0, str(ROOT / "run_mujoco.py"), "--env", "examples.custom_env:Catch-v0", "--seed", "0",
        "--num-timesteps", "3000", "--timesteps-per-actorbatch", "1024", "--log-path", "run",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "run" / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert {float(row["EpLenMean"]) for row in rows} == {6.0}
    assert float(rows[-1]["EpTrueRewMean"]) > float(rows[0]["EpTrueRewMean"])


@pytest.mark.slow
def test_a_policy_of_ones_own_learns():
    logger.set_level(logger.DISABLED)
    names = runpy.run_path(str(EXAMPLES / "custom_policy.py"))
    pi = names["train"](max_timesteps=5_000)
    env = gym.make("CartPole-v1")
    steps = [episode(pi, env, seed) for seed in range(10)]
    assert np.mean(steps) > 30  # a random policy's are 22


def episode(pi, env, seed):
    ob, _ = env.reset(seed=seed)
    for step in range(1, 501):
        ob, _, terminated, truncated, _ = env.step(pi.act(False, ob)[0])
        if terminated or truncated:
            return step


@pytest.mark.slow
@pytest.mark.mpi
def test_training_from_python(tmp_path):
    program = (EXAMPLES / "from_python.py").read_text()
    short = program.replace("timesteps = 40_000", "timesteps = 10_000")
    assert short != program
    (tmp_path / "short.py").write_text(short)
    done = subprocess.run(
        [sys.executable, "-W", "error", "short.py"], cwd=tmp_path, env=rank_environment(),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *training, last = done.stdout.splitlines()
    assert training
    assert all(line.split(" steps, mean return ")[0].isdigit() for line in training)
    assert int(last.split()[-4]) > 22
