"""How much of an Atari policy's first layer is alive: a column of the Atari study."""

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


def first_layer(run: Run) -> dict[str, int]:
    """Return how many `filters` a run's newest checkpoint has, and how many are `live_filters`.

    Raises:
        CheckpointError: a ValueError, if there is none.
    """
    pieces = VARIANTS.get(run.arguments.get("variant", ""), {})
    wrap_deepmind = pieces.get((run_atari, "wrap_deepmind"), run_atari.wrap_deepmind)
    game = wrap_deepmind(make_atari(run.arguments["env"]))
    alive = live_filters(load_policy(run.folder), FrameStack(game, run.arguments["frame_stack"]))
    return {"live_filters": int(alive.sum()), "filters": len(alive)}


def live_filters(pi: CnnPolicy, env: gym.Env, actions: int = 500) -> NDArray[np.bool_]:
    """Return, (filters,), which of the first layer's respond anywhere while actions are random.

    The others are dead, there at least: their ReLU returns zero and lets no gradient through.
    """
    env.reset(seed=0)
    env.action_space.seed(0)
    alive = np.zeros(len(pi.weights["l1/W"]), bool)
    for _ in range(actions):
        ob, _, terminated, truncated, _ = env.step(env.action_space.sample())
        with torch.no_grad():
            x = pi.preprocess(torch.from_numpy(ob[None])) / 255.0
            bias = pi.weights["l1/b"].flatten()
            x = torch.conv2d(x, pi.weights["l1/W"], bias, stride=pi.strides[0])
        alive |= (x > 0).any(dim=3).any(dim=2)[0].numpy()
        if terminated or truncated:
            env.reset()
    return alive
