"""Command lines, and environments by name: what both scripts share before a run begins.

Source: baselines/common/cmd_util.py @ ea25b9e.
Differs: presets; every rank's environment has a seed of its own; the run's folder holds the
configuration beside the logs; a bad value ends all ranks with one message and exit code 2.
"""

import argparse
import contextlib
import difflib
import importlib
import io
import json
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.utils import seeding

from common import env_api, logger
from common.checkpoint import CheckpointError, checkpoint_files, read_run, run_folder
from common.files import FolderLock, absolute_path, folder_path
from common.misc_util import set_global_seeds
from common.monitor import Monitor, is_being_written
from common.mpi import MPI
from common.mpi_util import offset_seed
from common.plain_pickle import is_setting
from common.policy_file import SavedPolicy, check_sizes, read_policy

LOG_FORMATS = ("stdout", "log", "csv", "json", "tensorboard")
# Arguments that may differ when a run is resumed, for they do not touch what is computed: those
# that hold for one process alone, and those that hold on until given anew.
PROCESS_ARGUMENTS = {
    "resume", "override", "num_procs", "stop_timesteps", "log_path", "quiet", "save_path", "play",
    "video", "video_steps", "evaluate", "json", "deterministic",
}  # fmt: skip
FREE_ARGUMENTS = PROCESS_ARGUMENTS | {
    "save_interval", "keep", "stall_timeout", "log_format", "track", "wandb_project_name",
    "wandb_entity",
}  # fmt: skip
LOCK_SECONDS = 10.0  # that a resumed run waits for another in its folder, which may be ending
LIMITS = ("num_timesteps", "max_episodes", "max_iters", "max_seconds")
# How the environment of --env is made; of no use for another one.
ENV_OPTIONS = ("max_episode_steps", "env_kwargs", "clip_actions")

# Environments whose old versions no longer run, and what stands in for those. The -v4 have the
# dynamics of -v2 on today's MuJoCo; Pusher-v4 alone needs a MuJoCo below 3.
OLD_VERSIONS = ("v1", "v2", "v3")
STAND_INS = {
    **dict.fromkeys(
        ["Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
         "InvertedPendulum", "Reacher", "Swimmer", "Walker2d", "FetchReach", "FetchPush",
         "FetchSlide", "FetchPickAndPlace"],
        "v4",
    ),
    "Pusher": "v5",
}  # fmt: skip

# What provides an environment that Gymnasium does not know by itself: the start of its name, and
# the module that registers it.
PROVIDERS = {
    "gymnasium_robotics": re.compile(r"Fetch|Hand|AntMaze|PointMaze|FrankaKitchen|Adroit"),
    "ale_py": re.compile(r"ALE/|.*NoFrameskip-"),
}

# What other libraries (baselines' ppo2, Stable-Baselines3 and its zoo, CleanRL, Spinning Up, RLlib)
# call our flags, and what they have that ppo1 has not.
OTHER_NAMES = {
    "--num-timesteps": "total-timesteps n-timesteps timesteps max-steps num-steps-total",
    "--max-iters": "epochs num-iterations n-iterations iterations num-updates",
    "--timesteps-per-actorbatch": "n-steps nsteps num-steps steps steps-per-epoch horizon "
    "rollout-length rollout-fragment-length train-batch-size",
    "--optim-batchsize": "batch-size batchsize minibatch-size mini-batch-size sgd-minibatch-size",
    "--optim-batchsize (its rows, not their number)": "nminibatches num-minibatches n-minibatches "
    "num-mini-batch",
    "--optim-epochs": "n-epochs epochs update-epochs noptepochs num-epochs ppo-epoch num-sgd-iter "
    "train-pi-iters train-v-iters",
    "--optim-stepsize": "learning-rate lr pi-lr vf-lr step-size stepsize",
    "--adam-epsilon": "adam-eps eps",
    "--schedule linear": "anneal-lr lr-schedule learning-rate-schedule use-linear-lr-decay",
    "--clip-param": "clip-range clip-coef cliprange clip-ratio clip clip-eps clip-epsilon",
    "--entcoeff": "ent-coef ent-coeff entropy-coef entropy-coeff entropy-cost",
    "--gamma": "discount discount-factor",
    "--lam": "gae-lambda lambda gae-lam lmbda gae",
    "--num-procs": "num-env num-envs n-envs nenvs num-workers num-cpu n-cpu cpu num-processes np",
    "--env-kwargs": "env-args env-config",
    "--max-episode-steps": "max-ep-len max-episode-length max-episode-len time-limit",
    "--env": "env-name environment gym-id game task",
    "--hid-size": "num-hidden hidden-size hid hidden-sizes net-arch network",
    "--num-hid-layers": "num-layers l n-layers net-arch network",
    "--kind": "network policy-type",
    "--log-path": "log-dir logdir log-folder output-dir out-dir exp-name run-name save-dir",
    "--log-format stdout,log,csv,tensorboard": "tensorboard tensorboard-log tb-log-name",
    "--quiet": "verbose no-progress",
    "--save-interval": "save-freq checkpoint-freq checkpoint-interval",
    "--save-path": "save-model model-path",
    "--load-path": "trained-agent load-model checkpoint",
    "--evaluate": "eval-episodes n-eval-episodes eval",
    "--video": "capture-video record-video save-video-interval save-video-length",
    "--play": "render watch enjoy",
    "--device cuda": "cuda gpu use-cuda",
    "--threads": "num-threads n-threads torch-threads",
    "--wandb-project-name": "wandb-project",
    "PPO is the only algorithm here": "alg algo algorithm",
    "the type of an environment comes with --env": "env-type",
    "the value loss always has weight 1": "vf-coef vf-coeff value-coef value-loss-coef "
    "vf-loss-coeff",
    "ppo1 does not clip gradients": "max-grad-norm grad-clip",
    "ppo1 does not clip the value loss": "clip-vloss clip-range-vf vf-clip-param cliprange-vf",
    "ppo1 does not end an update early": "target-kl kl-target",
    "ppo1 has no penalty of the divergence": "kl-coeff kl-coef",
    "ppo1 always standardizes advantages": "norm-adv normalize-advantage",
    "MlpPolicy always standardizes observations": "normalize-observations norm-obs normalize",
    "ppo1 has no evaluation while it trains": "eval-freq eval-interval",
    "runs of one seed are always the same": "torch-deterministic cuda-deterministic",
}  # fmt: skip

