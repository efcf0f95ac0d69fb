"""The hyperparameters of `learn`: their names, and the ranges that they must lie in."""

import math
import numbers
from typing import Any

from common.mpi import MPI

SCHEDULES = ("constant", "linear")
LIMITS = ("max_timesteps", "max_episodes", "max_iters", "max_seconds")
MAY_BE_NONE = ("optim_batchsize", "threads", *LIMITS)
HYPERPARAMETERS = (
    "timesteps_per_actorbatch", "clip_param", "entcoeff", "optim_epochs", "optim_stepsize",
    "optim_batchsize", "gamma", "lam", *LIMITS, "adam_epsilon", "schedule", "clip_schedule",
    "bootstrap_truncated", "threads",
)  # fmt: skip


def check_hyperparameters(values: dict[str, Any]) -> None:
    """Check the HYPERPARAMETERS of `learn`, by name, against their ranges.

    Raises:
        ValueError: naming the first that is out of range, its value and its range.
    """
    for name, value in values.items():
        if name in ("schedule", "clip_schedule") or (value is None and name in MAY_BE_NONE):
            continue
        counts = ("timesteps_per_actorbatch", "optim_epochs", "optim_batchsize", "threads")
        is_count = name in counts
        if not isinstance(value, numbers.Integral if is_count else numbers.Real):
            kind = "a whole number" if is_count else "a number"
            raise ValueError(f"{name} must be {kind}, got {value!r}")
    limits = {name: values[name] for name in LIMITS if values[name]}
    if len(limits) != 1 or not next(iter(limits.values())) > 0:
        raise ValueError(
            f"give exactly one of {', '.join(LIMITS)}, above 0; got {limits or 'none'}"
        )

    def need(name: str, holds: bool, limit: str) -> None:
        if not holds:  # NaN fails every comparison, so it is rejected too
            raise ValueError(f"{name} must be {limit}, got {values[name]!r}")

    for name in ("timesteps_per_actorbatch", "optim_epochs", "threads"):
        if values[name] is not None:
            need(name, values[name] >= 1, "a whole number above 0")
    for name in ("clip_param", "optim_stepsize", "adam_epsilon"):
        need(name, 0 < values[name] < math.inf, "a finite number above 0")
    need("entcoeff", 0 <= values["entcoeff"] < math.inf, "a finite number of at least 0")
    for name in ("gamma", "lam"):
        need(name, 0 <= values[name] <= 1, "in [0, 1]")
    for name in ("schedule", "clip_schedule"):
        need(name, values[name] in SCHEDULES, " or ".join(map(repr, SCHEDULES)))
        annealable = values[name] == "constant" or "max_timesteps" in limits
        need(name, annealable, "'constant' where max_timesteps is not given")
    horizon = values["timesteps_per_actorbatch"]
    need(
        "optim_batchsize",
        0 <= (values["optim_batchsize"] or 0) <= horizon,
        f"from 1 to timesteps_per_actorbatch ({horizon}), or 0 for all of it",
    )


def check_same_updates(comm: MPI.Comm, updates: int) -> int:
    """Return `updates`, those that a rank makes in an iteration, if all ranks make as many.

    Collective: every rank must call it.

    Raises:
        ValueError: on all ranks, if the numbers differ or are 0.
    """
    by_rank = comm.allgather(updates)
    if len(set(by_rank)) > 1 or updates == 0:
        raise ValueError(
            "all ranks need the same number of minibatches, at least one; "
            f"got {by_rank} updates an iteration on ranks 0 to {len(by_rank) - 1}"
        )
    return updates
