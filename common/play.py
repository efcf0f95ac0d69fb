"""A trained policy at work: evaluated, recorded to a video, shown in a window.

An episode is what Monitor counts: a whole game, its rewards neither clipped nor scaled. Episode i
begins with `env.reset(seed=seed + i)`. The action noise, the environment's spaces and the global
generators are seeded by the same number, so that an episode is the same on whichever rank it is
played, and in a video.
"""

import argparse
import contextlib
import errno
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from common import env_api, logger
from common.cmd_util import seed_generators
from common.console_util import fmt_row
from common.files import set_aside
from common.misc_util import counted, set_global_seeds, undisturbed_generators
from common.monitor import Monitor, find_monitor
from common.mpi import MPI
from common.mpi_util import CollectiveError, wait_for_all

MAX_VIDEO_STEPS = 3000  # of one episode, where no number is asked for
MAX_EVALUATION_STEPS = 100_000  # of an episode without a limit of its own; Atari's are that long
# A GIF counts hundredths of a second, and viewers slow down what is below two of them.
MAX_FPS = {".mp4": 60, ".gif": 50}
MUJOCO_GL = ("egl", "osmesa")
GL_TEST = (
    "import mujoco; from mujoco.{0} import GLContext; context = GLContext(8, 8);"
    "context.make_current();"
    "mujoco.MjrContext(mujoco.MjModel.from_xml_string('<mujoco/>'), mujoco.mjtFontScale(150))"
)


class EndlessEpisode(CollectiveError):
    """An evaluation that cannot be finished, since an episode of it does not end."""


class Evaluation(NamedTuple):
    """Raw returns and lengths, in timesteps, of whole episodes, by number of the episode."""

    returns: list[float]
    lengths: list[int]

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Return mean, standard_error (None for one episode), min and max of both."""
        return {"return": _statistics(self.returns), "length": _statistics(self.lengths)}

    def table(self) -> str:
        """Return the summary as lines of text."""
        summary = self.summary()
        names = list(summary["return"])
        rows = [["", *(name.replace("_", " ") for name in names)]]
        for what, values in summary.items():
            rows.append([what, *("-" if (x := values[n]) is None else f"{x:.6g}" for n in names)])
        return "\n".join(fmt_row(14, row, header=row is rows[0]) for row in rows)


def evaluate(
    pi: Any,
    env: gym.Env,
    episodes: int,
    *,
    seed: int = 0,
    deterministic: bool = True,
    comm: MPI.Comm | None = None,
) -> Evaluation:
    """Return the results of `episodes` whole episodes, shared out among the ranks.

    They do not depend on the number of ranks.

    Args:
        pi: the policy, the same on all ranks.
        env: this rank's environment; if it has no Monitor, its own rewards and ends count. An
            episode has MAX_EVALUATION_STEPS to end, or its `spec.max_episode_steps` if those are
            more.
        episodes: how many over all ranks, at least 1.
        seed: of the first episode.
        deterministic: take the likeliest action rather than a sample.
        comm: the ranks; None is COMM_WORLD.

    Collective: every rank must call it.

    Raises:
        EndlessEpisode: on all ranks, naming the first episode that did not end.
        FloatingPointError: if one of the policy's variables, or a value that it predicts, is not
            finite.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    _check_finite(pi)
    env = _monitored(env)
    monitor: Any = find_monitor(env)
    limit = max(getattr(env.spec, "max_episode_steps", None) or 0, MAX_EVALUATION_STEPS)
    own: dict[int, Any] = {}
    for number in range(comm.Get_rank(), episodes, comm.Get_size()):
        games = len(monitor.episode_lengths)
        own[number] = play_episode(
            pi, env, seed=seed + number, deterministic=deterministic, max_steps=limit
        )
        if len(monitor.episode_lengths) == games:
            own[number] = None  # and there is no evaluation
            break
    wait_for_all(comm)
    results: dict[int, Any] = {}
    for part in comm.allgather(own):
        results |= part
    endless = [number for number in sorted(results) if results[number] is None]
    if endless:
        raise EndlessEpisode(
            f"episode {endless[0]}, from seed {seed + endless[0]}, has not ended after {limit} "
            "steps: limit episodes by --max-episode-steps N"
        )
    returns, lengths = zip(*(results[number] for number in range(episodes)), strict=True)
    return Evaluation(list(returns), list(lengths))


