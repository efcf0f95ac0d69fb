#!/usr/bin/env python
"""Train as run_atari.py does, with one piece replaced, to find what a difference comes from.

    mpirun -np 8 python benchmarks/atari_variants.py orthogonal --env PongNoFrameskip-v4

The variants:
    orthogonal    initial weights as `ppo2` and CleanRL have them: orthogonal with gain sqrt(2)
                  for convolutions and the hidden layer, where baselines' ppo1 has Glorot's
                  and normc's
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a rank; must precede NumPy

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file lies in

import torch
from torch import Tensor
from variants import run_variant, variant_parser

import run_atari
from common.cmd_util import ArgumentParser
from common.torch_util import normc
from ppo1 import cnn_policy
from run_atari import PRESETS  # noqa: F401  # which common.sweep looks for here
from run_atari import arg_parser as atari_arg_parser


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


# What takes the place of which name of `cnn_policy`.
VARIANTS: dict[str, dict[str, Any]] = {
    "orthogonal": {"glorot_uniform_conv": orthogonal_conv, "normc": orthogonal_dense},
}


def arg_parser() -> ArgumentParser:
    """Return the parser of run_atari.py's flags and, before them, the variant."""
    return variant_parser(atari_arg_parser(), VARIANTS)


def main() -> None:
    """Train the variant that the command line names; its flags are those of run_atari.py."""
    run_variant(run_atari, arg_parser, cnn_policy, VARIANTS)


if __name__ == "__main__":
    main()