# What to install for a module, where that has another name.
INSTALL = {
    "ale_py": "ale-py",
    "cv2": "opencv-python-headless",
    "gymnasium_robotics": "gymnasium-robotics",
}


# ---- Command lines ------------------------------------------------------------------------------


class HelpFormatter(argparse.HelpFormatter):
    """One line a flag on most terminals, its default in parentheses where it has one."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=32, **kwargs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0].replace("--", "--[no-]", 1)
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        return action.help if hidden else f"{action.help} (%(default)s)"


class ArgumentParser(argparse.ArgumentParser):
    """Takes `--num_timesteps` for `--num-timesteps`, no abbreviations, and speaks on rank 0 alone.

    An abbreviation that is clear today may mean another flag once there are more of them.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments; unknown flags are an error that says what they may be here."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            words = [word.partition("=")[0] for word in unknown]
            words = [word for word in words if re.match("--?[A-Za-z]", word)] or words[:1]
            hints = [(f"{word}: " * (len(words) > 1), self._hint(word)) for word in words]
            text = "".join(f"; {which}{hint}" for which, hint in hints if hint)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{text}")
        return parsed

    def _hint(self, word: str) -> str:
        """Return what to say about an unknown flag, "" if nothing is like it."""
        name = word.lstrip("-").lower()
        rows = [ours for ours, names in OTHER_NAMES.items() if name in names.split()]
        for fact in rows:
            if not fact.startswith("--"):
                return fact
        known = [ours for ours in rows if ours.split()[0] in self._option_string_actions]
        near = known or near_names(word, self._option_string_actions)
        return did_you_mean(near).removeprefix("; ")

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
        text = " ".join(message.split())  # a flag's value may hold line breaks
        self.exit(2, f"{self.prog}: error: {text} (--help lists the flags)\n")


def near_names(word: str, names: Iterable[str]) -> list[str]:
    """Return up to three names like `word`, the most like first; case does not count."""
    by_lower_case = {name.lower(): name for name in names}
    word = word.lower()
    if word in by_lower_case:
        return [by_lower_case[word]]
    for cutoff in (0.8, 0.6):  # the remotely like only where none is nearer
        near = difflib.get_close_matches(word, by_lower_case, n=3, cutoff=cutoff)
        if near:
            return [by_lower_case[name] for name in near]
    return []


def did_you_mean(names: Sequence[str]) -> str:
    """Return the end of an error message that suggests `names`, "" if there are none."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def whole(text: str) -> int:
    """Return an integer from its text, which may be a float's, such as 1e6; else ValueError."""
    try:
        return int(text)
    except ValueError:
        if not float(text).is_integer():
            raise
        return int(float(text))


def number_type(
    read: Callable[[str], Any], accepts: Callable[[Any], bool], need: str
) -> Callable[[str], Any]:
    """Return a type for argparse: a number as `read` from its text, if `accepts` agrees.

    Any other text is an error that says what it takes, `need`.
    """

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = read(text)
            if accepts(value):
                return value
        raise argparse.ArgumentTypeError(f"need {need}, got {text!r}")

    return parse


whole_number = number_type(whole, lambda x: True, "a whole number")
whole_number_from_0 = number_type(whole, lambda x: x >= 0, "a whole number of at least 0")
positive_whole_number = number_type(whole, lambda x: x > 0, "a whole number above 0")
number_from_0 = number_type(float, lambda x: 0 <= x < math.inf, "a number of at least 0")
positive_number = number_type(float, lambda x: 0 < x < math.inf, "a number above 0")
seed_number = number_type(int, lambda x: 0 <= x < 2**32, f"a whole number from 0 to {2**32 - 1}")


def resume_path(text: str) -> str:
    """Return the absolute path; "", which stands for --log-path's, as it is."""
    return absolute_path(text) if text else text


