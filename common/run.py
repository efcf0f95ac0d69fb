"""A run from its first check to its last line: what both scripts do once they know their flags."""

import argparse
import contextlib
import fcntl
import functools
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from mpi4py import MPI

from common import logger, play
from common.checkpoint import (
    Checkpointer,
    StopRequested,
    checkpoint_files,
    tidy_checkpoints,
)
from common.cmd_util import LIMITS, ArgumentParser, describe, flag, parse_args
from common.env_state import get_env_state, set_env_state
from common.launch import relaunch
from common.misc_util import counted, usable_cores
from common.monitor import find_monitor, truncate_monitor_file
from common.mpi_util import abort_job_on_error, agree
from common.policy_file import describe_policy, set_learned, write_policy
from common.progress import console_while_training, limits_of
from common.torch_util import at_most_weights
from common.tracking import check_tracking, track
from common.watchdog import Watchdog

STARTUP_SECONDS = 60.0  # that no stall timeout cuts short: imports may wait for a slow disk
LINE_LOGS = ("progress.csv", "progress.json")
CARRIED = {"ob": "observation_space", "ac": "action_space", "prevac": "action_space"}
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "ale-py", "gymnasium-robotics", "mpi4py")


class Algorithm(Protocol):
    """What `run` asks of a module that learns."""

    @property
    def HYPERPARAMETERS(self) -> tuple[str, ...]:
        """Names of the arguments that `learn` takes as keywords."""

    @property
    def check_hyperparameters(self) -> Callable[[dict[str, Any]], None]:
        """Raises ValueError naming one that is out of its range."""

    @property
    def learn(self) -> Callable[..., Any]:
        """Called as learn(env, policy_fn, **hyperparameters, callback, compile, state)."""

    @property
    def learner_state(self) -> Callable[[dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]:
        """Returns what all ranks share and this rank's own state, from `learn`'s locals."""


def run(
    parser: ArgumentParser,
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    *,
    title: str,
    resolve_id: Callable[[str], str],
    make_env: Callable[..., gym.Env],
    make_policy: Callable[[argparse.Namespace, str, gym.Space, gym.Space], torch.nn.Module],
    algorithm: Algorithm,
) -> None:
    """Train as the command line says, from its first check to the last line of the log.

    Nothing is written before all checks have passed on all ranks. From then on, an exception on
    one rank ends the whole job.

    Args:
        parser: of all flags.
        presets: arguments by preset.
        argv: the command line; None is the process's own.
        title: of the run, for its folder's name.
        resolve_id: returns the environment id to make; raises ValueError for a bad one.
        make_env: returns this rank's environment for the arguments and the job's seed, by which
            it seeds this rank; None seeds nothing. `render_mode=` is for --play and --video.
        make_policy: returns a policy of the given name for two spaces; raises ValueError for
            spaces that it cannot handle.
        algorithm: the module that learns, an `Algorithm`.

    Collective: every rank must call it.

    Raises:
        SystemExit: on all ranks; exit code 2 for a bad command line, 128 + the signal's number
            for a run that a signal ended, 1 for one whose last state could not be saved.
    """
    with abort_job_on_error(), contextlib.ExitStack() as at_end:
        logger.reset()  # an earlier run in this process may have failed
        args = parse_args(parser, presets, argv)
        if args.num_procs:
            check_run(parser, lambda: relaunch(args.num_procs, as_called=argv is not None))
        checkpoint, loaded = vars(args).pop("checkpoint"), vars(args).pop("loaded")
        trains = any(getattr(args, name) for name in LIMITS)
        watchdog = start_watchdog(args.stall_timeout)
        if watchdog is not None:
            at_end.callback(watchdog.stop)
        torch.set_num_threads(args.threads)
        hyperparameters = {name: getattr(args, name) for name in algorithm.HYPERPARAMETERS}
        weights = math.inf  # of the network, unless it comes from a file
        if loaded is not None:
            weights = loaded.weights
        elif checkpoint is not None:
            weights = len(checkpoint["shared"]["theta"])

        def policy_fn(name: str, ob_space: gym.Space, ac_space: gym.Space) -> torch.nn.Module:
            with at_most_weights(weights):
                pi = make_policy(args, name, ob_space, ac_space).to(device_of(args))
            if loaded is not None and name != "oldpi":
                loaded.load_into(pi)
            return pi

        def check() -> None:
            try:
                if trains:
                    algorithm.check_hyperparameters(hyperparameters)
            except ValueError as error:
                names = re.compile(rf"\b({'|'.join(hyperparameters)})\b")
                raise ValueError(names.sub(lambda m: flag(m[0]), str(error))) from error
            args.given_env = getattr(args, "given_env", args.env)
            args.env = resolve_id(args.env)
            if loaded is not None and not trains:
                loaded.check_env(args.env)
            env = make_env(args, None)
            probe = policy_fn("probe", env.observation_space, env.action_space)
            if checkpoint is not None:
                check_fits(checkpoint, args, env, probe)
            env.close()
            if not trains and args.evaluate and args.log_path:
                args.json = args.json or os.path.join(args.log_path, "evaluation.json")
            play.check_flags(args, make_env)
            if "tensorboard" in args.log_format:
                importlib.import_module("tensorboard")
            if args.track and MPI.COMM_WORLD.Get_rank() == 0:
                check_tracking()

        check_run(parser, check)
        if not trains:
            at_end.close()
            show_untrained(args, policy_fn, make_env)
            return
        lock = begin_run(parser, args, argv, title=title, checkpoint=checkpoint)
        if lock is not None:
            at_end.callback(os.close, lock)
        at_end.callback(logger.reset)
        at_end.enter_context(folder_in_errors())
        state, env_state = resumed_state(checkpoint)
        # A resumed run whose environments begin anew must not meet the same episodes once more.
        env = make_env(args, (args.seed + (state or {}).get("iters_so_far", 0)) % 2**32)
        at_end.callback(env.close)
        if env_state is not None:
            set_env_state(env, env_state)
        callback = RunCallback(args, env, algorithm.learner_state, watchdog)
        at_end.callback(callback.checkpointer.close)
        try:
            with console_while_training(limits_of(args), quiet=args.quiet) as callback.progress:
                pi = algorithm.learn(
                    env, policy_fn, callback=callback, compile=args.compile, state=state,
                    **hyperparameters,
                )  # fmt: skip
        except SystemExit as leave:  # by one rank's environment, say: the others would wait for it
            raise RuntimeError(f"training was left by sys.exit({leave.code!r})") from leave
        except Paused as pause:
            callback.finish()
            outcome = "and saved" if callback.checkpointer.is_saved else "but NOT saved"
            logger.log(f"{pause}, {outcome}; go on with --resume {logger.get_dir()}")
            pi = callback.checkpointer.local["pi"]
        except StopRequested as stop:
            logger.log(f"{stop}; go on with --resume {logger.get_dir()}")
            logger.reset()
            sys.exit(128 + stop.signum if callback.checkpointer.is_saved else 1)
        callback.finish()
        folder = logger.get_dir()
        is_saved = save_policy(args, pi) and callback.checkpointer.is_saved
        goes_on = args.evaluate or args.video or args.play or args.track
        if not goes_on:
            logger.log(f"Logged to {folder}")
        at_end.close()  # what is shown now belongs to no log, and signals end it
        play.show(args, pi, make_env, folder=folder)
        if goes_on:
            logger.log(f"Logged to {folder}")
        if not is_saved:
            sys.exit(1)  # training is done, but what it gave is not there


@contextlib.contextmanager
def folder_in_errors() -> Iterator[None]:
    """Name the run's folder in a note on an exception that passes."""
    try:
        yield
    except Exception as error:
        error.add_note(f"Logged to {logger.get_dir()}")
        raise


def start_watchdog(stall_timeout: float) -> Watchdog | None:
    """Return a watchdog over all that comes before the first iteration; None for a timeout of 0."""
    if not stall_timeout:
        return None
    return Watchdog(
        max(stall_timeout, STARTUP_SECONDS),
        lambda: "starting",
        name=f"rank {MPI.COMM_WORLD.Get_rank()} of {MPI.COMM_WORLD.Get_size()}",
    )


class Paused(Exception):
    """Raised on all ranks together, once --stop-timesteps is reached."""


class RunCallback:
    """What happens at the start of each iteration: checkpoints and signals."""

    def __init__(
        self,
        args: argparse.Namespace,
        env: gym.Env,
        learner_state: Callable[[dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]],
        watchdog: Watchdog | None,
    ) -> None:
        """Take over the signals."""
        self.env = env
        self.learner_state = learner_state
        self.stall_timeout = args.stall_timeout
        self.stop_timesteps = args.stop_timesteps or math.inf
        self.watchdog = watchdog
        self.first_update: int | None = None
        self.progress: Callable[[dict[str, Any]], None] = lambda local: None
        self.checkpointer = Checkpointer(
            Path(str(logger.get_dir()), "checkpoints"),
            interval=args.save_interval,
            keep=args.keep,
            collect=self.collect,
            header={"arguments": vars(args), "versions": package_versions()},
        )

    def __call__(self, local: dict[str, Any], global_: dict[str, Any]) -> None:
        """Have the watchdog watch training, from the first call on; show progress; save in time.

        Raises:
            Paused: where the schedule goes on, but this process was told to stop.
            StopRequested: as `Checkpointer` does.
        """
        if self.watchdog is not None:
            monitor, adam = find_monitor(self.env), local["adam"]
            if self.first_update is None:
                self.first_update = adam.t
            is_starting = adam.t == self.first_update  # compiling comes before the first update
            self.watchdog.watch(
                max(self.stall_timeout, STARTUP_SECONDS * is_starting),
                lambda: (getattr(monitor, "total_steps", None), adam.t),
            )
        self.progress(local)
        self.checkpointer(local, global_)
        timesteps = local["timesteps_so_far"]
        if timesteps >= self.stop_timesteps:
            raise Paused(f"paused after {timesteps} timesteps")

    def collect(self, local: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a checkpoint holds of this rank, and of all."""
        shared, own = self.learner_state(local)
        if hasattr(local["pi"], "ARGUMENTS"):
            self.checkpointer.header["policy"] = describe_policy(local["pi"])
        monitor = find_monitor(self.env)
        text_log = Path(str(logger.get_dir()), text_log_name(MPI.COMM_WORLD.Get_rank()))
        own["env"] = get_env_state(self.env)
        own["monitor_rows"] = monitor.rows if monitor is not None else 0
        own["log_bytes"] = text_log.stat().st_size if text_log.exists() else 0
        if MPI.COMM_WORLD.Get_rank() == 0:
            shared["log_lines"] = {
                name: count_lines(text_log.with_name(name)) for name in LINE_LOGS
            }
        return shared, own

    def finish(self) -> None:
        """Save the last state, unless it is saved already. Collective: every rank must call it."""
        if self.checkpointer.last_saved != self.checkpointer.local.get("iters_so_far"):
            self.checkpointer.save()


def device_of(args: argparse.Namespace) -> torch.device:
    """Return this rank's device; with `cuda`, ranks take the machine's GPUs in turn.

    Raises:
        ValueError: if there is no such device.
    """
    try:
        device = torch.device(args.device)
    except RuntimeError as error:
        raise ValueError(f"--device {args.device}: need cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"--device {args.device}: need cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: PyTorch sees no CUDA GPU on this machine")
    torch.backends.cudnn.allow_tf32 = False  # the CPU's numbers to 1e-4, which TF32 would not give
    count = torch.cuda.device_count()
    index = MPI.COMM_WORLD.Get_rank() % count if device.index is None else device.index
    if index >= count:
        raise ValueError(f"--device {args.device}: this machine has {counted(count, 'GPU')}")
    return torch.device("cuda", index)


def show_untrained(
    args: argparse.Namespace, policy_fn: Callable[..., Any], make_env: Callable[..., gym.Env]
) -> None:
    """Do without training, and without a folder, what was asked for beside it.

    Collective: every rank must call it.
    """
    if args.seed is None:
        args.seed = secrets.randbelow(2**31)
    args.seed = MPI.COMM_WORLD.bcast(args.seed)
    env = make_env(args, args.seed)
    pi = policy_fn("pi", env.observation_space, env.action_space)
    env.close()
    is_saved = save_policy(args, pi)
    play.show(args, pi, make_env, folder=None)
    if not is_saved:
        sys.exit(1)


def save_policy(args: argparse.Namespace, pi: Any) -> bool:
    """Write the policy to --save-path, if that is given, on rank 0; return False if that fails."""
    if args.save_path and MPI.COMM_WORLD.Get_rank() == 0:
        path = Path(args.save_path)
        try:
            write_policy(path, pi, settings=vars(args), versions=package_versions())
        except OSError as error:
            logger.warn(f"WARNING: the policy was not written: {describe(error)}")
            return False
        logger.log(f"Saved the policy to {path}")
    return True


# ---- Before training ----------------------------------------------------------------------------


def check_run(parser: ArgumentParser, check: Callable[[], object]) -> None:
    """Run `check` on all ranks; if it raises on any, end the job through `parser.error`.

    Collective: every rank must call it.
    """
    message = agree(check, describe=describe)
    if message is not None:
        try:
            parser.error(message)
        finally:
            # A launcher may end the job when the first rank leaves: rank 0 speaks before that.
            MPI.COMM_WORLD.Barrier()


def begin_run(
    parser: ArgumentParser,
    args: argparse.Namespace,
    argv: Sequence[str] | None,
    *,
    title: str,
    checkpoint: dict[str, Any] | None,
) -> int | None:
    """Fill `args.seed` and `args.log_path` if not given, open the logs, say what runs where.

    Collective: every rank must call it.

    Returns:
        rank 0's open lock file; None on the other ranks.
    """
    comm = MPI.COMM_WORLD
    if args.seed is None:
        args.seed = secrets.randbelow(2**31)
    if not args.log_path:
        args.log_path = new_folder(args, title)
    args.seed, args.log_path = comm.bcast((args.seed, args.log_path))  # rank 0's count
    is_root = comm.Get_rank() == 0
    lock = earlier = None

    def open_logs() -> None:
        nonlocal lock, earlier
        if is_root:
            lock = lock_folder(Path(args.log_path))
            if checkpoint is None:
                earlier = set_aside_earlier_run(Path(args.log_path))
            else:
                cut_logs(Path(args.log_path), checkpoint)
                tidy_checkpoints(
                    Path(args.log_path, "checkpoints"), checkpoint["shared"]["iters_so_far"]
                )

    check_run(parser, open_logs)
    is_new = checkpoint is None
    formats = args.log_format if is_root else None
    check_run(parser, lambda: logger.configure(args.log_path, formats, append=not is_new))
    if is_root:
        write_config(args, argv, checkpoint)
    if args.track:
        folder = Path(args.log_path).absolute()
        check_run(parser, lambda: track(args, folder, append=not is_new) if is_root else None)
    if earlier is not None:
        logger.log(f"The run that was there is now in {earlier}")
    ranks = counted(comm.Get_size(), "rank")
    logger.log(f"{title} on {args.env}, preset {args.preset}, {ranks}, seed {args.seed}")
    logger.log(", ".join(f"{name} {version}" for name, version in package_versions().items()))
    return lock


def lock_folder(folder: Path) -> int:
    """Make a run's folder and lock it; the lock goes with the process.

    Raises:
        ValueError: if another run has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        text = f"cannot write logs: {error.strerror}"
        raise OSError(error.errno, text, error.filename) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another run is writing to {str(folder)!r}") from None
    except OSError as error:  # of a file system without locks
        logger.warn(
            f"WARNING: cannot lock {folder}, so mind that no other run writes there: {error}"
        )
    return lock


def set_aside_earlier_run(folder: Path) -> Path | None:
    """Clear a folder that a new run takes over of what an earlier one left.

    Its checkpoints would pass for the new one's, and the other ranks' files for the new ranks'.

    Returns:
        the folder `earlier-N` in it that has them now; None for a run without a checkpoint, whose
        files are removed.
    """
    checkpoints = checkpoint_files(folder / "checkpoints")
    paths = [
        *checkpoints,
        *folder.glob("checkpoints/iteration-*.set-aside"),
        *folder.glob("checkpoints/.iteration-*.partial"),
        *folder.glob("[0-9]*.monitor.csv"),
        *folder.glob("log-rank[0-9]*.txt"),
        *folder.glob("progress.json"),
        *folder.glob("progress.csv"),
        *folder.glob("log.txt"),
        *folder.glob("config.json"),
        *folder.glob("evaluation.json"),
        *folder.glob("wandb-id"),
    ]
    if not checkpoints:
        for path in paths:
            path.unlink()
        return None
    numbers = itertools.count(1)
    earlier = next(x for n in numbers if not (x := folder / f"earlier-{n}").exists())
    for path in paths:
        target = earlier / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return earlier


def new_folder(args: argparse.Namespace, title: str) -> str:
    """Return runs/<environment>__<title>__<seed>__<time>, with a number behind it if it exists."""
    name = [re.sub("[/:]", "-", args.env), title, str(args.seed), time.strftime("%Y%m%d-%H%M%S")]
    folder = base = os.path.join("runs", "__".join(name))
    count = 1
    while os.path.exists(folder):
        count += 1
        folder = f"{base}-{count}"
    return folder


def write_config(
    args: argparse.Namespace, argv: Sequence[str] | None, checkpoint: dict[str, Any] | None
) -> None:
    """Write config.json; a resumed run adds an entry to the list `resumed` in the one there is.

    A failure is a warning, as with all logs.
    """
    path = Path(args.log_path, "config.json")
    config = run_config(args, argv)
    if checkpoint is not None:
        resume = {"iteration": checkpoint["shared"]["iters_so_far"], **config}
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
            config = {**written, "resumed": [*written.get("resumed", []), resume]}
        except FileNotFoundError:
            config["resumed"] = [resume]
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            logger.warn(f"WARNING: {path} is not what a run writes, and is written anew: {error}")
            config["resumed"] = [resume]
    partial = path.with_suffix(".json.tmp")
    try:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        logger.warn(f"WARNING: {path} was not written: {error}")


def run_config(args: argparse.Namespace, argv: Sequence[str] | None) -> dict[str, Any]:
    """Return what makes a run, for config.json: arguments, versions, ranks, and where it ran."""
    flags = sys.argv[1:] if argv is None else argv
    return {
        "arguments": vars(args),
        "command": [sys.executable, sys.argv[0], *flags],
        "ranks": MPI.COMM_WORLD.Get_size(),
        "hostname": platform.node(),
        "cores": usable_cores(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": git_commit(),
        "versions": package_versions(),
        "mpi": " ".join(MPI.Get_library_version().split("\n")[0].split()),
    }


@functools.cache
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


# ---- Resuming -----------------------------------------------------------------------------------


def check_fits(
    checkpoint: dict[str, Any], args: argparse.Namespace, env: gym.Env, probe: Any
) -> None:
    """Check that a checkpoint is of this run's environment and network.

    Args:
        checkpoint: its content.
        args: this run's.
        env: built as the run will build it; it is brought to the saved state, if there is one.
        probe: a policy.

    Raises:
        ValueError: saying what differs.
    """
    if args.env != checkpoint["arguments"]["env"]:
        raise ValueError(f"the checkpoint is of {checkpoint['arguments']['env']}, not {args.env}")
    saved = [tuple(shape) for shape in checkpoint["shared"]["shapes"]]
    here = [tuple(variable.shape) for variable in probe.get_trainable_variables()]
    if saved != here:
        saved_size, size = (sum(map(math.prod, shapes)) for shapes in (saved, here))
        raise ValueError(
            f"the saved network has {saved_size} weights in {len(saved)} arrays, this run's {size} "
            f"in {len(here)}" + (", of other shapes" if saved_size == size else "")
        )
    set_learned(probe, checkpoint["shared"])
    ranks = checkpoint["ranks"]
    if len(ranks) == MPI.COMM_WORLD.Get_size():
        own = ranks[MPI.COMM_WORLD.Get_rank()]
        if own["env"] is not None:
            set_env_state(env, own["env"])
        for name, space in CARRIED.items():
            check_carried(name, own.get("carry"), getattr(env, space))


def check_carried(name: str, carry: dict[str, Any] | None, space: gym.Space) -> None:
    """Raise ValueError for a saved observation or action that is of another kind than `space`."""
    if carry is None:
        return
    value = np.asarray(carry[name])
    is_kept = isinstance(space, gym.spaces.Box)  # whose actions may lie outside
    if value.shape != (space.shape or ()) or not (is_kept or space.contains(carry[name])):
        raise ValueError(
            f"the saved {name}, of shape {value.shape}, is not of this environment's {space}"
        )


def resumed_state(checkpoint: dict[str, Any] | None) -> tuple[dict[str, Any] | None, Any]:
    """Return the state for `learn`, and the environment's, of this rank; None where there is none.

    With another number of ranks, or an environment whose state is not known, the environments
    begin a fresh episode; a line says so.
    """
    if checkpoint is None:
        return None, None
    comm = MPI.COMM_WORLD
    state, ranks = dict(checkpoint["shared"]), checkpoint["ranks"]
    iteration = state["iters_so_far"]
    if len(ranks) != comm.Get_size():
        logger.log(
            f"Resuming before iteration {iteration}, the number of ranks now {comm.Get_size()} "
            f"instead of {len(ranks)}: not exactly what the run would have been"
        )
        return state, None
    own = ranks[comm.Get_rank()]
    state["random"] = own["random"]
    if own["env"] is None and iteration > 0:  # before 0, its seed says all
        logger.log(
            f"Resuming before iteration {iteration} with fresh episodes: the environment's own "
            "state cannot be saved"
        )
        return state, None
    if "carry" in own:  # which a run that was stopped before its first segment has not
        state["carry"] = own["carry"]
    logger.log(f"Resuming before iteration {iteration}, exactly")
    return state, own["env"]


def cut_logs(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Cut all ranks' logs back to what they held when the checkpoint was written."""
    for name, count in checkpoint["shared"]["log_lines"].items():
        cut_lines(folder / name, count)
    for rank, own in enumerate(checkpoint["ranks"]):
        text_log = folder / text_log_name(rank)
        if text_log.exists() and text_log.stat().st_size > own["log_bytes"]:
            os.truncate(text_log, own["log_bytes"])
        truncate_monitor_file(folder / f"{rank}.monitor.csv", own["monitor_rows"])


def count_lines(path: Path) -> int:
    """Return how many lines a file has, 0 if there is none."""
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def cut_lines(path: Path, count: int) -> None:
    """Keep the first `count` lines of a file, if there is one."""
    if path.exists():
        with open(path, "rb+") as file:
            for _ in range(count):
                file.readline()
            file.truncate(file.tell())


def text_log_name(rank: int) -> str:
    """Return the name of a rank's text log."""
    return "log.txt" if rank == 0 else f"log-rank{rank:03d}.txt"