def play_episode(
    pi: Any,
    env: gym.Env,
    *,
    seed: int,
    deterministic: bool,
    max_steps: float = math.inf,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[float, int]:
    """Play one whole game and return its raw return and its length in timesteps.

    Args:
        pi: the policy.
        env: with a Monitor. An end that is none to it, as of a life, is followed by a reset.
        seed: of the environment's reset, of all else that it draws from, and of the action noise.
        deterministic: take the likeliest action rather than a sample.
        max_steps: leave the game after so many steps.
        is_over: asked after each step whether to leave the game.

    Raises:
        FloatingPointError: if the policy predicts a value that is not finite.
    """
    monitor: Any = find_monitor(env)
    with _seeded(pi, env, seed):
        ob = env_api.reset(env, seed=seed % 2**32)
        games, steps = len(monitor.episode_lengths), 0
        while steps < max_steps and not is_over():
            ac, vpred = pi.act(not deterministic, ob)
            if not np.isfinite(vpred):
                culprit = "observation" if not np.isfinite(ob).all() else "policy"
                raise FloatingPointError(
                    f"the predicted value is {vpred} at step {steps} of the episode from seed "
                    f"{seed}: the {culprit} is at fault"
                )
            try:
                ob, _, terminated, truncated, _ = env.step(ac)
            except Exception as error:
                env_api.explain(error, env, ac)
                raise
            steps += 1
            if (terminated or truncated) and len(monitor.episode_lengths) == games:
                ob = env_api.reset(env)  # which may end the game
            if len(monitor.episode_lengths) > games:
                return monitor.episode_rewards[games], monitor.episode_lengths[games]
    return monitor.running_return, monitor.running_length


def record(
    pi: Any,
    env: gym.Env,
    path: Path,
    *,
    seed: int = 0,
    deterministic: bool = True,
    steps: int | None = None,
) -> int:
    """Write a video of the policy and return the number of its frames.

    It shows the environment at its own pace, with all of Atari's frames; of more frames a second
    than a viewer shows, evenly spaced ones.

    Args:
        pi: the policy.
        env: made with render_mode="rgb_array". It is changed, and of no other use afterwards.
        path: of the file, .mp4 or .gif, which appears whole or not at all.
        seed: of the first episode.
        deterministic: take the likeliest action rather than a sample.
        steps: show so many timesteps, of as many episodes as that takes. None: one episode, or
            what comes before MAX_VIDEO_STEPS.
    """
    import imageio

    env = _monitored(env)
    follow_robot(env)
    fps = frames_per_second(env)
    stride = math.ceil(fps / MAX_FPS[path.suffix])
    if path.suffix == ".gif":
        options: dict[str, Any] = {"duration": 1000 * stride / fps, "loop": 0}
    else:
        options = {"fps": fps / stride, "macro_block_size": 2}  # the format needs even sizes
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        writer: Any = imageio.get_writer(partial, **options)
        with contextlib.closing(writer):  # it would not close itself after an exception
            recorder = _insert_recorder(env, stride, writer.append_data)
            left, number = steps or MAX_VIDEO_STEPS, 0
            while left > 0 and (steps is not None or number == 0):
                left -= play_episode(
                    pi, env, seed=seed + number, deterministic=deterministic, max_steps=left
                )[1]
                number += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return recorder.shown


def play(pi: Any, env: gym.Env, *, seed: int = 0, deterministic: bool = True) -> None:
    """Show the policy, episode after episode, until the window is closed, or KeyboardInterrupt.

    Args:
        pi: the policy.
        env: made with render_mode="human".
        seed: of the first episode.
        deterministic: take the likeliest action rather than a sample.
    """
    env = _monitored(env)
    follow_robot(env)
    number = 0
    while not window_is_closed(env):
        episode = play_episode(
            pi, env, seed=seed + number, deterministic=deterministic,
            is_over=lambda: window_is_closed(env),
        )  # fmt: skip
        logger.log("Episode {}: return {:.6g}, {} steps".format(number, *episode))
        number += 1


# ---- The flags ----------------------------------------------------------------------------------

MakeEnv = Callable[..., gym.Env]


def check_flags(args: argparse.Namespace, make_env: MakeEnv) -> None:
    """Raise ValueError or OSError if something that the flags ask for cannot be done in the end.

    Args:
        args: of the command line.
        make_env: the run script's; called as make_env(args, None, render_mode=...).
    """
    if args.json and not args.evaluate:
        raise ValueError("--json is where the results of --evaluate go: give that, too")
    if args.video_steps and not args.video:
        raise ValueError("--video-steps is for --video: give that, too")
    for name in ("save_path", "json", "video"):
        if getattr(args, name):
            check_writable(Path(getattr(args, name)))
    if args.save_path and os.path.exists(args.save_path) and not os.path.isfile(args.save_path):
        raise ValueError(f"cannot write {args.save_path}: not a regular file")
    if MPI.COMM_WORLD.Get_rank() != 0:
        return
    if args.play:
        check_display()
        check_window(args, make_env)
    if args.video:
        if Path(args.video).suffix not in MAX_FPS:
            raise ValueError(f"--video {args.video}: need a name that ends in .mp4 or .gif")
        importlib.import_module("imageio")
        importlib.import_module("imageio_ffmpeg")
        check_frames(args, make_env)


def check_writable(path: Path) -> None:
    """Raise ValueError if a file could not be written; nothing is left behind."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def check_display() -> None:
    """Raise ValueError if no window can be opened."""
    if sys.platform.startswith("linux"):
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise ValueError("--play needs a display, and DISPLAY is not set; --video needs none")
        import glfw

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opens = glfw.init()
            glfw.terminate()
        if not opens:
            raise ValueError(
                f"--play: cannot open a window on display {os.environ.get('DISPLAY')!r}; "
                "--video needs none"
            )


def check_window(args: argparse.Namespace, make_env: MakeEnv) -> None:
    """Raise ValueError unless the environment can be shown in a window; it opens for a moment."""
    try:
        with (
            warnings.catch_warnings(),
            closing(make_env(args, None, render_mode="human")) as env,
        ):
            warnings.simplefilter("ignore")  # what matters comes as an exception, too
            env.reset()
    except Exception as error:
        raise ValueError(f"--play: {args.env} has no window: {error!r}") from error


def check_frames(args: argparse.Namespace, make_env: MakeEnv) -> None:
    """Raise ValueError unless the environment renders images; choose MuJoCo's renderer for it."""
    with closing(make_env(args, None)) as plain:
        is_mujoco = hasattr(plain.unwrapped, "mujoco_renderer")
    if is_mujoco and sys.platform.startswith("linux") and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = find_renderer()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters comes as an exception, too
            with closing(make_env(args, None, render_mode="rgb_array")) as env:
                env.reset()
                frame = np.asarray(env.render())
    except Exception as error:
        gl = f" with MUJOCO_GL={os.environ.get('MUJOCO_GL')}" if is_mujoco else ""
        raise ValueError(f"--video: {args.env} does not render{gl}: {error!r}") from error
    if frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"--video: {args.env} renders no images")