def json_object(text: str) -> dict[str, Any]:
    """Return what a JSON object holds, if a checkpoint can hold it too."""

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name is given twice")
        return dict(pairs)

    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text, parse_constant=no_constant, object_pairs_hook=unique)
        if isinstance(value, dict) and is_setting(value):
            return value
    raise argparse.ArgumentTypeError(f"""need a JSON object, such as '{{"a": 1}}', got {text!r}""")


PATH_TYPES = (absolute_path, folder_path, resume_path)


def log_formats(text: str) -> list[str]:
    """Return the formats in a comma-separated text."""
    formats = [name.strip() for name in text.split(",") if name.strip()]
    for name in formats:
        if name not in LOG_FORMATS:
            raise argparse.ArgumentTypeError(
                f"unknown format {name!r}: need some of {', '.join(LOG_FORMATS)}"
            )
    return formats


def _arg_parser(*, env: str, num_timesteps: int) -> tuple[ArgumentParser, Any]:
    """Return a parser, and its group of flags that say what to run."""
    parser = ArgumentParser(
        usage="[mpirun -np RANKS] python %(prog)s [--flag value ...]",
        formatter_class=HelpFormatter,
        add_help=False,
    )
    run = parser.add_argument_group("run")
    run.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    run.add_argument("--env", "--env-id", default=env, metavar="ID", help="id, or package:id")
    run.add_argument("--env-kwargs", type=json_object, metavar="JSON",
                     help="its arguments, such as '{\"a\": 1}'")  # fmt: skip
    run.add_argument("--max-episode-steps", type=positive_whole_number, metavar="N",
                     help="cut an episode after N timesteps")  # fmt: skip
    run.add_argument("--seed", type=seed_number, metavar="N", help="drawn and printed if not given")
    run.add_argument("--num-procs", type=positive_whole_number, metavar="N",
                     help="start N ranks with mpirun")  # fmt: skip
    run.add_argument("--num-timesteps", type=whole_number_from_0, default=num_timesteps,
                     metavar="N", help="end after N steps over all ranks")  # fmt: skip
    run.add_argument("--max-episodes", type=positive_whole_number, metavar="N",
                     help="end after N episodes over all ranks instead")  # fmt: skip
    run.add_argument("--max-iters", type=positive_whole_number, metavar="N",
                     help="end after N iterations instead")  # fmt: skip
    run.add_argument("--max-seconds", type=positive_number, metavar="X",
                     help="end after X seconds instead")  # fmt: skip
    run.add_argument("--stop-timesteps", type=positive_whole_number, metavar="N",
                     help="pause after N steps; --resume goes on")  # fmt: skip
    logs = parser.add_argument_group("logs and checkpoints")
    logs.add_argument("--log-path", type=folder_path, metavar="DIR",
                      default=os.environ.get("OPENAI_LOGDIR") or None,
                      help="the run's folder; new in runs/ if not given")  # fmt: skip
    formats = os.environ.get("OPENAI_LOG_FORMAT", "stdout,log,csv")
    logs.add_argument("--log-format", type=log_formats, default=formats, metavar="F,F",
                      help="also json, tensorboard")  # fmt: skip
    logs.add_argument("--quiet", action="store_true", help="neither tables nor bar on the console")
    logs.add_argument("--track", action=argparse.BooleanOptionalAction,
                      help="send the numbers to Weights & Biases")  # fmt: skip
    logs.add_argument("--wandb-project-name", default="ppo1", metavar="NAME", help="project there")
    logs.add_argument("--wandb-entity", metavar="NAME", help="user or team there")
    logs.add_argument("--resume", type=resume_path, nargs="?", const="", metavar="PATH",
                      help="go on in this run's folder, or --log-path's")  # fmt: skip
    logs.add_argument("--override", action="store_true",
                      help="resume although flags differ from the saved")  # fmt: skip
    logs.add_argument("--save-interval", type=whole_number_from_0, default=50, metavar="N",
                      help="iterations between saves; 0: at the end")  # fmt: skip
    logs.add_argument("--keep", type=positive_whole_number, default=3, metavar="N",
                      help="checkpoints kept")  # fmt: skip
    logs.add_argument("--stall-timeout", type=number_from_0, default=600.0, metavar="X",
                      help="end if stuck for X seconds; 0: never")  # fmt: skip
    policy = parser.add_argument_group("policy")
    policy.add_argument("--save-path", type=absolute_path, metavar="FILE",
                        help="save the trained policy")  # fmt: skip
    policy.add_argument("--load-path", type=absolute_path, metavar="PATH",
                        help="begin with a saved policy, run or dump")  # fmt: skip
    policy.add_argument("--evaluate", type=positive_whole_number, metavar="N",
                        help="then play N episodes; print a table")  # fmt: skip
    policy.add_argument("--json", type=absolute_path, metavar="FILE",
                        help="write that evaluation here")  # fmt: skip
    policy.add_argument("--video", type=absolute_path, metavar="FILE",
                        help="then record an episode: .mp4 or .gif")  # fmt: skip
    policy.add_argument("--video-steps", type=positive_whole_number, metavar="N",
                        help="record N steps instead")  # fmt: skip
    policy.add_argument("--play", action="store_true", help="then show it in a window")
    policy.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True,
                        help="likeliest action, or sampled")  # fmt: skip
    return parser, run


