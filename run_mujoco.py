#!/usr/bin/env python
"""Train an MLP policy with PPO: MuJoCo, Humanoid and Robotics.

    mpirun -np 4 python run_mujoco.py --env Hopper-v4 --seed 0

Source: baselines/ppo1/run_mujoco.py, run_humanoid.py and run_robotics.py @ ea25b9e.
"""

import faulthandler
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a rank; must precede NumPy
if __name__ == "__main__":  # imports or MPI_Init may hang; `run` has a watchdog for all the rest
    faulthandler.dump_traceback_later(600, exit=True, file=2)

import argparse
from collections.abc import Sequence

import gymnasium as gym

import ppo1  # noqa: F401  # first: it checks that `common` is its own
from common import cmd_util
from common.leftovers import ending_what_is_left
from common.mpi import MPI
from common.mpi_util import offset_seed
from common.run import run
from ppo1 import pposgd_simple
from ppo1.hyperparameters import HYPERPARAMETERS, check_hyperparameters
from ppo1.learner_state import learner_state
from ppo1.mlp_policy import MlpPolicy

PRESETS = {
    # run_mujoco.py; the numbers of the PPO paper's Table 3
    "mujoco": dict(
        env="Reacher-v4", num_timesteps=1e6, reward_scale=1.0, hid_size=64, num_hid_layers=2,
        timesteps_per_actorbatch=2048, clip_param=0.2, entcoeff=0.0, optim_epochs=10,
        optim_stepsize=3e-4, optim_batchsize=64, gamma=0.99, lam=0.95, schedule="linear",
        clip_schedule="constant",
    ),
    # run_humanoid.py, meant for 16 ranks
    "humanoid": dict(
        env="Humanoid-v4", num_timesteps=5e7, reward_scale=0.1, hid_size=64, num_hid_layers=2,
        timesteps_per_actorbatch=2048, clip_param=0.1, entcoeff=0.0, optim_epochs=10,
        optim_stepsize=1e-4, optim_batchsize=64, gamma=0.99, lam=0.95, schedule="constant",
        clip_schedule="constant",
    ),
    # run_robotics.py
    "robotics": dict(
        env="FetchReach-v4", num_timesteps=1e6, reward_scale=1.0, hid_size=256, num_hid_layers=3,
        timesteps_per_actorbatch=2048, clip_param=0.2, entcoeff=0.0, optim_epochs=5,
        optim_stepsize=3e-4, optim_batchsize=256, gamma=0.99, lam=0.95, schedule="linear",
        clip_schedule="constant",
    ),
}  # fmt: skip


def arg_parser() -> cmd_util.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = cmd_util.mujoco_arg_parser()
    cmd_util.add_ppo_flags(parser, PRESETS)
    network = parser.add_argument_group("network")
    network.add_argument("--hid-size", type=cmd_util.positive_whole_number, metavar="N",
                         help="units of a layer")  # fmt: skip
    network.add_argument("--num-hid-layers", type=cmd_util.positive_whole_number, metavar="N",
                         help="hidden layers")  # fmt: skip
    return parser


def make_env(args: argparse.Namespace, seed: int | None, render_mode: str | None = None) -> gym.Env:
    """Return this rank's environment, seeding this rank by the job's `seed`; None seeds nothing."""
    options = {**cmd_util.env_options(args), "render_mode": render_mode}
    if args.preset == "robotics":
        rank = MPI.COMM_WORLD.Get_rank()
        seed = offset_seed(seed, rank=rank, stride=10000)
        env = cmd_util.make_robotics_env(args.env, seed, rank=rank, **options)
        return cmd_util.scale_rewards(env, args.reward_scale)
    return cmd_util.make_mujoco_env(args.env, seed, args.reward_scale, **options)


def make_policy(
    args: argparse.Namespace, name: str, ob_space: gym.Space, ac_space: gym.Space
) -> MlpPolicy:
    """Return a policy with fresh weights."""
    return MlpPolicy(
        name, ob_space, ac_space, hid_size=args.hid_size, num_hid_layers=args.num_hid_layers
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line `argv` says; None is the process's own."""
    run(
        arg_parser(),
        PRESETS,
        argv,
        title="ppo1",
        resolve_id=cmd_util.resolve_env_id,
        make_env=make_env,
        make_policy=make_policy,
        learn=pposgd_simple.learn,
        hyperparameters=HYPERPARAMETERS,
        check_hyperparameters=check_hyperparameters,
        learner_state=learner_state,
    )


if __name__ == "__main__":
    with ending_what_is_left():
        main()
