"""A run from its first check to its last line: what both scripts do once they know their flags."""

import argparse
import contextlib
import functools
import importlib
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
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from common import logger, play
from common.checkpoint import (
    Checkpointer,
    StopRequested,
    tidy_checkpoints,
)
from common.cmd_util import (
    LIMITS,
    LOCK_SECONDS,
    ArgumentParser,
    describe,
    flag,
    has_checkpoints,
    parse_args,
)
from common.env_state import get_env_state, set_env_state
from common.files import FolderLock, folder_path, is_folder, no_link, replacing, set_aside
from common.launch import LaunchError, check_world, launched_rank, relaunch
from common.misc_util import counted, usable_cores
from common.monitor import Monitor, find_monitor, truncate_monitor_file
from common.mpi import MPI
from common.mpi_util import abort_job_on_error, agree, rank_on_machine
from common.policy_file import describe_policy, set_learned, write_policy
from common.progress import console_while_training, limits_of
from common.provenance import (
    changed_files,
    differences,
    machine_facts,
    mpi_library,
    package_versions,
    source_digests,
)
from common.torch_util import at_most_weights
from common.tracking import check_tracking, track
from common.watchdog import Watchdog

LearnerState = Callable[[dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]

STARTUP_SECONDS = 60.0  # that no stall timeout cuts short: imports may wait for a slow disk
LINE_LOGS = ("progress.csv", "progress.json")
# What a run has in its folder, other ranks' files included
OWN_FILES = re.compile(
    r"config\.json|evaluation\.json|wandb-id|.*monitor\.csv"
    r"|log(-rank\d+)?\.txt|progress(-rank\d+)?\.(csv|json)"
)
OWN_FOLDERS = re.compile(r"checkpoints|tb(-rank\d+)?")
CARRIED = {"ob": "observation_space", "ac": "action_space", "prevac": "action_space"}


def run(
    parser: ArgumentParser,
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    *,
    title: str,
    resolve_id: Callable[[str], str],
    make_env: Callable[..., gym.Env],
    make_policy: Callable[[argparse.Namespace, str, gym.Space, gym.Space], torch.nn.Module],
    learn: Callable[..., Any],
    hyperparameters: Sequence[str],
    check_hyperparameters: Callable[[dict[str, Any]], None],
    learner_state: LearnerState,
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
        learn: called as learn(env, policy_fn, **hyperparameters, callback, compile, state).
        hyperparameters: names of its keywords, which are arguments of the command line too.
        check_hyperparameters: raises ValueError naming one that is out of its range.
        learner_state: returns what all ranks share and this rank's own state, from `learn`'s
            locals.

    Collective: every rank must call it.

    Raises:
        SystemExit: on all ranks; exit code 2 for a bad command line, 128 + the signal's number
            for a run that a signal ended, 1 for one whose last state could not be saved.
    """
    with (
        abort_job_on_error(),
        FolderLock() as lock,
        contextlib.ExitStack() as at_very_end,
        contextlib.ExitStack() as at_end,
    ):
        logger.reset()  # an earlier run in this process may have failed
        check_launcher(parser)
        args = parse_args(parser, presets, argv, lock=lock)
        check_same_start(parser, argv, learn, make_env)
        if args.num_procs:
            check_run(parser, lambda: relaunch(args.num_procs, as_called=argv is not None))
        checkpoint, loaded = vars(args).pop("checkpoint"), vars(args).pop("loaded")
        trains = any(getattr(args, name) for name in LIMITS)
        watchdog = start_watchdog(args.stall_timeout)
        at_very_end.callback(watchdog.stop)
        own_gpu = rank_on_machine()
        torch.set_num_threads(args.threads)
        values = {name: getattr(args, name) for name in hyperparameters}
        made_with: dict[str, Any] = {"versions": package_versions()}
        weights = math.inf  # of the network, unless it comes from a file
        if loaded is not None:
            weights = loaded.weights
        elif checkpoint is not None:
            weights = len(checkpoint["shared"]["theta"])

        def policy_fn(name: str, ob_space: gym.Space, ac_space: gym.Space) -> torch.nn.Module:
            with at_most_weights(weights):
                pi = make_policy(args, name, ob_space, ac_space).to(device_of(args, own_gpu))
            if loaded is not None and name != "oldpi":
                loaded.load_into(pi)
            return pi

        def check() -> None:
            try:
                if trains:
                    check_hyperparameters(values)
            except ValueError as error:
                names = re.compile(rf"\b({'|'.join(values)})\b")
                raise ValueError(names.sub(lambda m: flag(m[0]), str(error))) from error
            args.given_env = getattr(args, "given_env", args.env)
            args.env = resolve_id(args.env)
            if loaded is not None and not trains:
                loaded.check_env(args.env)
            with play.closing(make_env(args, None)) as env:
                probe = policy_fn("probe", env.observation_space, env.action_space)
                if checkpoint is not None:
                    check_fits(checkpoint, args, env, probe)
            if trains and args.log_path and MPI.COMM_WORLD.Get_rank() == 0:
                check_folder(Path(args.log_path), resumes=checkpoint is not None)
            if not trains and args.evaluate and args.log_path and not args.json:
                play.check_writable(Path(args.log_path, "evaluation.json"))
            play.check_flags(args, make_env)
            if "tensorboard" in args.log_format:
                importlib.import_module("tensorboard")
            if args.track and MPI.COMM_WORLD.Get_rank() == 0:
                check_tracking()
            made_with["code"] = source_digests(learn, make_env, env=env, pi=probe)

        check_run(parser, check)
        make_watched_env = functools.partial(watched_env, make_env, watchdog)
        if not trains:
            show_untrained(args, policy_fn, make_watched_env)
            return
        begin_run(parser, args, argv, title=title, checkpoint=checkpoint, lock=lock)
        at_end.callback(logger.reset)
        at_end.enter_context(folder_in_errors())
        made_with["machine"] = machine_facts(device_of(args, own_gpu), MPI.COMM_WORLD)
        state, env_state = resumed_state(checkpoint, made_with)
        # A resumed run whose environments begin anew must not meet the same episodes once more.
        env = make_env(args, (args.seed + (state or {}).get("iters_so_far", 0)) % 2**32)
        at_end.enter_context(play.closing(env))
        if env_state is not None:
            set_env_state(env, env_state)
        callback = RunCallback(args, env, learner_state, watchdog, checkpoint, made_with)
        at_end.callback(callback.checkpointer.close)
        try:
            with console_while_training(limits_of(args), quiet=args.quiet) as callback.progress:
                pi = learn(
                    env, policy_fn, callback=callback, compile=args.compile, state=state,
                    **values,
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
        is_shown = play.show(args, pi, make_watched_env, folder=folder)
        if goes_on:
            logger.log(f"Logged to {folder}")
        if not (is_saved and is_shown):
            sys.exit(1)  # training is done, but what it gave is not there


@contextlib.contextmanager
def folder_in_errors() -> Iterator[None]:
    """Name the run's folder in a note on an exception that passes."""
    try:
        yield
    except Exception as error:
        error.add_note(f"Logged to {logger.get_dir()}")
        raise


def check_launcher(parser: ArgumentParser) -> None:
    """Leave with exit code 2 if the launcher's ranks do not see each other; its rank 0 says so."""
    try:
        check_world()
    except LaunchError as error:
        if launched_rank() == 0:
            parser.error(str(error))
        time.sleep(1.0)  # a launcher may end the job when the first rank leaves
        sys.exit(2)


def check_same_start(
    parser: ArgumentParser, argv: Sequence[str] | None, *functions: Callable[..., Any]
) -> None:
    """End the job through `parser.error` if a rank's flags, packages or code are not rank 0's.

    Args:
        parser: for the error.
        argv: the command line; None is the process's own.
        functions: of the script and of the algorithm, as for `source_digests`.

    Collective: every rank must call it.
    """
    comm = MPI.COMM_WORLD
    if comm.Get_size() == 1:
        return
    flags = " ".join(sys.argv[1:] if argv is None else argv)
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    own, own_code = {"flags": flags, "versions": versions}, source_digests(*functions)
    first, code = comm.bcast((own, own_code))

    def compare() -> None:
        for name, value in first.items():
            if own[name] != value:
                raise ValueError(f"started with other {name} than rank 0: {own[name]}, not {value}")
        if files := changed_files(code, own_code):
            raise ValueError(f"started with other code than rank 0, in {files}")

    check_run(parser, compare)


def start_watchdog(stall_timeout: float) -> Watchdog:
    """Return a watchdog over all that comes before the first iteration.

    With a timeout of 0 it watches whether the launcher lives, and nothing else.
    """
    return Watchdog(
        max(stall_timeout, STARTUP_SECONDS) if stall_timeout else math.inf,
        lambda: "starting",
        name=f"rank {MPI.COMM_WORLD.Get_rank()} of {MPI.COMM_WORLD.Get_size()}",
    )


def watched_env(
    make_env: Callable[..., gym.Env],
    watchdog: Watchdog,
    args: argparse.Namespace,
    seed: int | None,
    **options: Any,
) -> gym.Env:
    """Return the script's environment, monitored; its steps are from now on what must move.

    A window is another matter: somebody may have paused it.
    """
    stall_timeout = args.stall_timeout or math.inf
    watchdog.watch(max(stall_timeout, STARTUP_SECONDS), lambda: "starting")
    env = make_env(args, seed, **options)
    monitor: Any = find_monitor(env)
    if monitor is None:
        env = monitor = Monitor(env, None, allow_early_resets=True)
    is_window = options.get("render_mode") == "human"
    watchdog.watch(math.inf if is_window else stall_timeout, lambda: monitor.total_steps)
    return env


class Paused(Exception):
    """Raised on all ranks together, once --stop-timesteps is reached."""


class RunCallback:
    """What happens at the start of each iteration: checkpoints and signals."""

    has_warned = False  # that the environment's state is not saved

    def __init__(
        self,
        args: argparse.Namespace,
        env: gym.Env,
        learner_state: LearnerState,
        watchdog: Watchdog,
        checkpoint: dict[str, Any] | None,
        made_with: dict[str, Any],
    ) -> None:
        """Take over the signals."""
        lengths = [] if checkpoint is None else logged_lengths(checkpoint)
        self.env = env
        self.learner_state = learner_state
        self.stall_timeout = args.stall_timeout or math.inf
        self.stop_timesteps = args.stop_timesteps or math.inf
        self.watchdog = watchdog
        self.first_update: int | None = None
        self.progress: Callable[[dict[str, Any]], None] = lambda local: None
        self.checkpointer = Checkpointer(
            Path(str(logger.get_dir()), "checkpoints"),
            interval=args.save_interval,
            keep=args.keep,
            collect=self.collect,
            header={
                "arguments": vars(args),
                **made_with,
                # Of ranks that the run once had, whose files stay
                "former_ranks": lengths[MPI.COMM_WORLD.Get_size() :],
            },
        )

    def __call__(self, local: dict[str, Any], global_: dict[str, Any]) -> None:
        """Have the watchdog watch training, from the first call on; show progress; save in time.

        Raises:
            Paused: where the schedule goes on, but this process was told to stop.
            StopRequested: as `Checkpointer` does.
        """
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
        folder, rank = Path(str(logger.get_dir())), MPI.COMM_WORLD.Get_rank()
        text_log = folder / name_for_rank("log.txt", rank)
        try:
            own["env"] = get_env_state(self.env)
        except Exception as error:  # what was learned is worth more than where an episode stands
            if not self.has_warned:
                logger.warn(f"WARNING: the environment's state is not saved: {describe(error)}")
            self.has_warned = True
            own["env"] = None
        own["monitor_rows"] = monitor.rows if monitor is not None else 0
        own["log_bytes"] = text_log.stat().st_size if text_log.exists() else 0
        lines = {name: count_lines(folder / name_for_rank(name, rank)) for name in LINE_LOGS}
        (shared if rank == 0 else own)["log_lines"] = lines
        return shared, own

    def finish(self) -> None:
        """Save the last state, unless it is saved already. Collective: every rank must call it."""
        if self.checkpointer.last_saved != self.checkpointer.local.get("iters_so_far"):
            self.checkpointer.save()


def device_of(args: argparse.Namespace, rank_here: int) -> torch.device:
    """Return this rank's device; with `cuda`, a machine's ranks take its GPUs in turn.

    Args:
        args: of the command line.
        rank_here: this rank's number on its machine.

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
    index = rank_here % count if device.index is None else device.index
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
    with play.closing(make_env(args, args.seed)) as env:
        pi = policy_fn("pi", env.observation_space, env.action_space)
    is_saved = save_policy(args, pi)
    is_shown = play.show(args, pi, make_env, folder=args.log_path)
    if not (is_saved and is_shown):
        sys.exit(1)


def save_policy(args: argparse.Namespace, pi: Any) -> bool:
    """Write the policy to --save-path, if that is given, on rank 0; return False if that fails."""
    if args.save_path and MPI.COMM_WORLD.Get_rank() == 0:
        path = Path(args.save_path)
        try:
            write_policy(path, pi, settings=vars(args), versions=package_versions())
        except Exception as error:
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


def check_folder(folder: Path, *, resumes: bool) -> None:
    """Check that a run in this folder touches no files but those of runs.

    Args:
        folder: the run's, which may not exist yet.
        resumes: whether its run goes on, in its files, rather than a new one sets them aside.

    Raises:
        ValueError: naming a file or folder of somebody else's, or a link out of the run's folder.
    """
    names = own_names(folder)
    links = [name for name in names if (folder / name).is_symlink()]
    if resumes and links:
        raise ValueError(
            f"{folder / links[0]} is a symbolic link, through which no run writes: "
            "put what it leads to in its place"
        )
    is_locked_by_one = resumes and (folder / FolderLock.NAME).exists()
    if names and not (is_run(folder) or is_locked_by_one):
        name = "config.json" if "config.json" in names else names[0]
        raise ValueError(
            f"{folder / name} was not written by a run: give a folder of its own as --log-path"
        )


def own_names(folder: Path) -> list[str]:
    """Return what a folder has under the names that a run uses there."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [
        name
        for name in names
        if OWN_FILES.fullmatch(name)
        or (OWN_FOLDERS.fullmatch(name) and (is_folder(x := folder / name) or x.is_symlink()))
    ]


def is_run(folder: Path) -> bool:
    """Return whether a run has written to a folder."""
    config = read_config(folder / "config.json")
    # One that was killed early has a lock alone, and a computer that died may leave torn files
    return (folder / FolderLock.NAME).exists() if config is None else is_config(config)


def read_config(path: Path) -> Any:
    """Return what a config.json holds; None if there is none, or it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def is_config(config: Any) -> bool:
    """Return whether this is what `write_config` writes."""
    return (
        isinstance(config, dict)
        and {"arguments", "ranks"} <= config.keys()
        and isinstance(config.get("resumed", []), list)
    )


def begin_run(
    parser: ArgumentParser,
    args: argparse.Namespace,
    argv: Sequence[str] | None,
    *,
    title: str,
    checkpoint: dict[str, Any] | None,
    lock: FolderLock,
) -> None:
    """Fill `args.seed` and `args.log_path` if not given, open the logs, say what runs where.

    Rank 0 takes the lock, if it does not have it yet.

    Collective: every rank must call it.
    """
    comm = MPI.COMM_WORLD
    is_root, is_new = comm.Get_rank() == 0, checkpoint is None
    if args.seed is None:
        args.seed = secrets.randbelow(2**31)
    args.seed = comm.bcast(args.seed)  # rank 0's counts
    earlier = None
    overtaken: list[str] = []

    def open_logs() -> None:
        nonlocal earlier
        if not is_root:
            return
        args.log_path = args.log_path or new_folder(args, title)
        folder, resumes = Path(args.log_path), args.resume is not None
        lock.take(folder, wait_seconds=LOCK_SECONDS if resumes else 0.0, say=logger.log)
        if checkpoint is not None:
            earlier = cut_logs(folder, checkpoint)
            iteration = checkpoint["shared"]["iters_so_far"]
            overtaken.extend(tidy_checkpoints(folder / "checkpoints", iteration))
        elif resumes and has_checkpoints(folder):  # which this run found without any
            raise ValueError(f"another run was just now in {str(folder)!r}: --resume it again")
        else:
            earlier = set_aside(folder, own_names(folder))

    check_run(parser, open_logs)
    args.log_path = comm.bcast(args.log_path)
    formats = args.log_format if is_root else None
    check_run(parser, lambda: logger.configure(args.log_path, formats, append=not is_new))
    if is_root:
        write_config(args, argv, checkpoint)
    if args.track:
        folder = Path(args.log_path)
        check_run(parser, lambda: track(args, folder, append=not is_new) if is_root else None)
    if earlier is not None:
        what = "The run that was there" if is_new else "What ranks logged after the checkpoint"
        logger.log(f"{what} is now in {earlier}")
    if overtaken:
        logger.log(f"Set aside later checkpoints: {', '.join(overtaken)}")
    ranks = counted(comm.Get_size(), "rank")
    logger.log(f"{title} on {args.env}, preset {args.preset}, {ranks}, seed {args.seed}")
    logger.log(", ".join(f"{name} {version}" for name, version in package_versions().items()))


def new_folder(args: argparse.Namespace, title: str) -> str:
    """Return runs/<environment>__<title>__<seed>__<time>, with a number behind it if it exists."""
    name = [re.sub("[/:]", "-", args.env), title, str(args.seed), time.strftime("%Y%m%d-%H%M%S")]
    folder = base = folder_path(os.path.join("runs", "__".join(name)))
    count = 1
    while os.path.exists(folder):
        count += 1
        folder = f"{base}-{count}"
    return folder


def write_config(
    args: argparse.Namespace, argv: Sequence[str] | None, checkpoint: dict[str, Any] | None
) -> None:
    """Write config.json; a resumed run adds an entry to the list `resumed` in the one there is.

    One that is no longer what was written is set aside. A failure is a warning, as with all logs.
    """
    path = Path(args.log_path, "config.json")
    config = run_config(args, argv)
    try:
        if checkpoint is not None:
            resume = {"iteration": checkpoint["shared"]["iters_so_far"], **config}
            if is_config(found := read_config(path)):
                config = found
            elif earlier := set_aside(path.parent, [path.name]):
                logger.log(f"{path.name} was not a run's: it is now in {earlier}")
            config["resumed"] = [*config.get("resumed", []), resume]
        with replacing(path) as file:
            file.write(json.dumps(config, indent=2).encode() + b"\n")
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
        "mpi": mpi_library(),
    }


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
        if hasattr(probe, "rng") and "policy" not in own["random"]:
            raise ValueError("the checkpoint has no state of the policy's generator")
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


def resumed_state(
    checkpoint: dict[str, Any] | None, made_with: dict[str, Any]
) -> tuple[dict[str, Any] | None, Any]:
    """Return the state for `learn`, and the environment's, of this rank; None where there is none.

    With another number of ranks, or an environment whose state is not known, the environments
    begin a fresh episode. A line says so, or whether the run will be what it would have been.

    Args:
        checkpoint: to resume from, if any.
        made_with: versions, code and machine of this process.
    """
    if checkpoint is None:
        return None, None
    comm = MPI.COMM_WORLD
    state, ranks = dict(checkpoint["shared"]), checkpoint["ranks"]
    iteration = state["iters_so_far"]
    has_same_ranks = len(ranks) == comm.Get_size()
    own: dict[str, Any] = ranks[comm.Get_rank()] if has_same_ranks else {"env": None}
    if has_same_ranks:
        state["random"] = own["random"]
    # Before iteration 0, the environment's seed says all
    is_fresh = has_same_ranks and own["env"] is None and iteration > 0
    logger.log(
        f"Resuming before iteration {iteration}{how_exactly(checkpoint, made_with, is_fresh)}"
    )
    if not has_same_ranks or is_fresh:
        return state, None
    if "carry" in own:  # which a run that was stopped before its first segment has not
        state["carry"] = own["carry"]
    return state, own["env"]


def how_exactly(checkpoint: dict[str, Any], made_with: dict[str, Any], is_fresh: bool) -> str:
    """Return the end of a line on resuming: is the run what it would have been, and why not.

    Args:
        checkpoint: its content.
        made_with: versions, code and machine of this process.
        is_fresh: whether the environments begin fresh episodes.
    """
    saved_code, saved_machine = checkpoint.get("code"), checkpoint.get("machine")
    size, saved_size = MPI.COMM_WORLD.Get_size(), len(checkpoint["ranks"])
    versions, here = checkpoint.get("versions") or {}, made_with["versions"]
    if saved_code is None:  # earlier versions looked at fewer packages
        here = {name: here.get(name) for name in versions}
    perhaps = differences(versions, here)
    if saved_machine is not None and size == saved_size:
        perhaps += differences(saved_machine, made_with["machine"])
    if files := changed_files(saved_code or made_with["code"], made_with["code"]):
        perhaps.append(f"the code now another in {files}")
    changed = checkpoint.get("changed", {})
    surely = differences(
        {flag(name): checkpoint["arguments"].get(name) for name in changed},
        {flag(name): value for name, value in changed.items()},
    )
    surely += differences({"the number of ranks": saved_size}, {"the number of ranks": size})
    if is_fresh:
        others = f"; {', '.join(perhaps + surely)}" if perhaps or surely else ""
        return f" with fresh episodes: the environment's own state cannot be saved{others}"
    if perhaps or surely:
        verdict = "not exactly" if surely else "not necessarily exactly"
        return f", {', '.join(perhaps + surely)}: {verdict} what the run would have been"
    conditions = []
    if saved_code is None or saved_machine is None:
        conditions.append("if code and machine are the same, which the checkpoint does not say")
    if (was_compiled := checkpoint["shared"].get("compiled")) is not None:
        again = "if the update compiles again", "unless the update compiles this time"
        conditions.append(again[not was_compiled])
    return " ".join([", exactly", ", and ".join(conditions)]).rstrip()


def logged_lengths(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how long the logs were when a checkpoint was written, by rank.

    The list goes on with ranks that the run had before a resume with fewer.

    Returns:
        log_bytes, monitor_rows, and log_lines for names in LINE_LOGS, where they are known.
    """
    ranks = [*checkpoint["ranks"], *checkpoint.get("former_ranks", [])]
    lines = [checkpoint["shared"]["log_lines"], *(own.get("log_lines", {}) for own in ranks[1:])]
    return [
        {
            "log_bytes": own["log_bytes"],
            "monitor_rows": own["monitor_rows"],
            "log_lines": {name: counts[name] for name in LINE_LOGS if counts.get(name) is not None},
        }
        for own, counts in zip(ranks, lines, strict=True)
    ]


def cut_logs(folder: Path, checkpoint: dict[str, Any]) -> Path | None:
    """Cut all ranks' logs back to what they held when the checkpoint was written.

    Logs of ranks that the checkpoint does not know are of a future that will not be.

    Returns:
        the folder that now has those; None if there are none.
    """
    lengths = logged_lengths(checkpoint)
    for rank, own in enumerate(lengths):
        for name, count in own["log_lines"].items():
            cut_lines(folder / name_for_rank(name, rank), count)
        text_log = folder / name_for_rank("log.txt", rank)
        if text_log.exists() and text_log.stat().st_size > own["log_bytes"]:
            with open(text_log, "rb+", opener=no_link) as file:
                file.truncate(own["log_bytes"])
        truncate_monitor_file(folder / f"{rank}.monitor.csv", own["monitor_rows"])
    pattern = re.compile(r"(?:\w+-rank)?(\d+)(?:\.monitor)?(?:\.\w+)?")
    found = {name: pattern.fullmatch(name) for name in own_names(folder)}
    unknown = [name for name, rank in found.items() if rank and int(rank[1]) >= len(lengths)]
    return set_aside(folder, unknown)


def count_lines(path: Path) -> int:
    """Return how many lines a file has, 0 if there is none."""
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def cut_lines(path: Path, count: int) -> None:
    """Keep the first `count` lines of a file, if there is one."""
    if path.exists():
        with open(path, "rb+", opener=no_link) as file:
            while count and file.readline():
                count -= 1
            file.truncate(file.tell())


def name_for_rank(name: str, rank: int) -> str:
    """Return the name of a rank's own file where rank 0's is `name`."""
    stem, suffix = os.path.splitext(name)
    return name if rank == 0 else f"{stem}-rank{rank:03d}{suffix}"