def mujoco_arg_parser() -> ArgumentParser:
    """Return a parser of --env, --seed, --reward-scale, the limits of a run, and its logs."""
    parser, run = _arg_parser(env="Reacher-v4", num_timesteps=1_000_000)
    run.add_argument("--clip-actions", action=argparse.BooleanOptionalAction,
                     help="play actions clipped to their bounds")  # fmt: skip
    run.add_argument("--reward-scale", type=positive_number, default=1.0, metavar="X",
                     help="factor on the rewards learned from")  # fmt: skip
    return parser


def atari_arg_parser() -> ArgumentParser:
    """Return a parser of --env, --seed, --timesteps-factor, the limits of a run, and its logs."""
    parser, run = _arg_parser(env="PongNoFrameskip-v4", num_timesteps=10_000_000)
    run.add_argument("--timesteps-factor", type=positive_number, default=1.1, metavar="X",
                     help="factor on --num-timesteps")  # fmt: skip
    parser.set_defaults(deterministic=False)
    return parser


def add_ppo_flags(parser: ArgumentParser, presets: Iterable[str]) -> None:
    """Add --preset, of which the first is the default, and a flag for each setting of `learn`."""
    ppo = parser.add_argument_group("algorithm")
    names = list(presets)
    ppo.add_argument("--preset", choices=names, default=names[0], metavar="NAME",
                     help=f"{', '.join(names[:-1])} or {names[-1]}")  # fmt: skip
    for name, text in [
        ("timesteps-per-actorbatch", "steps of a rank's segment"),
        ("optim-batchsize", "a rank's minibatch; 0: the segment"),
        ("optim-epochs", "passes over a segment"),
    ]:
        ppo.add_argument(f"--{name}", type=whole_number, metavar="N", help=text)
    for name, text in [
        ("optim-stepsize", "Adam's learning rate"),
        ("adam-epsilon", "Adam's epsilon"),
        ("clip-param", "clip range of the ratio"),
        ("entcoeff", "weight of the entropy bonus"),
        ("gamma", "discount"),
        ("lam", "GAE's lambda"),
    ]:
        ppo.add_argument(f"--{name}", type=float, metavar="X", help=text)
    for name, text in [("schedule", "learning rate"), ("clip-schedule", "clip range")]:
        ppo.add_argument(f"--{name}", choices=["constant", "linear"], metavar="S",
                         help=f"{text}: constant or linear")  # fmt: skip
    ppo.add_argument("--bootstrap-truncated", action="store_true",
                     help="a time limit is not an episode's end")  # fmt: skip
    speed = parser.add_argument_group("speed")
    speed.add_argument("--compile", action=argparse.BooleanOptionalAction,
                       help="the update; by default if the run is long")  # fmt: skip
    speed.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N")
    speed.add_argument("--threads", type=positive_whole_number, default=1, metavar="N",
                       help="threads of a rank")  # fmt: skip
    parser.set_defaults(adam_epsilon=1e-5)


def parse_args(
    parser: ArgumentParser,
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None = None,
    *,
    lock: FolderLock | None = None,
) -> argparse.Namespace:
    """Return rank 0's arguments, those not given taken from the preset.

    `max_timesteps`, the limit that `learn` takes, is `num_timesteps` times `timesteps_factor`,
    where there is one. Of the four limits, those not in force are 0.

    Args:
        parser: of all flags.
        presets: arguments by preset.
        argv: the command line; None is the process's own.
        lock: rank 0 has it take the folder of the run that --resume means, if there is one, before
            it looks at the checkpoints; None reads them as they are.

    Collective: every rank must call it; a bad command line raises SystemExit on all of them.
    """
    comm = MPI.COMM_WORLD
    outcome: Any = None
    if comm.Get_rank() == 0:
        try:
            outcome = _parse_args(parser, presets, argv, lock)
        except SystemExit as leave:
            outcome = leave.code
    outcome = comm.bcast(outcome)
    if not isinstance(outcome, argparse.Namespace):
        sys.exit(outcome)
    return outcome


def _parse_args(
    parser: ArgumentParser,
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    lock: FolderLock | None,
) -> argparse.Namespace:
    # The preset decides the defaults, those that --help shows too, so it must be known first.
    first = ArgumentParser(prog=parser.prog, add_help=False)
    first.add_argument("--preset", choices=list(presets))
    first.add_argument("--load-path", type=absolute_path)
    first.add_argument("--resume", type=resume_path, nargs="?", const="")
    first.add_argument("--log-path", type=folder_path, default=parser.get_default("log_path"))
    first.add_argument("--env", "--env-id")
    known = first.parse_known_args(argv)[0]
    asks_for_help = bool({"-h", "--help"} & set(sys.argv[1:] if argv is None else argv))
    if lock is not None and known.resume is not None and not asks_for_help:
        _lock_run(parser, known.resume or known.log_path, lock)
    resumes = known.resume or (known.resume == "" and has_checkpoints(known.log_path))
    # A run that goes on has what it began with; the file may be gone
    loaded, settings = (None, {}) if resumes else _read_policy(parser, known, presets)
    preset = known.preset or settings.get("preset") or parser.get_default("preset")
    parser.set_defaults(**{**presets[preset], **settings, "preset": preset})
    parser.description = f"In parentheses: what holds if not given, here with --preset {preset}."
    num_timesteps = int(parser.get_default("num_timesteps"))
    parser.set_defaults(num_timesteps=num_timesteps)
    if not asks_for_help:
        parser.set_defaults(num_timesteps=None)  # to tell whether it is given
    args = parser.parse_args(argv)
    args.checkpoint, args.loaded = None, loaded
    if args.resume is not None:
        _take_saved_arguments(parser, args, argv)
    if args.checkpoint is None:
        _settle_limit(parser, args, num_timesteps)
    args.max_timesteps = int(args.num_timesteps * getattr(args, "timesteps_factor", 1))
    return args


