import numpy as np
import pytest
from mpi4py import MPI

from common.mpi_moments import mpi_mean, mpi_moments
from tests.conftest import assert_close, load_golden
from tests.ranks import on_ranks


def golden_on_rank(comm):
    x = load_golden(f"mpi_moments_{comm.Get_size()}")["x"][comm.Get_rank()]
    return mpi_moments(x, axis=0, comm=comm)


def test_one_rank_equals_baselines():
    check_golden(1, [golden_on_rank(MPI.COMM_SELF)])


@pytest.mark.slow
@pytest.mark.mpi
def test_four_ranks_equal_baselines():
    check_golden(4, on_ranks(4, golden_on_rank))


def check_golden(size, results):
    want = load_golden(f"mpi_moments_{size}")
    for mean, std, count in results:
        assert_close(mean, want["mean"])
        assert_close(std, want["std"])
        assert count == want["count"]


def pooled_on_rank(comm):
    rows = np.random.RandomState(comm.Get_rank()).randn(3 + 2 * comm.Get_rank(), 2, 4)
    return rows, mpi_moments(rows, comm=comm), mpi_moments(rows, axis=0, comm=comm, keepdims=True)


@pytest.mark.mpi
@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_unequal_shares_equal_one_process_on_the_pooled_rows(size):
    results = on_ranks(size, pooled_on_rank)
    pooled = np.concatenate([rows for rows, _, _ in results])
    for _, (mean, std, count), (kept_mean, _, _) in results:
        # float64 sums in another order
        np.testing.assert_allclose(mean, pooled.mean(axis=0), atol=1e-14)
        np.testing.assert_allclose(std, pooled.std(axis=0), atol=1e-14)
        assert count == len(pooled)
        assert kept_mean.shape == (1, 2, 4)


def test_axis_keepdims_and_scalars():
    x = np.array([[1.0, 3.0], [5.0, 11.0]], np.float32)
    mean, std, count = mpi_moments(x, axis=1, comm=MPI.COMM_SELF)
    assert (mean.tolist(), std.tolist(), count) == ([2.0, 8.0], [1.0, 3.0], 2)
    mean, count = mpi_mean(x, axis=1, comm=MPI.COMM_SELF, keepdims=True)
    assert mean.tolist() == [[2.0], [8.0]]
    assert mpi_moments([4.0, 6.0], comm=MPI.COMM_SELF)[:2] == (5.0, 1.0)
    with pytest.raises(ValueError, match="at least one dimension"):
        mpi_mean(3.0, comm=MPI.COMM_SELF)


def test_float32_rows_are_summed_in_float64():
    x = np.full(10_000, 16_777_217.0, np.float64).astype(np.float32)
    assert mpi_mean(x, comm=MPI.COMM_SELF)[0] == x[0]
