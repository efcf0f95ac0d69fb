#!/usr/bin/env python
"""Train as run_atari.py does, with one piece replaced, to find what a difference comes from.

    mpirun -np 8 python benchmarks/atari_variants.py orthogonal --preset paper

The variants:
    orthogonal    initial weights as `ppo2` and CleanRL have them: orthogonal with gain sqrt(2)
                  for convolutions and the hidden layer, where baselines' ppo1 has Glorot's
                  and normc's
    clipped-value value loss of ppo1's first public release (baselines da99706): half the squared
                  error, and pessimistic, with the prediction's change held in the clip range
    black-background
                  each pixel is its distance from 87, the gray of Pong's background, which
                  becomes black, as that of most games is
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a rank; must precede NumPy

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file lies in

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from variants import Network, Variants, run_variant, variant_parser

import run_atari
from common.atari_wrappers import wrap_deepmind
from common.cmd_util import ArgumentParser
from common.distributions import PdType
from common.torch_util import normc
from ppo1 import cnn_policy, pposgd_simple
from ppo1.policy import Policy
from ppo1.pposgd_simple import Segment, ppo_losses, prepare
from ppo1.update import Batch
from run_atari import PRESETS  # noqa: F401  # which common.sweep looks for here
from run_atari import arg_parser as atari_arg_parser

PONGS_GRAY = 87  # of its background, in frames as WarpFrame returns them


def orthogonal_conv(channels: int, filters: int, size: tuple[int, int]) -> Tensor:
    """Return an orthogonal kernel of gain sqrt(2), (filters, channels, *size), channels last."""
    kernel = torch.nn.init.orthogonal_(torch.empty(filters, channels, *size), math.sqrt(2))
    return kernel.contiguous(memory_format=torch.channels_last)


def orthogonal_dense(shape: tuple[int, int], std: float) -> Tensor:
    """Return an orthogonal kernel of gain sqrt(2), (in, out), for the hidden layer.

    The output layers' are normc's: with either, the norm of a column is `std`.
    """
    if std != 1.0 or shape[1] == 1:
        return normc(shape, std)
    return torch.nn.init.orthogonal_(torch.empty(shape), math.sqrt(2))


def columns_with_vpred(pi: Policy, seg: Segment, network: Network) -> Batch:
    """Return `prepare`'s columns and `oldvpred`, (T,), the values before the optimization.

    The network is run on the segment a second time, which is little beside its many updates.
    """
    columns = prepare(pi, seg, network)
    with torch.no_grad():
        _, vpred = network(columns["ob"])
    return {**columns, "oldvpred": vpred}


def losses_with_clipped_value(
    pdtype: PdType,
    pdparam: Tensor,
    vpred: Tensor,
    batch: Batch,
    clip_param: Tensor,
    entcoeff: float,
) -> tuple[Tensor, Tensor]:
    """Return what `ppo_losses` does, with another value loss.

    mean(max((vpred - vtarg)**2, (clipped - vtarg)**2)) / 2, `clipped` being `vpred` held within
    `clip_param` around `batch`'s oldvpred, (N,).
    """
    total, parts = ppo_losses(pdtype, pdparam, vpred.detach(), batch, clip_param, entcoeff)
    old, vtarg = batch["oldvpred"], batch["vtarg"]
    clipped = old + (vpred - old).clamp(-clip_param, clip_param)
    vf_loss = torch.max((vpred - vtarg).square(), (clipped - vtarg).square()).mean() / 2
    total = total - parts[2] + vf_loss
    return total, torch.cat([parts[:2], vf_loss.detach()[None], parts[3:]])


def distance_from_gray(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return each pixel's distance from the gray of Pong's background, in the same shape."""
    return np.abs(frame.astype(np.int16) - PONGS_GRAY).astype(np.uint8)


def wrap_with_black_background(env: gym.Env, **options: bool) -> gym.Env:
    """Return what `wrap_deepmind` does, with a black background.

    Raises:
        ValueError: if the game is not Pong.
    """
    env_id = env.spec.id if env.spec else "none"
    if not env_id.startswith("Pong"):
        raise ValueError(f"black-background is for Pong, got {env_id}")
    env = wrap_deepmind(env, **options)
    return gym.wrappers.TransformObservation(env, distance_from_gray, env.observation_space)


VARIANTS: Variants = {
    "orthogonal": {
        (cnn_policy, "glorot_uniform_conv"): orthogonal_conv,
        (cnn_policy, "normc"): orthogonal_dense,
    },
    "clipped-value": {
        (pposgd_simple, "prepare"): columns_with_vpred,
        (pposgd_simple, "ppo_losses"): losses_with_clipped_value,
    },
    "black-background": {(run_atari, "wrap_deepmind"): wrap_with_black_background},
}


def arg_parser() -> ArgumentParser:
    """Return the parser of run_atari.py's flags and, before them, the variant."""
    return variant_parser(atari_arg_parser(), VARIANTS)


def main() -> None:
    """Train the variant that the command line names; its flags are those of run_atari.py."""
    run_variant(run_atari, arg_parser, VARIANTS)


if __name__ == "__main__":
    main()