def _lock_run(parser: ArgumentParser, path: str | None, lock: FolderLock) -> None:
    """Lock the folder of the run to resume, waiting for one that is just ending there.

    A folder without a lock file or a checkpoint is left alone: no run has begun there.
    """
    folder = None if path is None else run_folder(Path(path))
    if folder is not None and (Path(folder, FolderLock.NAME).exists() or has_checkpoints(folder)):
        try:
            lock.take(folder, wait_seconds=LOCK_SECONDS, say=logger.log)
        except (ValueError, OSError) as error:
            parser.error(describe(error))


def _settle_limit(parser: ArgumentParser, args: argparse.Namespace, num_timesteps: int) -> None:
    """Set the limits in `args` that are not in force to 0; `num_timesteps` is, if none is given."""
    limits = [flag(name) for name in LIMITS if getattr(args, name) is not None]
    if len(limits) > 1:
        parser.error(f"give one limit, not both {' and '.join(limits)}")
    shows = args.play or args.video or args.evaluate
    if not limits:
        args.num_timesteps = 0 if args.loaded is not None and shows else num_timesteps
    elif args.num_timesteps == 0 and not (shows or args.save_path):
        parser.error(
            "argument --num-timesteps: need a whole number above 0, or 0 for "
            "--play, --video, --evaluate or --save-path alone"
        )
    elif args.num_timesteps is None:
        schedules = ("schedule", "clip_schedule")
        annealed = [flag(name) for name in schedules if getattr(args, name, None) == "linear"]
        if annealed:
            remedy = " ".join(f"{name} constant" for name in annealed)
            parser.error(
                f"with {limits[0]}, a linear schedule has no --num-timesteps to anneal over: "
                f"add {remedy}"
            )
    for name in LIMITS:
        setattr(args, name, getattr(args, name) or 0)


def _read_policy(
    parser: ArgumentParser, known: argparse.Namespace, presets: Iterable[str]
) -> tuple[SavedPolicy | None, dict[str, Any]]:
    """Return what the file of --load-path holds, and the settings that come with it.

    Args:
        parser: for errors.
        known: preset, load_path and env as given.
        presets: of this script.
    """
    path = known.load_path
    if path is None:
        return None, {}
    try:
        saved = read_policy(Path(path))
    except CheckpointError as error:
        parser.error(str(error))
    preset = saved.settings.get("preset")
    if preset is not None and preset not in presets:
        parser.error(f"{path} is a policy of preset {preset!r}, which this script does not know")
    try:
        check_values(parser, saved.settings)
        check_sizes(saved.settings, saved.description, saved.weights)
    except ValueError as error:
        parser.error(f"{path} holds no policy: {error}")
    env = saved.settings.get("env", "")
    if known.env is None and ":" in env:  # whose package would be imported because a file says so
        parser.error(f"{path} is a policy of {env}: give --env {env}")
    if known.env is None and preset is not None and known.preset not in (None, preset):
        parser.error(
            f"{path} is a policy of {env}, preset {preset}: "
            f"with --preset {known.preset}, give --env"
        )
    settings = dict(saved.settings)
    try:
        saved.check_env(known.env or env)
    except ValueError:  # another environment has arguments and limits of its own
        settings = {name: settings[name] for name in settings if name not in ENV_OPTIONS}
    return saved, settings


def _take_saved_arguments(
    parser: ArgumentParser, args: argparse.Namespace, argv: Sequence[str] | None
) -> None:
    """Set `args` to those of the run that --resume means, if that has a checkpoint.

    `args.checkpoint` is then the checkpoint's content, and under "changed" the arguments that are
    not the saved ones. Flags given must agree with those, unless --override is given.
    """
    if not args.resume and not args.log_path:
        parser.error("--resume needs the run's folder: --resume PATH, or --log-path DIR")
    path = Path(args.resume or args.log_path)
    if not args.resume and not has_checkpoints(args.log_path):
        logger.log(f"No checkpoint in {path} yet: starting from the beginning")
        return
    try:
        folder, content = read_saved_run(parser, path)
    except CheckpointError as error:
        parser.error(str(error))
    saved = content["arguments"]
    unset = {action.dest: None for action in parser._actions}
    given = argparse.Namespace(**dict.fromkeys(unset, argparse.SUPPRESS))
    parser.parse_args(argv, given)
    changed = {
        name: value
        for name, value in vars(given).items()
        if value is not argparse.SUPPRESS
        and name not in FREE_ARGUMENTS
        and value not in (saved.get(name), saved.get(f"given_{name}"))
        and not (name == "load_path" and value == os.path.abspath(str(saved.get(name))))
    }  # the path was relative in earlier versions
    if changed and not args.override:
        listed = ", ".join(f"{flag(k)} {v} (saved: {saved.get(k)})" for k, v in changed.items())
        parser.error(f"differs from the run to resume: {listed}; --override to go on")
    for name in changed.keys() & {"load_path", "preset"}:  # which decide how a run begins
        parser.error(f"{flag(name)} {changed[name]}: a run that is resumed has begun without it")
    kept = {name: value for name, value in saved.items() if name not in PROCESS_ARGUMENTS}
    if changed.keys() & set(LIMITS):
        kept |= dict.fromkeys(LIMITS, 0)
    free = {
        name: value
        for name, value in vars(given).items()
        if value is not argparse.SUPPRESS and name in FREE_ARGUMENTS
    }
    vars(args).update(kept | free | changed, log_path=str(folder))
    if not any(getattr(args, name) for name in LIMITS):
        parser.error("a run that is resumed needs a limit above 0; --load-path shows its policy")
    args.checkpoint, args.loaded = {**content, "changed": changed}, None