def find_renderer() -> str:
    """Return which of MUJOCO_GL renders here without a display, tried in processes of their own.

    Raises:
        ValueError: if none does.
    """
    for name in MUJOCO_GL:
        command = [sys.executable, "-c", GL_TEST.format(name)]
        environment = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        with contextlib.suppress(subprocess.TimeoutExpired):
            if not subprocess.run(command, env=environment, capture_output=True,
                                  timeout=60).returncode:  # fmt: skip
                return name
    raise ValueError(
        "--video: MuJoCo renders neither by EGL nor by OSMesa on this machine; one of "
        "`apt-get install libegl1 libgl1-mesa-dri` and `apt-get install libosmesa6` helps"
    )


def show(args: argparse.Namespace, pi: Any, make_env: MakeEnv, *, folder: str | None) -> bool:
    """Do what --evaluate, --video and --play ask for; return whether all of it could be done.

    Args:
        args: of the command line.
        pi: the policy, the same on all ranks.
        make_env: the run script's.
        folder: of the run that has just ended, or --log-path's, which gets `evaluation.json`; or
            None.

    Collective: every rank must call it.
    """
    options = {"seed": args.seed, "deterministic": args.deterministic}
    is_root = MPI.COMM_WORLD.Get_rank() == 0
    results = None
    is_written = True

    def make(**mode: str) -> gym.Env:
        with undisturbed_generators():  # what the constructor draws is the same on all ranks
            set_global_seeds(args.seed)
            return make_env(args, None, **mode)

    if args.evaluate:
        with closing(make()) as env:
            start = time.monotonic()
            try:
                results = evaluate(pi, env, args.evaluate, **options)
            except EndlessEpisode as error:
                logger.warn(f"WARNING: no evaluation of {args.env}: {error}")
            seconds = time.monotonic() - start
    if results is not None:
        manner = "deterministic" if args.deterministic else "sampled"
        logger.log(
            f"{counted(args.evaluate, 'episode')} of {args.env}, {manner}, from seed {args.seed}, "
            f"in {seconds:.1f} s"
        )
        logger.log(results.table())
        path = Path(args.json or (Path(folder, "evaluation.json") if folder else os.devnull))
        if is_root and str(path) != os.devnull:
            try:
                earlier = None if args.json else set_aside(path.parent, [path.name])
                if earlier is not None:
                    logger.log(f"The evaluation that was there is now in {earlier}")
                write_evaluation(path, args, results)
                logger.log(f"Wrote {path}")
            except Exception as error:
                logger.warn(f"WARNING: {path} was not written: {error}")
                is_written = False
    if args.video:
        if is_root:
            with closing(make(render_mode="rgb_array")) as env:
                frames = record(pi, env, Path(args.video), steps=args.video_steps, **options)
            logger.log(f"Wrote {args.video}: {counted(frames, 'frame')}")
        wait_for_all(MPI.COMM_WORLD)
    if args.play:
        with contextlib.suppress(KeyboardInterrupt):
            if is_root:
                logger.log("Playing until the window is closed, or Ctrl-C")
                with closing(make(render_mode="human")) as env:
                    play(pi, env, **options)
            wait_for_all(MPI.COMM_WORLD)
    return is_written and (results is not None or not args.evaluate)


