"""Command lines, environments by name, and the start of a run: what both scripts share.

Source: baselines/common/cmd_util.py @ ea25b9e.
Differs: presets; every rank's environment has a seed of its own; the run's folder holds the
configuration beside the logs; a bad value ends all ranks with one message and exit code 2.
"""

import argparse
import difflib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
from mpi4py import MPI

from common import logger
from common.misc_util import set_global_seeds
from common.monitor import Monitor
from common.mpi_util import agree, offset_seed

LOG_FORMATS = ("stdout", "log", "csv", "json", "tensorboard")
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "ale-py", "gymnasium-robotics", "mpi4py")

# MuJoCo environments whose -v1 to -v3 Gymnasium no longer has, and what stands in for them. The
# -v4 have the dynamics of -v2 on today's MuJoCo; Pusher-v4 alone needs a MuJoCo below 3.
MUJOCO_VERSIONS = {
    **dict.fromkeys(
        ["Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
         "InvertedPendulum", "Reacher", "Swimmer", "Walker2d"],
        "v4",
    ),
    "Pusher": "v5",
}  # fmt: skip

# What provides an environment that Gymnasium does not know by itself: the start of its name, the
# module that registers it, and what to install.
PROVIDERS = [
    (re.compile(r"Fetch|Hand|AntMaze|PointMaze|FrankaKitchen|Adroit"),
     "gymnasium_robotics", "gymnasium-robotics"),
    (re.compile(r"ALE/|.*NoFrameskip-"), "ale_py", "ale-py"),
]  # fmt: skip


# ---- Command lines ------------------------------------------------------------------------------


