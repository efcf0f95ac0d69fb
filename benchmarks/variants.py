#!/usr/bin/env python
"""Train as run_mujoco.py does, with one piece of the algorithm replaced, for the ablations.

    python benchmarks/variants.py torch-adam --env Hopper-v4 --seed 0

The variants:
    torch-adam    epsilon * sqrt(1 - beta2**t) for Adam's epsilon, as `torch.optim.Adam` has it
    stored-logp   the ratio's denominator is the probability at sampling time, of the policy and
                  the observation statistics that acted, as most other implementations have it
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a rank; must precede NumPy

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file lies in

import gymnasium as gym
import numpy as np
import torch

import run_mujoco
from common.cmd_util import ArgumentParser
from common.mpi_adam import MpiAdam
from ppo1 import pposgd_simple
from ppo1.policy import Policy
from ppo1.pposgd_simple import Segment, prepare, traj_segment_generator
from ppo1.update import Batch
from run_mujoco import PRESETS  # noqa: F401  # which common.sweep looks for here
from run_mujoco import arg_parser as mujoco_arg_parser

Network = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class TorchAdam(MpiAdam):
    """Adam as `torch.optim.Adam` computes it.

    a * m / (sqrt(v) + epsilon * sqrt(1 - beta2**t)), with `MpiAdam`'s a: the same formula, its
    epsilon growing to the full one within some thousand updates.
    """

    def coefficients(self, stepsize: float) -> tuple[float, float]:
        """Return a and torch's epsilon of the next update."""
        a, epsilon = super().coefficients(stepsize)
        return a, epsilon * math.sqrt(1 - self.beta2 ** (self.t + 1))


def segments_with_logp(
    pi: Policy, env: gym.Env, horizon: int, stochastic: bool, **options: Any
) -> Iterator[Segment]:
    """Yield segments with `logp`, (T,), the actions' log-probabilities when they were sampled.

    The action at index 0 was sampled before the update that precedes the segment: its
    log-probability is kept in `carry`, which is saved with a checkpoint.
    """
    logp_of_next = options.get("carry", {}).get("logp")
    for seg in traj_segment_generator(pi, env, horizon, stochastic, **options):
        carry = seg["carry"]
        obs = np.concatenate([seg["ob"], np.asarray(carry["ob"])[None]])
        acs = np.concatenate([seg["ac"], np.asarray(carry["ac"])[None]])
        with torch.no_grad():
            pdparam, _ = pi.pdparam_and_vpred(torch.from_numpy(obs))
            logp = pi.pdtype.pdfromflat(pdparam).logp(torch.from_numpy(acs))
        if logp_of_next is not None:
            logp[0] = logp_of_next
        carry["logp"] = logp_of_next = float(logp[-1])
        seg["logp"] = logp[:-1]
        yield seg


def columns_with_stored_logp(pi: Policy, seg: Segment, network: Network) -> Batch:
    """Return the columns that the losses need, `oldlogp` being the segment's `logp`."""
    return {**prepare(pi, seg, network), "oldlogp": seg["logp"]}


# Of each variant, by module and name: what takes its place in the module that looks it up.
Variants = Mapping[str, Mapping[tuple[ModuleType, str], Any]]
VARIANTS: Variants = {
    "torch-adam": {(pposgd_simple, "MpiAdam"): TorchAdam},
    "stored-logp": {
        (pposgd_simple, "traj_segment_generator"): segments_with_logp,
        (pposgd_simple, "prepare"): columns_with_stored_logp,
    },
}


def variant_parser(parser: ArgumentParser, variants: Iterable[str]) -> ArgumentParser:
    """Return a script's parser that takes a variant before the script's own flags."""
    parser.usage = "[mpirun -np RANKS] python %(prog)s VARIANT [--flag value ...]"
    parser.add_argument("variant", choices=variants, metavar="VARIANT", help=", ".join(variants))
    return parser


def run_variant(
    script: ModuleType, parser: Callable[[], ArgumentParser], variants: Variants
) -> None:
    """Run a script with those pieces replaced that the command line's variant names.

    Args:
        script: with `main` and `arg_parser`.
        parser: returns the script's parser, with the variant.
        variants: those that the command line may name.
    """
    word = (sys.argv[1:] or [""])[0]
    if word not in (*variants, "-h", "--help"):
        parser().error(f"need a variant first, {' or '.join(variants)}, got {word!r}")
    for (module, name), replacement in variants.get(word, {}).items():
        setattr(module, name, replacement)
    script.arg_parser = parser  # type: ignore[attr-defined]  # has config.json name the variant
    script.main()


def arg_parser() -> ArgumentParser:
    """Return the parser of run_mujoco.py's flags and, before them, the variant."""
    return variant_parser(mujoco_arg_parser(), VARIANTS)


def main() -> None:
    """Train the variant that the command line names; its flags are those of run_mujoco.py."""
    run_variant(run_mujoco, arg_parser, VARIANTS)


if __name__ == "__main__":
    main()
