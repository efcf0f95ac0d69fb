"""Atari games as DeepMind's agents see them: one wrapper for each step of the preprocessing.

The whole chain, innermost first: NoopResetEnv, MaxAndSkipEnv, (TimeLimit), (Monitor, which the
run script puts in), EpisodicLifeEnv, FireResetEnv, WarpFrame, ScaledFloatFrame, ClipRewardEnv,
FrameStack. H and W are a frame's height and width, C its colours, k the stacked frames.

Source: baselines/common/atari_wrappers.py @ ea25b9e.
Differs:
- Gymnasium's API. A seed given to `reset` reaches the emulator once: where a wrapper resets again
  by itself, it leaves the seed out, so that the second try is not the first one over again.
- `make_atari` raises ale_py's limit of 108,000 frames an episode to what gym had.
- MaxAndSkipEnv returns a game's last screen; baselines returned leftovers of the step before.
- FireResetEnv returns what the game shows after its last reset, not what preceded that reset.
- EpisodicLifeEnv starts a new game if the game ends in its no-op step, and if a seed is given.
- FrameStack returns one array, not LazyFrames: a segment stores whole arrays anyway.
"""

import re
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

Reset = tuple[Any, dict[str, Any]]
Step = tuple[Any, float, bool, bool, dict[str, Any]]


def make_atari(
    env_id: str,
    max_episode_steps: int | None = None,
    *,
    render_mode: str | None = "rgb_array",
    **kwargs: Any,
) -> gym.Env:
    """Return the game with no-op starts and actions held for four frames.

    An episode ends after 400,000 frames at the latest, 300,000 in Space Invaders: the limits of
    the gym that baselines ran on.

    Args:
        env_id: a NoFrameskip environment, such as PongNoFrameskip-v4.
        max_episode_steps: a tighter limit, in timesteps; None sets none.
        render_mode: as in `gym.make`; the default costs nothing until `render` is called.
        kwargs: further ones of the game, such as `mode` and `difficulty`.

    Raises:
        ValueError: if `env_id` skips frames by itself.
    """
    if "NoFrameskip" not in env_id:
        game = re.sub(r"^ALE/|(-ram)?(Deterministic)?-v\d+$", "", env_id)
        raise ValueError(
            f"make_atari holds actions for 4 frames itself and needs a NoFrameskip environment, "
            f"got {env_id!r}; use '{game}NoFrameskip-v4'"
        )
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner from every rank
    gym.register_envs(ale_py)
    env: gym.Env = gym.make(
        env_id,
        disable_env_checker=True,
        render_mode=render_mode,
        obs_type="ram",  # cheap and unused: MaxAndSkipEnv reads the two screens that it needs
        max_num_frames_per_episode=300_000 if "SpaceInvaders" in env_id else 400_000,
        **kwargs,
    )
    emulator: Any = env.unwrapped
    env = MaxAndSkipEnv(NoopResetEnv(env, noop_max=30), skip=4, ale=emulator.ale)
    if max_episode_steps is not None:
        env = TimeLimit(env, max_episode_steps=max_episode_steps)
    return env


def wrap_deepmind(
    env: gym.Env,
    episode_life: bool = True,
    clip_rewards: bool = True,
    frame_stack: bool = False,
    scale: bool = False,
) -> gym.Env:
    """Return `make_atari`'s environment with 84x84 gray frames.

    Args:
        env: the game; its observations are RGB, (H, W, 3), uint8.
        episode_life: end an episode with each life.
        clip_rewards: reduce rewards to their sign.
        frame_stack: stack the last four frames as channels.
        scale: divide by 255, giving float32.
    """
    if episode_life:
        env = EpisodicLifeEnv(env)
    if "FIRE" in _action_meanings(env):
        env = FireResetEnv(env)
    env = WarpFrame(env)
    if scale:
        env = ScaledFloatFrame(env)
    if clip_rewards:
        env = ClipRewardEnv(env)
    if frame_stack:
        env = FrameStack(env, 4)
    return env