def read_saved_run(parser: ArgumentParser, path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a run's folder, and the content of its newest good checkpoint.

    Args:
        parser: of the run's script, whose flags the saved arguments must fit.
        path: as for `read_run`.

    Raises:
        CheckpointError: if there is none, or its arguments are not the script's.
    """
    folder, content = read_run(path)
    saved = content["arguments"]
    try:
        if "env" not in saved:
            raise ValueError("env is missing in arguments")
        check_values(parser, saved)
        check_sizes(saved, content.get("policy"), len(content["shared"]["theta"]))
    except ValueError as error:
        raise CheckpointError(f"{path} holds no run: {error}") from error
    return folder, content


def check_values(parser: ArgumentParser, saved: Mapping[str, Any]) -> None:
    """Check that saved arguments are such as a command line gives; others would fail anywhere.

    Raises:
        ValueError: naming the first that is not.
    """
    for action in parser._actions:
        name, value = action.dest, saved.get(action.dest)
        if name not in saved or (name in LIMITS and value in (0, None)):
            continue
        if value is None:
            is_possible = parser.get_default(name) is None
        elif action.nargs == 0:  # a flag without a value
            is_possible = isinstance(value, bool)
        elif action.type in PATH_TYPES:  # a path was relative in earlier versions
            is_possible = isinstance(value, str)
        else:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            text = ",".join(map(str, value)) if isinstance(value, list) else text
            try:
                read = parser._get_value(action, text)
                parser._check_value(action, read)
            except (argparse.ArgumentError, argparse.ArgumentTypeError):
                read = None
            kinds = (int, float) if isinstance(read, float) else type(read)
            is_possible = read == value and isinstance(value, kinds)
        if not is_possible:
            raise ValueError(f"{name} is {str(value)[:40]}, which {flag(name)} does not take")


def has_checkpoints(folder: str | Path | None) -> bool:
    """Return whether there are checkpoints in a run's folder."""
    return folder is not None and bool(checkpoint_files(Path(folder, "checkpoints")))


def flag(name: str) -> str:
    """Return the flag that sets an argument."""
    return "--" + name.replace("_", "-")


def describe(error: BaseException) -> str:
    """Return an exception as one line for the user, with the remedy or the place if known."""
    name = error.name if isinstance(error, ImportError) else None
    module = (name or "").partition(".")[0]
    if module == __package__:
        text = f"{error}; {_other_packages(module)}"
    elif isinstance(error, ModuleNotFoundError) and module:
        text = f"module {name!r} is missing: pip install {INSTALL.get(module, module)}"
    elif isinstance(error, OSError) and error.filename:
        text = f"{error.strerror}: {error.filename!r}"
    elif isinstance(error, ValueError | gym.error.Error):
        text = str(error)
    else:  # somebody's bug, whose traceback is not shown
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
    return " ".join(text.split())


def _other_packages(name: str) -> str:
    """Return where our package `name` is, and the others of that name which it hides."""
    ours = Path(__file__).parent
    found = (PathFinder.find_spec(name, [entry]) for entry in dict.fromkeys(sys.path))
    places = {place for spec in found if spec for place in spec.submodule_search_locations or ()}
    others = sorted(places - {str(ours)}) or ["another place"]
    return f"{name!r} is ppo1's, in {ours}, and hides the one in {', '.join(others)}: rename that"


# ---- Environments -------------------------------------------------------------------------------


def resolve_env_id(env_id: str) -> str:
    """Return the id to make: an old version's stand-in, or `env_id` itself.

    Imports the package of `package:Id-v0`, and those known to provide the environment.

    Raises:
        ValueError: for an unknown id, with near names, or naming the package to install.
    """
    package, name = _import_package(env_id)
    for module, pattern in PROVIDERS.items():
        if pattern.match(name):
            _import_provider(module, env_id)
    family, _, version = name.rpartition("-")
    stand_in = STAND_INS.get(family.removesuffix("Dense"))
    if stand_in and version in OLD_VERSIONS and not package:
        name = f"{family}-{stand_in}"
        logger.log(f"{env_id} no longer runs: taking {name} instead")
    if name not in gym.registry:
        for module in PROVIDERS:  # an id of theirs that the patterns miss, or near ones
            with contextlib.suppress(ValueError):
                _import_provider(module, env_id)
    if name not in gym.registry:
        old = {f"{family}-{version}" for family in STAND_INS for version in OLD_VERSIONS}
        near = near_names(name, gym.registry.keys() - old)
        raise ValueError(f"unknown environment {env_id!r}{did_you_mean(near)}")
    return package + name


def resolve_game_id(env_id: str) -> str:
    """Return `env_id`, of an Atari game that shows each of its frames as an image.

    Raises:
        ValueError: for any other id, with near names, or naming the package to install.
    """
    package, name = _import_package(env_id)
    _import_provider("ale_py", env_id)
    if name in gym.registry and "NoFrameskip-" in name and "-ram" not in name:
        return env_id
    game = re.sub(r"^ALE/|(-ram)?(NoFrameskip|Deterministic)?(-v\d+)?$", "", name)
    suffix = "NoFrameskip-v4"
    games = [known.removesuffix(suffix) for known in gym.registry if known.endswith(suffix)]
    near = [known + suffix for known in near_names(game, games) if not known.endswith("-ram")]
    raise ValueError(
        f"environment {env_id!r} does not fit: need an Atari game whose id has NoFrameskip, "
        f"since frames are skipped by a wrapper{did_you_mean(near)}"
    )


def _import_package(env_id: str) -> tuple[str, str]:
    """Return "package:" and "Id-v0" of `package:Id-v0`, the package imported; or "" and the id.

    The working directory is searched last; Python itself searches the script's folder alone.
    """
    package, colon, name = env_id.rpartition(":")
    if colon:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(package)
        except Exception as error:
            text = describe(error)
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing not in (None, *INSTALL) and f"{package}.".startswith(f"{missing}."):
                text = (
                    f"no module {missing!r} in {os.getcwd()} or on Python's path: start in its "
                    "folder, set PYTHONPATH to that, or install its package"
                )
            raise ValueError(f"environment {env_id!r}: {text}") from error
    return package + colon, name


def _import_provider(module: str, env_id: str) -> None:
    """Have `module` register its environments, without the news that it prints."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gym.register_envs(importlib.import_module(module))
    except Exception as error:
        raise ValueError(f"environment {env_id!r}: {describe(error)}") from error


def make_plain_env(
    env_id: str,
    render_mode: str | None = None,
    *,
    max_episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    clip_actions: bool | None = None,
) -> gym.Env:
    """Return the environment without Gymnasium's checkers, which cost time at every step.

    Args:
        env_id: as `resolve_env_id` takes it.
        render_mode: "rgb_array", "human" or None.
        max_episode_steps: truncate episodes there, in place of the environment's own limit.
        env_kwargs: arguments for the environment's constructor.
        clip_actions: let the environment see actions clipped to their Box. The policy keeps what
            it sampled: the action space shown to it has no bounds. Other spaces need no clipping.

    Raises:
        ValueError: as `resolve_env_id`, if a package that the environment needs is missing, for
            arguments that it does not take, and if it is not one environment of Gymnasium's API.
    """
    env_id = resolve_env_id(env_id)
    with warnings.catch_warnings(), naming_kwargs(env_id, env_kwargs):
        # The -v4 are what baselines' results were measured on; that there is a -v5 is no news.
        warnings.filterwarnings("ignore", message=".*out of date.*")
        try:
            mode: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
            env = gym.make(env_id, max_episode_steps=max_episode_steps, disable_env_checker=True,
                           **mode, **(env_kwargs or {}))  # fmt: skip
        except gym.error.DependencyNotInstalled as error:
            raise ValueError(f"environment {env_id!r}: {error}") from error
        except TypeError as error:
            if "gymnasium.Env" not in str(error):  # then it is the constructor's
                raise
            raise ValueError(
                f"environment {env_id!r} is none for ppo1, which needs a single one with "
                f"Gymnasium's API (not a vector, not old gym's): {str(error).partition('. ')[0]}"
            ) from error
    env_api.check_env(env)
    if clip_actions and isinstance(env.action_space, gym.spaces.Box):
        env = wrappers.ClipAction(env)
    return env


@contextlib.contextmanager
def naming_kwargs(env_id: str, env_kwargs: Mapping[str, Any] | None) -> Iterator[None]:
    """Name --env-kwargs, if there are any, in the exception of an environment that is made."""
    try:
        yield
    except Exception as error:
        if not env_kwargs:
            raise
        given = f"--env-kwargs {json.dumps(env_kwargs)}"
        raise ValueError(f"environment {env_id!r} with {given}: {describe(error)}") from error


def env_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that say how the environment is made; None where there is none."""
    return {name: getattr(args, name, None) for name in ENV_OPTIONS}


def make_mujoco_env(
    env_id: str,
    seed: int | None,
    reward_scale: float = 1.0,
    *,
    render_mode: str | None = None,
    **options: Any,
) -> gym.Env:
    """Return this rank's environment, monitored, and seed all generators of this rank.

    Of several in one process, the first writes the monitor file of the run's folder, until it is
    closed; the others, made to evaluate for example, write none, and a line says so.

    Args:
        env_id: of a MuJoCo environment, or any other; observations that are no Box (Dict, Tuple,
            Discrete) come as the vectors that `gymnasium.spaces.flatten` makes of them.
        seed: the job's; this rank's is seed + 1000 * rank. None seeds nothing.
        reward_scale: multiplies the rewards outside the monitor, whose files keep the raw ones.
        render_mode: as in `gym.make`.
        options: more of `make_plain_env`'s.

    Differs: baselines gives every rank's environment the same seed.

    Raises:
        ValueError: as `make_plain_env`, and for observations that cannot be made vectors.
    """
    rank = MPI.COMM_WORLD.Get_rank()
    seed = offset_seed(seed, rank=rank, stride=1000)
    set_global_seeds(seed)  # the constructor may draw
    env = make_plain_env(env_id, render_mode, **options)
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box):
        if not space.is_np_flattenable:
            raise ValueError(f"unsupported observation space {space}: it has no fixed size")
        env = wrappers.FlattenObservation(env)
    env = _seed_and_monitor(env, seed, rank, info_keywords=())
    return scale_rewards(env, reward_scale)


