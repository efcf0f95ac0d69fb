"""Mean and standard deviation over all ranks' rows.

Source: baselines/common/mpi_moments.py @ ea25b9e.
Differs: sums run in float64 whatever the input's dtype.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.mpi import MPI


def mpi_mean(
    x: ArrayLike, axis: int = 0, comm: MPI.Comm | None = None, keepdims: bool = False
) -> tuple[NDArray[np.float64], float]:
    """Return the mean over `axis` of all ranks' `x` taken together, and the number of rows.

    Args:
        x: an array of at least one dimension; ranks may hold different numbers of rows.
        axis: the axis that is averaged away.
        comm: the ranks; None is COMM_WORLD.
        keepdims: keep the averaged axis with length 1.

    Collective: every rank must call it.

    Raises:
        ValueError: if `x` has no dimension.
    """
    x = np.asarray(x)
    if x.ndim == 0:
        raise ValueError(f"mpi_mean needs an array of at least one dimension, got a scalar: {x}")
    comm = MPI.COMM_WORLD if comm is None else comm
    local = x.sum(axis=axis, keepdims=keepdims, dtype=np.float64)
    total = np.append(local.ravel(), float(x.shape[axis]))
    comm.Allreduce(MPI.IN_PLACE, total, op=MPI.SUM)
    count = float(total[-1])
    return total[:-1].reshape(local.shape) / count, count


def mpi_moments(
    x: ArrayLike, axis: int = 0, comm: MPI.Comm | None = None, keepdims: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return mean, standard deviation (ddof 0) and row count of all ranks' `x` over `axis`.

    Arguments and errors are those of `mpi_mean`.

    Collective: every rank must call it.
    """
    x = np.asarray(x)
    mean, count = mpi_mean(x, axis=axis, comm=comm, keepdims=True)
    variance, _ = mpi_mean(np.square(x - mean), axis=axis, comm=comm, keepdims=True)
    std = np.sqrt(variance)
    if not keepdims:
        mean, std = mean.squeeze(axis=axis), std.squeeze(axis=axis)
    return mean, std, count