@contextlib.contextmanager
def closing(env: gym.Env) -> Iterator[gym.Env]:
    """Close an environment after a block; a `close` that fails is a warning: its work is done."""
    try:
        yield env
    finally:
        try:
            env.close()
        except (Exception, SystemExit) as error:
            logger.warn(f"WARNING: the environment's close() failed: {error!r}")


def write_evaluation(path: Path, args: argparse.Namespace, results: Evaluation) -> None:
    """Write results as JSON, with what they are of."""
    content = {
        "env": args.env,
        "policy": args.load_path,
        "episodes": len(results.returns),
        "seed": args.seed,
        "deterministic": args.deterministic,
        **results.summary(),
        "returns": results.returns,
        "lengths": results.lengths,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---- Frames and windows -------------------------------------------------------------------------


class FrameRecorder(gym.Wrapper):
    """Hands every `stride`-th frame to `write`; stands next to the environment, inside all else.

    Attributes:
        shown: the number of frames so far.
    """

    def __init__(self, env: gym.Env, stride: int, write: Callable[[Any], object]) -> None:
        super().__init__(env)
        self.stride, self.write = stride, write
        self.frames = self.shown = 0

    def reset(self, **kwargs: Any) -> Any:
        """Reset, and show what there is then."""
        result = self.env.reset(**kwargs)
        self._show()
        return result

    def step(self, action: Any) -> Any:
        """Step, and show what there is then."""
        result = self.env.step(action)
        self._show()
        return result

    def _show(self) -> None:
        if self.frames % self.stride == 0:
            self.write(self.env.render())
            self.shown += 1
        self.frames += 1


def frames_per_second(env: gym.Env) -> float:
    """Return how many of its own steps an environment takes in a second: 60 in Atari games."""
    is_atari = hasattr(env.unwrapped, "ale")  # whose metadata do not know the frame skip
    return 60.0 if is_atari else float(env.metadata.get("render_fps") or 30)


def window_is_closed(env: gym.Env) -> bool:
    """Return whether somebody has closed the window of MuJoCo, or of one made with pygame."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    viewer = renderer._viewers.get("human") if renderer is not None else None
    if viewer is not None:
        import glfw

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # after Escape GLFW has ended, and warns
            return not (glfw.get_time() and not glfw.window_should_close(viewer.window))
    pygame = sys.modules.get("pygame")
    return bool(pygame and pygame.display.get_init() and pygame.event.peek(pygame.QUIT))


def follow_robot(env: gym.Env) -> None:
    """Have MuJoCo's camera go with a robot whose model has a camera for that, named "track"."""
    renderer: Any = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None:
        return
    import mujoco

    camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if camera >= 0:
        renderer.camera_id = camera  # of images; a window has a camera of its own
        body = int(renderer.model.cam_bodyid[camera])
        tracking = {"type": int(mujoco.mjtCamera.mjCAMERA_TRACKING), "trackbodyid": body}
        renderer.default_cam_config = {**(renderer.default_cam_config or {}), **tracking}


def _insert_recorder(env: Any, stride: int, write: Callable[[Any], object]) -> FrameRecorder:
    """Put a recorder around the innermost environment and return it."""
    while isinstance(env.env, gym.Wrapper):
        env = env.env
    env.env = FrameRecorder(env.env, stride, write)
    return env.env


# ---- Episodes -----------------------------------------------------------------------------------


def _monitored(env: gym.Env) -> gym.Env:
    return env if find_monitor(env) else Monitor(env, None, allow_early_resets=True)


@contextlib.contextmanager
def _seeded(pi: Any, env: gym.Env, seed: int) -> Iterator[None]:
    """Seed all that an episode draws from; put the policy's noise and the global states back."""
    previous = getattr(pi, "rng", None)
    with undisturbed_generators():
        set_global_seeds(seed % 2**32)
        seed_generators(env, seed % 2**32)
        if previous is not None:
            pi.rng = np.random.default_rng([1, seed])  # not the stream that the environment has
        try:
            yield
        finally:
            if previous is not None:
                pi.rng = previous


def _check_finite(pi: Any) -> None:
    """Raise FloatingPointError, naming the variable, unless all of a policy's are finite."""
    if hasattr(pi, "variables"):
        variables = pi.variables()
    else:  # of a torch module of somebody's own
        variables = dict(getattr(pi, "named_parameters", dict)())
    for name, value in variables.items():
        if not torch.as_tensor(value).isfinite().all():
            raise FloatingPointError(
                f"the policy's variable {name} holds numbers that are not finite"
            )


def _statistics(values: list[Any]) -> dict[str, float | None]:
    count = len(values)
    error = float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else None
    return {
        "mean": float(np.mean(values)),
        "standard_error": error,
        "min": min(values),
        "max": max(values),
    }
