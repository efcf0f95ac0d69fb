"""Running mean and standard deviation of observations, in step on all ranks.

Source: baselines/common/mpi_running_mean_std.py @ ea25b9e.
"""

import numpy as np
from mpi4py import MPI
from numpy.typing import ArrayLike, NDArray


class RunningMeanStd:
    """Float64 sum, sum of squares and count, with the float32 mean and std that they give.

    mean = float32(sum / count)
    std  = sqrt(max(float32(sumsq / count) - mean * mean, 1e-2)), the subtraction in float32

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
        self.runningsum = self._totals[:size].reshape(shape)
        self.runningsumsq = self._totals[size:-1].reshape(shape)
        self.count = self._totals[-1:].reshape(())
        self.refresh()

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
