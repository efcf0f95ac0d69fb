"""Training on several ranks from Python: as cells of a notebook, or as it is.

python examples/from_python.py
"""

# %% Imports
import sys
from pathlib import Path

import gymnasium as gym
from mpi4py import MPI

if "__file__" in globals():
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # not needed once installed

from common import logger
from common.cmd_util import make_mujoco_env
from common.launch import run
from ppo1 import pposgd_simple
from ppo1.mlp_policy import MlpPolicy

# %% What each rank does; it goes to the ranks with all that it refers to, such as `timesteps`
timesteps = 40_000


def train():
    """Return the trained policy, and the mean return at the start of each iteration."""
    returns = []
    logger.set_level(logger.DISABLED)  # no tables

    def callback(local, _):
        if local["rewbuffer"]:
            returns.append(sum(local["rewbuffer"]) / len(local["rewbuffer"]))
            if MPI.COMM_WORLD.Get_rank() == 0 and local["iters_so_far"] % 5 == 0:
                print(f"{local['timesteps_so_far']} steps, mean return {returns[-1]:.0f}")

    pi = pposgd_simple.learn(
        make_mujoco_env("CartPole-v1", seed=0),  # any environment: monitored, and seeded by rank
        lambda name, ob_space, ac_space: MlpPolicy(
            name, ob_space, ac_space, hid_size=32, num_hid_layers=2
        ),
        timesteps_per_actorbatch=1024,
        clip_param=0.2,
        entcoeff=0.0,
        optim_epochs=10,
        optim_stepsize=1e-3,
        optim_batchsize=64,
        gamma=0.99,
        lam=0.95,
        max_timesteps=timesteps,
        schedule="linear",
        callback=callback,
    )
    return pi, returns


# %% Train on 2 ranks, and keep what the first returns
(pi, returns), _ = run(train, nprocs=2)

# %% Play an episode
env = gym.make("CartPole-v1")
ob, _ = env.reset(seed=1)
steps, over = 0, False
while not over:
    ac, _ = pi.act(False, ob)
    ob, _, terminated, truncated, _ = env.step(ac)
    steps, over = steps + 1, terminated or truncated
print(f"the policy holds the pole for {steps} steps of 500")
