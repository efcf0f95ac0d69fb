"""How much of an Atari policy's first layer is alive: a column of the Atari study."""

from contextlib import closing

import gymnasium as gym
import numpy as np
import torch
from atari_variants import VARIANTS
from numpy.typing import NDArray

import run_atari
from common.atari_wrappers import FrameStack, make_atari
from common.plot_util import Run
from ppo1.cnn_policy import CnnPolicy
from ppo1.saved_policy import load_policy


def count_filters(run: Run) -> dict[str, int]:
    """Return how many `filters` a run's newest checkpoint has, and how many are `live_filters`.

    Raises:
        CheckpointError: a ValueError, if there is none.
    """
    pieces = VARIANTS.get(run.arguments.get("variant", ""), {})
    wrap_deepmind = pieces.get((run_atari, "wrap_deepmind"), run_atari.wrap_deepmind)
    game = wrap_deepmind(make_atari(run.arguments["env"]))
    with closing(FrameStack(game, run.arguments["frame_stack"])) as env:
        alive = live_filters(load_policy(run.folder), random_frames(env))
    return {"live_filters": int(alive.sum()), "filters": len(alive)}


def random_frames(env: gym.Env, steps: int = 500) -> NDArray[np.uint8]:
    """Return the observations of random actions, (steps, H, W, C), the same at every call."""
    env.reset(seed=0)
    env.action_space.seed(0)
    frames = []
    for _ in range(steps):
        frame, _, terminated, truncated, _ = env.step(env.action_space.sample())
        frames.append(frame)
        if terminated or truncated:
            env.reset()
    return np.stack(frames)


@torch.no_grad()
def live_filters(pi: CnnPolicy, frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return, (filters,), which of the first layer's are positive anywhere in (N, H, W, C) frames.

    The others are dead, there at least: their ReLU returns zero and lets no gradient through.
    """
    kernel, bias = pi.weights["l1/W"], pi.weights["l1/b"].flatten()
    alive = torch.zeros(len(kernel), dtype=torch.bool)
    for frame in frames:  # one at a time: all the maps together are large
        x = pi.preprocess(torch.from_numpy(frame[None])) / 255.0
        maps = torch.conv2d(x, kernel, bias, stride=pi.strides[0])
        alive |= (maps > 0).any(dim=3).any(dim=2)[0]
    return alive.numpy()