def scale_rewards(env: gym.Env, scale: float) -> gym.Env:
    """Return `env` with its rewards multiplied by `scale`."""
    if scale == 1.0:
        return env
    return wrappers.TransformReward(env, lambda reward: scale * env_api.as_number(reward))


def make_robotics_env(
    env_id: str,
    seed: int | None,
    rank: int = 0,
    *,
    render_mode: str | None = None,
    **options: Any,
) -> gym.Env:
    """Return a goal environment as vectors of `desired_goal` then `observation`, monitored.

    Args:
        env_id: of a goal environment, such as FetchReach-v4.
        seed: this rank's own, to which nothing is added.
        rank: names the monitor's file, which has a column `is_success`.
        render_mode: as in `gym.make`.
        options: more of `make_plain_env`'s.

    Raises:
        ValueError: as `make_plain_env`, and for an environment without goals.
    """
    set_global_seeds(seed)  # the constructor may draw
    env = make_plain_env(env_id, render_mode, **options)
    keys = ["observation", "desired_goal"]
    space = env.observation_space
    if not (isinstance(space, gym.spaces.Dict) and set(keys) <= set(space)):
        raise ValueError(
            f"environment {env_id!r} has no goals: need observations with the keys "
            f"{' and '.join(map(repr, keys))}, got {space}"
        )
    env = wrappers.FlattenObservation(wrappers.FilterObservation(env, keys))
    return _seed_and_monitor(env, seed, rank, info_keywords=("is_success",))