class NoopResetEnv(gym.Wrapper):
    """Starts each game with a random number of no-ops, action 0.

    Attributes:
        noop_max: the number is uniform in 1..noop_max, drawn from the environment's `np_random`.
        override_num_noops: this number instead of a random one; None draws.
    """

    def __init__(self, env: gym.Env, noop_max: int = 30) -> None:
        """Wrap `env`.

        Raises:
            ValueError: if action 0 is not the no-op.
        """
        super().__init__(env)
        meanings = _action_meanings(env)
        if meanings[0] != "NOOP":
            raise ValueError(f"NoopResetEnv needs NOOP as action 0, the actions are {meanings}")
        self.noop_max = noop_max
        self.override_num_noops: int | None = None
        self.noop_action = 0

    def reset(self, **kwargs: Any) -> Reset:
        """Reset, then do nothing for a while; a game that ends meanwhile is reset again."""
        ob, info = self.env.reset(**kwargs)
        noops = self.override_num_noops
        if noops is None:
            noops = int(self.unwrapped.np_random.integers(1, self.noop_max + 1))
        if noops < 1:
            raise ValueError(f"override_num_noops must be at least 1, got {noops}")
        for _ in range(noops):
            ob, _, terminated, truncated, info = self.env.step(self.noop_action)
            if terminated or truncated:
                ob, info = self.env.reset(**_unseeded(kwargs))
        return ob, info


class FireResetEnv(gym.Wrapper):
    """Presses actions 1 (FIRE) and 2 after a reset, for games that wait for it."""

    def __init__(self, env: gym.Env) -> None:
        """Wrap `env`.

        Raises:
            ValueError: if action 1 is not FIRE, or there is no action 2.
        """
        super().__init__(env)
        meanings = _action_meanings(env)
        if len(meanings) < 3 or meanings[1] != "FIRE":
            raise ValueError(
                f"FireResetEnv needs FIRE as action 1 and at least 3 actions, got {meanings}"
            )

    def reset(self, **kwargs: Any) -> Reset:
        """Reset, press action 1, then 2; wherever that ends the episode, reset again."""
        self.env.reset(**kwargs)
        for action in (1, 2):
            ob, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                ob, info = self.env.reset(**_unseeded(kwargs))
        return ob, info


class EpisodicLifeEnv(gym.Wrapper):
    """Ends the episode with each life, but resets the game only when it is over.

    Attributes:
        lives: what the emulator showed after the last step.
        was_real_done: whether the game was over, by its end or by a limit, at the last step.
    """

    def __init__(self, env: gym.Env) -> None:
        """Wrap `env`, whose `unwrapped.ale.lives()` counts the lives."""
        super().__init__(env)
        emulator: Any = env.unwrapped
        self._ale = emulator.ale
        self.lives = 0
        self.was_real_done = True

    def step(self, action: Any) -> Step:
        """Step; `terminated` when a life is lost or the game ends."""
        ob, reward, terminated, truncated, info = self.env.step(action)
        self.was_real_done = terminated or truncated
        lives = self._ale.lives()
        # Some games (Qbert) show 0 lives for a few frames before they end: that end is enough.
        if 0 < lives < self.lives:
            terminated = True
        self.lives = lives
        return ob, float(reward), terminated, truncated, info

    def reset(self, **kwargs: Any) -> Reset:
        """Start a new game if the last one is over or a seed is given; else step a no-op."""
        game_over = self.was_real_done or kwargs.get("seed") is not None
        if not game_over:
            ob, _, terminated, truncated, info = self.env.step(0)
            game_over = terminated or truncated
        if game_over:
            ob, info = self.env.reset(**kwargs)
        self.lives = self._ale.lives()
        return ob, info


class MaxAndSkipEnv(gym.Wrapper):
    """Holds each action for `skip` frames and shows the brighter of the last two, per pixel.

    The maximum restores sprites that a game draws in every other frame only. A step that the end
    of the game cuts short shows the last frame alone.
    """

    def __init__(self, env: gym.Env, skip: int = 4, *, ale: Any | None = None) -> None:
        """Wrap `env`.

        Args:
            env: an environment whose step is one frame.
            skip: frames a step.
            ale: the emulator under `env`: frames are then its RGB screens, read when needed, in
                place of `env`'s observations. A screen costs almost half a frame's emulation, and
                only two a step are looked at.

        Raises:
            ValueError: if `skip` is below 1.
        """
        super().__init__(env)
        if skip < 1:
            raise ValueError(f"skip must be at least 1, got {skip}")
        if ale is not None:
            self.observation_space = spaces.Box(0, 255, (*ale.getScreenDims(), 3), np.uint8)
        space = self.observation_space
        self._skip = skip
        self._ale = ale
        self._previous = np.empty(space.shape or (), space.dtype)  # the last frame but one

    def step(self, action: Any) -> Step:
        """Step up to `skip` frames; the rewards add up, and `info` is the last frame's."""
        total_reward = 0.0
        for frame_count in range(1, self._skip + 1):
            ob, reward, terminated, truncated, info = self.env.step(action)
            total_reward += float(reward)
            if terminated or truncated:
                break
            if frame_count == self._skip - 1:
                self._read_frame(ob, self._previous)
        frame = np.empty_like(self._previous)  # a new one: callers may keep it
        self._read_frame(ob, frame)
        if 1 < frame_count == self._skip:
            np.maximum(frame, self._previous, out=frame)
        return frame, total_reward, terminated, truncated, info

    def reset(self, **kwargs: Any) -> Reset:
        """Reset; the first frame stands alone."""
        ob, info = self.env.reset(**kwargs)
        frame = np.empty_like(self._previous)
        self._read_frame(ob, frame)
        return frame, info

    def _read_frame(self, ob: Any, out: NDArray[Any]) -> None:
        """Fill `out` with the current frame, which is `ob` or the emulator's screen."""
        if self._ale is None:
            out[...] = ob
        else:
            self._ale.getScreenRGB(out)


