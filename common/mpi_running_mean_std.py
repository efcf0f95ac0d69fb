"""Running mean and standard deviation of observations, in step on all ranks.

Source: baselines/common/mpi_running_mean_std.py @ ea25b9e.
"""

import copy
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common import logger
from common.mpi import MPI
from common.mpi_util import CollectiveError


class RunningMeanStd:
    """Float64 sum, sum of squares and count, with the float32 mean and std that they give.

    mean = float32(sum / count)
    std  = sqrt(max(float32(sumsq / count) - mean * mean, 1e-2)), the subtraction in float32

    Where the mean is over a thousand times the spread, the difference is mostly rounding, and std
    much too large, as in baselines: `ill_scaled` names such components.

    It can be copied and pickled. `comm` is no part of what is pickled: it becomes COMM_WORLD.

    Attributes:
        runningsum: shape `shape`, float64. A view of one vector, as are the next two.
        runningsumsq: shape `shape`, float64.
        count: shape (), float64.
        mean: shape `shape`, float32; a new array after each change, never written in place.
        std: shape `shape`, float32; likewise. At least 0.1.
    """

    def __init__(
        self, epsilon: float = 1e-2, shape: tuple[int, ...] = (), comm: MPI.Comm | None = None
    ) -> None:
        """Start with sum 0 and sumsq = count = `epsilon`: mean 0, std 1."""
        self.comm = MPI.COMM_WORLD if comm is None else comm
        size = int(np.prod(shape))
        self._totals = np.zeros(2 * size + 1, dtype=np.float64)  # one vector, one Allreduce
        self._totals[size:] = epsilon
        self._view_totals(shape)
        self.refresh()

    def _view_totals(self, shape: tuple[int, ...]) -> None:
        size = len(self._totals) // 2
        self.runningsum = self._totals[:size].reshape(shape)
        self.runningsumsq = self._totals[size:-1].reshape(shape)
        self.count = self._totals[-1:].reshape(())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "comm"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.comm = MPI.COMM_WORLD
        self._totals = self._totals.copy()
        self._view_totals(self.mean.shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = copy.copy(self)
        copied.comm = self.comm  # of the same process, which may have no other ranks to wait for
        return copied

    def update(self, x: ArrayLike) -> None:
        """Add all ranks' rows.

        Args:
            x: (N, *shape), any real dtype; N may differ between ranks.

        Collective: every rank must call it.
        """
        rows = np.asarray(x, dtype=np.float64)
        local = np.concatenate(
            [rows.sum(axis=0).ravel(), np.square(rows).sum(axis=0).ravel(), [float(len(rows))]]
        )
        self.comm.Allreduce(MPI.IN_PLACE, local, op=MPI.SUM)
        self._totals += local
        self.refresh()

    def refresh(self) -> None:
        """Recompute `mean` and `std`, after somebody wrote to the sums."""
        self.mean: NDArray[np.float32] = np.asarray(self.runningsum / self.count, dtype=np.float32)
        second_moment = np.asarray(self.runningsumsq / self.count, dtype=np.float32)
        variance = np.maximum(second_moment - np.square(self.mean), np.float32(1e-2))
        self.std: NDArray[np.float32] = np.asarray(np.sqrt(variance), dtype=np.float32)


def ill_scaled(x: ArrayLike) -> list[tuple[int, ...]]:
    """Return the indices of the components whose mean is over a thousand times their spread.

    `RunningMeanStd` takes too large a std for them, and they are normalized to nearly nothing: 1e6
    +- 1 becomes +-0.001. A spread below 0.1, the least std, counts as 0.1. Components that are
    constant are left out: they become 0 as they should.

    Args:
        x: (N, *shape), any real dtype.
    """
    rows = np.asarray(x, dtype=np.float64)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    varies = (rows != rows[:1]).any(axis=0)
    too_large = varies & (np.abs(mean) > 1000 * np.maximum(spread, 0.1))
    return [tuple(index) for index in np.argwhere(too_large).tolist()]


def update_statistics(ob_rms: RunningMeanStd, obs: NDArray[Any], comm: MPI.Comm) -> None:
    """Add observations (T, *ob_shape) to the running statistics.

    Collective: every rank must call it.

    Raises:
        CollectiveError: on all ranks, if they overflow: the statistics square them in float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        ob_rms.update(obs)
    finite = np.isfinite(ob_rms.std)
    if not finite.all():
        component = tuple(int(index) for index in np.argwhere(~finite)[0])
        reached = comm.allgather(float(np.abs(obs).max(axis=0)[component]))
        raise CollectiveError(
            f"the environment's observations overflow their statistics: component "
            f"{list(component)} reached {max(reached)} on rank {reached.index(max(reached))}"
        )


def warn_of_offsets(obs: NDArray[Any]) -> None:
    """Warn if normalization all but removes components of observations, (N, *ob_shape)."""
    if indices := ill_scaled(obs):
        named = ", ".join(str(i[0] if len(i) == 1 else i) for i in indices[:10])
        more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
        logger.warn(
            f"WARNING: the mean of observation component {named}{more} is over 1000 times its "
            "spread, so its changes hardly reach the policy: subtract a constant, for instance "
            "with gymnasium.wrappers.TransformObservation"
        )
