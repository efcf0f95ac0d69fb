#!/usr/bin/env python
"""Train a CNN policy with PPO on an Atari game.

    mpirun -np 8 python run_atari.py --env PongNoFrameskip-v4 --seed 0

Source: baselines/ppo1/run_atari.py @ ea25b9e; the PPO paper's Table 5.
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
from common.atari_wrappers import FrameStack, make_atari, wrap_deepmind
from common.leftovers import ending_what_is_left
from common.misc_util import set_global_seeds
from common.mpi import MPI
from common.mpi_util import offset_seed
from common.run import run
from ppo1 import pposgd_simple
from ppo1.cnn_policy import CnnPolicy
from ppo1.hyperparameters import HYPERPARAMETERS, check_hyperparameters
from ppo1.learner_state import learner_state

PRESETS = {
    # run_atari.py's numbers, with the frame stack of baselines' first release and raw rewards
    "ppo1": dict(
        env="PongNoFrameskip-v4", num_timesteps=1e7, timesteps_factor=1.1, kind="large",
        frame_stack=4, clip_rewards=False, timesteps_per_actorbatch=256, clip_param=0.2,
        entcoeff=0.01, optim_epochs=4, optim_stepsize=1e-3, optim_batchsize=64, gamma=0.99,
        lam=0.95, schedule="linear", clip_schedule="constant",
    ),
    # run_atari.py to the letter: one frame, rewards clipped to their sign
    "baselines": dict(
        env="PongNoFrameskip-v4", num_timesteps=1e7, timesteps_factor=1.1, kind="large",
        frame_stack=1, clip_rewards=True, timesteps_per_actorbatch=256, clip_param=0.2,
        entcoeff=0.01, optim_epochs=4, optim_stepsize=1e-3, optim_batchsize=64, gamma=0.99,
        lam=0.95, schedule="linear", clip_schedule="constant",
    ),
    # The PPO paper's Table 5, meant for 8 ranks; both step size and clip range are annealed
    "paper": dict(
        env="PongNoFrameskip-v4", num_timesteps=1e7, timesteps_factor=1.0, kind="small",
        frame_stack=4, clip_rewards=True, timesteps_per_actorbatch=128, clip_param=0.1,
        entcoeff=0.01, optim_epochs=3, optim_stepsize=2.5e-4, optim_batchsize=32, gamma=0.99,
        lam=0.95, schedule="linear", clip_schedule="linear",
    ),
}  # fmt: skip


def arg_parser() -> cmd_util.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = cmd_util.atari_arg_parser()
    cmd_util.add_ppo_flags(parser, PRESETS)
    atari = parser.add_argument_group("game and network")
    atari.add_argument("--frame-stack", type=cmd_util.positive_whole_number, metavar="N",
                       help="frames of an observation")  # fmt: skip
    atari.add_argument("--clip-rewards", action=argparse.BooleanOptionalAction,
                       help="learn from the rewards' signs")  # fmt: skip
    atari.add_argument("--kind", choices=["small", "large"], metavar="K",
                       help="small or large, A3C's or Nature DQN's")  # fmt: skip
    return parser


def make_env(
    args: argparse.Namespace, seed: int | None, render_mode: str | None = "rgb_array"
) -> gym.Env:
    """Return this rank's environment, seeding this rank by the job's `seed`; None seeds nothing."""
    rank = MPI.COMM_WORLD.Get_rank()
    seed = offset_seed(seed, rank=rank, stride=10000)
    set_global_seeds(seed)
    options = cmd_util.env_options(args)
    kwargs, limit = options["env_kwargs"], options["max_episode_steps"]
    with cmd_util.naming_kwargs(args.env, kwargs):
        game = make_atari(args.env, limit, render_mode=render_mode, **(kwargs or {}))
    env = wrap_deepmind(cmd_util.monitored(game, rank), clip_rewards=args.clip_rewards)
    if args.frame_stack != 1:
        env = FrameStack(env, args.frame_stack)
    cmd_util.seed_generators(env, seed)
    env.reset(seed=seed)  # later resets go on from here
    env.action_space.seed(seed)
    return env


def make_policy(
    args: argparse.Namespace, name: str, ob_space: gym.Space, ac_space: gym.Space
) -> CnnPolicy:
    """Return a policy with fresh weights."""
    return CnnPolicy(name, ob_space, ac_space, kind=args.kind)


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line `argv` says; None is the process's own."""
    run(
        arg_parser(),
        PRESETS,
        argv,
        title="ppo1",
        resolve_id=cmd_util.resolve_game_id,
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