class ArgumentParser(argparse.ArgumentParser):
    """Takes `--num_timesteps` for `--num-timesteps`, and speaks on rank 0 alone."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with underscores in the names of flags read as hyphens."""
        args = sys.argv[1:] if args is None else args

        def hyphenate(arg: str) -> str:
            name, equals, value = arg.partition("=")
            return name.replace("_", "-") + equals + value if arg.startswith("--") else arg

        return super().parse_known_args([hyphenate(arg) for arg in args], namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        if MPI.COMM_WORLD.Get_rank() == 0:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """Print `message` on rank 0 and leave with exit code 2, on all ranks that call this."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def whole_number(text: str) -> int:
    """Return an integer from its text, which may be a float's, such as 1e6."""
    value = float(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def seed_number(text: str) -> int:
    """Return a seed from its text: an integer from 0 to 2**32 - 1."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"a seed must be from 0 to {2**32 - 1}, got {text}")
    return value


def log_formats(text: str) -> list[str]:
    """Return the formats in a comma-separated text."""
    formats = [name.strip() for name in text.split(",") if name.strip()]
    for name in formats:
        if name not in LOG_FORMATS:
            raise argparse.ArgumentTypeError(
                f"unknown format {name!r}: need some of {', '.join(LOG_FORMATS)}"
            )
    return formats


def _arg_parser(*, env: str, num_timesteps: float) -> ArgumentParser:
    parser = ArgumentParser(
        usage="[mpirun -np RANKS] python %(prog)s [--flag value ...]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run = parser.add_argument_group("run")
    run.add_argument("--env", "--env-id", default=env, metavar="ID", help="environment id")
    run.add_argument("--seed", type=seed_number, metavar="N", help="drawn and printed if not given")
    run.add_argument("--num-timesteps", type=float, default=num_timesteps, metavar="N",
                     help="steps of completed episodes, over all ranks, to train for")  # fmt: skip
    run.add_argument("--log-path", metavar="DIR", help="the run's folder (default: runs/...)")
    run.add_argument("--log-format", type=log_formats, metavar="F,F",
                     help=f"some of {','.join(LOG_FORMATS)} (default: stdout,log,csv)")  # fmt: skip
    return parser


def mujoco_arg_parser() -> ArgumentParser:
    """Return a parser of --env --seed --num-timesteps --reward-scale --log-path --log-format."""
    parser = _arg_parser(env="Reacher-v4", num_timesteps=1e6)
    parser.add_argument("--reward-scale", type=float, default=1.0, metavar="X",
                        help="multiplies the rewards that the learner sees")  # fmt: skip
    return parser


def atari_arg_parser() -> ArgumentParser:
    """Return a parser of --env --seed --num-timesteps --log-path --log-format."""
    return _arg_parser(env="PongNoFrameskip-v4", num_timesteps=1e7)


def add_ppo_flags(parser: ArgumentParser) -> None:
    """Add a flag for each hyperparameter of `learn`, and the limits other than --num-timesteps."""
    ppo = parser.add_argument_group("algorithm")
    for name, text in [
        ("timesteps-per-actorbatch", "steps of a rank's segment"),
        ("optim-batchsize", "minibatch of a rank; 0: the whole segment"),
        ("optim-epochs", "passes over a segment"),
    ]:
        ppo.add_argument(f"--{name}", type=whole_number, metavar="N", help=text)
    for name, text in [
        ("optim-stepsize", "Adam's learning rate"),
        ("adam-epsilon", "Adam's epsilon"),
        ("clip-param", "clip range of the probability ratio"),
        ("entcoeff", "weight of the entropy bonus"),
        ("gamma", "discount"),
        ("lam", "GAE's lambda"),
    ]:
        ppo.add_argument(f"--{name}", type=float, metavar="X", help=text)
    for name, text in [("schedule", "learning rate"), ("clip-schedule", "clip range")]:
        ppo.add_argument(f"--{name}", choices=["constant", "linear"], help=f"of the {text}")
    ppo.add_argument("--bootstrap-truncated", action="store_true",
                     help="value the state behind a time limit, which otherwise is an end")  # fmt: skip
    for name in ("iters", "episodes"):
        ppo.add_argument(f"--max-{name}", type=whole_number, metavar="N",
                         help=f"end after N {name} instead of --num-timesteps")  # fmt: skip
    ppo.add_argument("--max-seconds", type=float, metavar="X", help="likewise after X seconds")
    parser.set_defaults(adam_epsilon=1e-5)


def parse_args(
    parser: ArgumentParser,
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Return the arguments, those not given taken from the preset; the first preset is the default.

    `num_timesteps` is 0 where another limit was given instead of it. `max_timesteps`, the limit that
    `learn` takes, is `num_timesteps` times the preset's factor.
    """
    parser.add_argument("--preset", choices=list(presets), default=next(iter(presets)),
                        help="the hyperparameters to start from; a flag beats it")  # fmt: skip
    wants_help = {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv)
    preset = parser.get_default("preset") if wants_help else parser.parse_args(argv).preset
    parser.set_defaults(**presets[preset])
    default_timesteps = parser.get_default("num_timesteps")
    if not wants_help:
        parser.set_defaults(num_timesteps=None)
    args = parser.parse_args(argv)
    if args.num_timesteps is None:
        other_limit = args.max_iters or args.max_episodes or args.max_seconds
        args.num_timesteps = 0 if other_limit else default_timesteps
    args.max_timesteps = int(args.num_timesteps * getattr(args, "timesteps_factor", 1.0))
    return args


# ---- Environments -------------------------------------------------------------------------------


def resolve_env_id(env_id: str) -> str:
    """Return the id to make: an old MuJoCo version's stand-in, or `env_id` itself.

    Imports the package of `package:Id-v0`, and those known to provide the environment.

    Raises:
        ValueError: for an unknown id, with near names, or naming the package to install.
    """
    module, colon, name = env_id.rpartition(":")
    packages = [(module, module)] if colon else []
    packages += [(mod, package) for pattern, mod, package in PROVIDERS if pattern.match(name)]
    for module, package in packages:
        try:
            provider = importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"environment {env_id!r} needs a package that cannot be imported ({error}): "
                f"pip install {package}"
            ) from error
        gym.register_envs(provider)
    family, _, version = name.rpartition("-")
    if family in MUJOCO_VERSIONS and version in ("v1", "v2", "v3"):
        name = f"{family}-{MUJOCO_VERSIONS[family]}"
        logger.log(f"{env_id} is no longer in Gymnasium: running {name}")
    if name not in gym.registry:
        near = difflib.get_close_matches(name, gym.registry, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown environment {env_id!r}{hint}")
    return name


def make_env(env_id: str) -> gym.Env:
    """Return the environment without Gymnasium's checkers, which cost time at every step.

    Raises:
        ValueError: as `resolve_env_id`, and if a package that the environment needs is missing.
    """
    env_id = resolve_env_id(env_id)
    with warnings.catch_warnings():
        # The -v4 are what baselines' results were measured on; that there is a -v5 is no news.
        warnings.filterwarnings("ignore", message=".*out of date.*")
        try:
            return gym.make(env_id, disable_env_checker=True)
        except gym.error.DependencyNotInstalled as error:
            raise ValueError(f"environment {env_id!r}: {error}") from error


def make_mujoco_env(env_id: str, seed: int | None, reward_scale: float = 1.0) -> gym.Env:
    """Return this rank's environment, monitored, and seed all generators of this rank.

    Args:
        env_id: of a MuJoCo environment, or any whose observations are vectors.
        seed: the job's; this rank's is seed + 1000 * rank. None seeds nothing.
        reward_scale: multiplies the rewards outside the monitor, whose files keep the raw ones.

    Differs: baselines gives every rank's environment the same seed.
    """
    rank = MPI.COMM_WORLD.Get_rank()
    seed = offset_seed(seed, rank=rank, stride=1000)
    env = _seed_and_monitor(make_env(env_id), seed, rank, info_keywords=())
    if reward_scale != 1.0:
        env = gym.wrappers.TransformReward(env, lambda reward: reward_scale * float(reward))
    return env


def make_robotics_env(env_id: str, seed: int | None, rank: int = 0) -> gym.Env:
    """Return a goal environment as vectors of `desired_goal` then `observation`, monitored.

    Args:
        env_id: of a goal environment, such as FetchReach-v4.
        seed: this rank's own, to which nothing is added.
        rank: names the monitor's file, which has a column `is_success`.
    """
    goal_env = gym.wrappers.FilterObservation(make_env(env_id), ["observation", "desired_goal"])
    env = gym.wrappers.FlattenObservation(goal_env)
    return _seed_and_monitor(env, seed, rank, info_keywords=("is_success",))


def _seed_and_monitor(
    env: gym.Env, seed: int | None, rank: int, *, info_keywords: tuple[str, ...]
) -> gym.Env:
    set_global_seeds(seed)
    env.reset(seed=seed)  # later resets go on from here
    env.action_space.seed(seed)
    return Monitor(env, monitor_path(rank), allow_early_resets=True, info_keywords=info_keywords)


def monitor_path(rank: int) -> str | None:
    """Return the monitor's file name for a rank, without extension; None if there is no folder."""
    folder = logger.get_dir()
    return os.path.join(folder, str(rank)) if folder else None


# ---- The start of a run -------------------------------------------------------------------------


def check_run(parser: ArgumentParser, check: Callable[[], object]) -> None:
    """Run `check` on all ranks; if it raises on any, end the job through `parser.error`.

    Collective: every rank must call it.
    """
    message = agree(check)
    if message is not None:
        parser.error(message)


def begin_run(parser: ArgumentParser, args: argparse.Namespace, *, title: str) -> None:
    """Fill `args.seed` if it is None, open the logs, write config.json, print what runs where.

    Collective: every rank must call it.
    """
    comm = MPI.COMM_WORLD
    rank = comm.Get_rank()
    if args.seed is None:
        args.seed = comm.bcast(secrets.randbelow(2**31))
    folder = args.log_path or os.environ.get("OPENAI_LOGDIR")
    if folder is None:
        name = (
            f"{args.env.replace('/', '-')}__{title}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        )
        folder = comm.bcast(os.path.join("runs", name))
    formats = args.log_format if rank == 0 else None
    check_run(parser, lambda: logger.configure(folder, formats))
    versions = package_versions()
    config = {
        "arguments": vars(args),
        "command": [sys.executable, *sys.argv],
        "ranks": comm.Get_size(),
        "hostname": platform.node(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": git_commit(),
        "versions": versions,
        "mpi": " ".join(MPI.Get_library_version().split("\n")[0].split()),
    }
    if rank == 0:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    ranks = f"{comm.Get_size()} rank{'s' if comm.Get_size() > 1 else ''}"
    logger.log(f"{title} on {args.env}, {ranks}, seed {args.seed}")
    logger.log(", ".join(f"{name} {version}" for name, version in versions.items()))


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide what a run gives."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Return the commit of the checkout that this file lies in; None outside of one."""
    command = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), "describe", "--always",
               "--dirty", "--abbrev=40", "--exclude=*"]  # fmt: skip
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
