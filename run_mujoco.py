#!/usr/bin/env python
"""Train an MLP policy with PPO: MuJoCo, Humanoid and Robotics.

    mpirun -np 4 python run_mujoco.py --env Hopper-v4 --seed 0

Source: baselines/ppo1/run_mujoco.py, run_humanoid.py and run_robotics.py @ ea25b9e.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a rank; must precede NumPy

import argparse
from collections.abc import Sequence

import gymnasium as gym
import torch
from mpi4py import MPI

from common import cmd_util, logger
from common.mpi_util import abort_job_on_error, offset_seed
from ppo1 import pposgd_simple
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
    cmd_util.add_ppo_flags(parser)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--hid-size", type=cmd_util.whole_number, metavar="N", help="units a layer"
    )
    network.add_argument("--num-hid-layers", type=cmd_util.whole_number, metavar="N",
                         help="hidden layers")  # fmt: skip
    return parser


def make_env(args: argparse.Namespace, seed: int | None) -> gym.Env:
    """Return this rank's environment, seeding this rank by the job's `seed`; None seeds nothing."""
    if args.preset == "robotics":
        rank = MPI.COMM_WORLD.Get_rank()
        return cmd_util.make_robotics_env(
            args.env, offset_seed(seed, rank=rank, stride=10000), rank=rank
        )
    return cmd_util.make_mujoco_env(args.env, seed, args.reward_scale)


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line `argv` says; None is the process's own."""
    with abort_job_on_error():
        torch.set_num_threads(1)
        parser = arg_parser()
        args = cmd_util.parse_args(parser, PRESETS, argv)
        hyperparameters = {name: getattr(args, name) for name in pposgd_simple.HYPERPARAMETERS}

        def policy_fn(name: str, ob_space: gym.Space, ac_space: gym.Space) -> MlpPolicy:
            return MlpPolicy(
                name, ob_space, ac_space,
                hid_size=args.hid_size, num_hid_layers=args.num_hid_layers,
            )  # fmt: skip

        def check() -> None:
            pposgd_simple.check_hyperparameters(hyperparameters)
            args.env = cmd_util.resolve_env_id(args.env)
            env = make_env(args, seed=None)
            policy_fn("probe", env.observation_space, env.action_space)
            env.close()

        cmd_util.check_run(parser, check)
        cmd_util.begin_run(parser, args, title="ppo1")
        env = make_env(args, args.seed)
        pposgd_simple.learn(env, policy_fn, **hyperparameters)
        env.close()
        logger.log(f"Logged to {logger.get_dir()}")


if __name__ == "__main__":
    main()