class ClipRewardEnv(gym.RewardWrapper):
    """Reduces rewards to their sign."""

    def reward(self, reward: Any) -> float:
        """Return -1.0, 0.0 or 1.0."""
        return float(np.sign(reward))


class WarpFrame(gym.ObservationWrapper):
    """Shrinks frames, by default to 84x84, and by default makes them gray."""

    def __init__(
        self, env: gym.Env, width: int = 84, height: int = 84, grayscale: bool = True
    ) -> None:
        """Wrap `env`, whose observations are RGB: (H, W, 3), uint8."""
        super().__init__(env)
        import cv2

        cv2.setNumThreads(1)
        cv2.ocl.setUseOpenCL(False)
        self._width = width
        self._height = height
        self._grayscale = grayscale
        shape = (height, width, 1 if grayscale else 3)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def observation(self, observation: Any) -> NDArray[np.uint8]:
        """Return the frame as (height, width, 1), or with 3 colours, uint8: a new array."""
        import cv2

        if self._grayscale:
            observation = cv2.cvtColor(observation, cv2.COLOR_RGB2GRAY)
        size = (self._width, self._height)
        frame = cv2.resize(observation, size, interpolation=cv2.INTER_AREA)
        return frame.reshape(self._height, self._width, -1)


class ScaledFloatFrame(gym.ObservationWrapper):
    """Divides frames by 255, giving float32 from 0 to 1."""

    def __init__(self, env: gym.Env) -> None:
        """Wrap `env`, whose observations are uint8."""
        super().__init__(env)
        self.observation_space = spaces.Box(0.0, 1.0, env.observation_space.shape, np.float32)

    def observation(self, observation: Any) -> NDArray[np.float32]:
        """Return the scaled frame."""
        return np.asarray(observation, np.float32) / np.float32(255.0)


class FrameStack(gym.Wrapper):
    """Shows the last `k` frames as channels, the newest last.

    Attributes:
        frames: the last `k` frames, (H, W, C) each, the newest last; never written into.
    """

    def __init__(self, env: gym.Env, k: int) -> None:
        """Wrap `env`, whose observations are a Box of shape (H, W, C).

        Raises:
            ValueError: if `k` is below 1.
        """
        super().__init__(env)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.frames: deque[NDArray[Any]] = deque(maxlen=k)
        space: Any = env.observation_space
        low, high = (np.concatenate([bound] * k, axis=-1) for bound in (space.low, space.high))
        self.observation_space = spaces.Box(low, high, dtype=space.dtype)

    def reset(self, **kwargs: Any) -> Reset:
        """Reset; the first frame fills the whole stack."""
        ob, info = self.env.reset(**kwargs)
        self.frames.extend([ob] * self.k)
        return self._stacked(), info

    def step(self, action: Any) -> Step:
        """Step; the newest frame pushes out the oldest."""
        ob, reward, terminated, truncated, info = self.env.step(action)
        self.frames.append(ob)
        return self._stacked(), float(reward), terminated, truncated, info

    def checkpoint_state(self) -> dict[str, Any]:
        """Return the frames."""
        return {"frames": list(self.frames)}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Take over another FrameStack's frames.

        Raises:
            ValueError: if their number or their shape is another.
        """
        space: Any = self.env.observation_space
        shapes = [np.shape(frame) for frame in state["frames"]]
        if shapes and shapes != [space.shape] * self.k:
            raise ValueError(f"need {self.k} frames of shape {space.shape}, the saved are {shapes}")
        self.frames = deque(state["frames"], maxlen=self.k)

    def _stacked(self) -> NDArray[Any]:
        """Return the frames as (H, W, C * k): a new array, which callers may keep."""
        return np.concatenate(self.frames, axis=-1)


def _action_meanings(env: gym.Env) -> list[str]:
    """Return the names of the game's actions."""
    emulator: Any = env.unwrapped
    return list(emulator.get_action_meanings())


def _unseeded(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return `reset`'s keywords without the seed, for a further reset."""
    return {key: value for key, value in kwargs.items() if key != "seed"}