def _seed_and_monitor(
    env: gym.Env, seed: int | None, rank: int, *, info_keywords: tuple[str, ...]
) -> gym.Env:
    set_global_seeds(seed)
    seed_generators(env, seed)
    ours: list[gym.ObservationWrapper] = []  # which would stumble over what old gym's API returns
    plain = env
    while isinstance(plain, wrappers.FlattenObservation | wrappers.FilterObservation):
        ours.append(plain)
        plain = plain.env
    ob = env_api.reset(plain, seed=seed)  # later resets go on from here
    for wrapper in reversed(ours):
        ob = wrapper.observation(ob)  # which fails for an observation that is not of the space
    env.action_space.seed(seed)
    return monitored(env, rank, info_keywords=info_keywords)


def seed_generators(env: gym.Env, seed: int | None) -> None:
    """Seed what `env.reset(seed=seed)` may leave unseeded; None seeds nothing.

    That is every space that `env` or a wrapper holds, since the environment may sample from it, and
    `np_random`, for an environment whose `reset` forgets its seed. Action spaces get `seed` itself;
    the others get a number for each name: spaces that are alike must not give the same samples.
    """
    if seed is None:
        return
    plain: Any = env.unwrapped
    if getattr(type(plain), "np_random", None) is gym.Env.np_random:
        plain.np_random = seeding.np_random(seed)[0]
    layer: Any = env
    while layer is not None:
        held = {
            name: space
            for kind in reversed(type(layer).__mro__)
            for name, space in vars(kind).items()
        }
        for name, space in {**held, **vars(layer)}.items():
            if isinstance(space, gym.Space):
                own = np.random.SeedSequence([seed, *name.encode()]).generate_state(1)
                space.seed(int(own[0]))
        layer.action_space.seed(seed)
        layer = layer.env if isinstance(layer, gym.Wrapper) else None


def monitored(env: gym.Env, rank: int, *, info_keywords: tuple[str, ...] = ()) -> Monitor:
    """Return `env` under a monitor that writes RANK.monitor.csv in the run's folder, if any.

    While another environment of this process writes that file, it is left to that one.
    """
    folder = logger.get_dir()
    path = os.path.join(folder, str(rank)) if folder else None
    if path and is_being_written(path):
        logger.warn(
            f"{path}.{Monitor.EXT} is another environment's, made before and not closed: the "
            "episodes of this one go to no file"
        )
        path = None
    return Monitor(env, path, allow_early_resets=True, info_keywords=info_keywords,
                   append=logger.is_appending())  # fmt: skip
