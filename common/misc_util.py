"""Seeds, and other small helpers.

Source: baselines/common/misc_util.py @ ea25b9e

Differs:
    - `set_global_seeds` adds nothing for the rank: the caller passes the rank's own seed. (In
      baselines the 1000 * rank stands behind `import MPI`, which fails, so nothing was added.)
    - It seeds torch where baselines seeds TensorFlow, and None changes nothing, where baselines
      would seed NumPy and `random` anew from the system.
    - A seed out of range and sequences of unequal length raise `ValueError` that says which.
    - What ppo1 never calls is left out.
"""

import contextlib
import operator
import os
import random
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch

_SEED_LIMIT = 2**32  # of NumPy's legacy generator; the other two take more


def set_global_seeds(seed: int | None) -> None:
    """Seed Python's `random`, NumPy's global legacy state and torch, all with the same number.

    Args:
        seed: 0 <= seed < 2**32, this rank's own; None leaves all three generators as they are.

    Raises:
        ValueError: the seed is out of range. No generator was touched.
        TypeError: the seed is not an integer (a float, even 1.0).
    """
    if seed is None:
        return
    seed = operator.index(seed)  # takes NumPy's integers, which `random.seed` refuses
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"seed must be at least 0 and less than {_SEED_LIMIT} (2**32), got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def undisturbed_generators() -> Iterator[None]:
    """Put the global states of `random`, NumPy and torch back, after a block that draws there."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # which is Linux's alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def counted(count: int, noun: str) -> str:
    """Return "1 job" or "2 jobs", for the noun "job"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def zipsame(*seqs: Collection[Any]) -> Iterator[tuple[Any, ...]]:
    """Return `zip(*seqs)`, after checking, before the first item, that all are equally long.

    Raises:
        ValueError: the lengths differ.
    """
    lengths = [len(seq) for seq in seqs]
    if len(set(lengths)) > 1:
        raise ValueError(f"zipsame needs sequences of one length, got lengths {lengths}")
    return zip(*seqs, strict=True)
