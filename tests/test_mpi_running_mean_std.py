import copy
import pickle

import numpy as np
import pytest
from mpi4py import MPI

from common.mpi_running_mean_std import RunningMeanStd, ill_scaled
from tests.conftest import assert_close, load_golden
from tests.ranks import on_ranks


def golden_on_rank(comm):
    data = load_golden(f"running_mean_std_{comm.Get_size()}")
    rank = comm.Get_rank()
    rms = RunningMeanStd(shape=data["x"].shape[3:], comm=comm)
    history = []
    for x in data["x"][rank]:
        rms.update(x[: data["rows_per_rank"][rank]])
        history.append((rms.mean, rms.std))
    return history


def check_golden(size, results):
    want = load_golden(f"running_mean_std_{size}")
    for history in results:
        for k, (mean, std) in enumerate(history):
            assert mean.dtype == std.dtype == np.float32
            assert_close(mean, want["mean"][k])
            assert_close(std, want["std"][k])


def test_one_rank_equals_baselines():
    check_golden(1, [golden_on_rank(MPI.COMM_SELF)])


@pytest.mark.slow
@pytest.mark.mpi
def test_four_ranks_equal_baselines():
    check_golden(4, on_ranks(4, golden_on_rank))


def pooled_on_rank(comm):
    rows = np.random.RandomState(comm.Get_rank()).randn(4 * comm.Get_rank(), 3)  # rank 0 has none
    rms = RunningMeanStd(shape=(3,), comm=comm)
    rms.update(rows)
    return rows, rms.mean, rms.std, float(rms.count)


@pytest.mark.mpi
@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_unequal_shares_equal_one_process_on_the_pooled_rows(size):
    results = on_ranks(size, pooled_on_rank)
    rms = RunningMeanStd(shape=(3,), comm=MPI.COMM_SELF)
    rms.update(np.concatenate([rows for rows, *_ in results]))
    for _, mean, std, count in results:
        # float64 sums in another order, then rounded to float32
        np.testing.assert_allclose(mean, rms.mean, atol=1e-7)
        np.testing.assert_allclose(std, rms.std, atol=1e-7)
        assert count == rms.count


def test_starts_with_mean_0_and_std_1():
    rms = RunningMeanStd(shape=(2,), comm=MPI.COMM_SELF)
    assert rms.mean.tolist() == [0, 0]
    assert rms.std.tolist() == [1, 1]


def test_scalar_shape_and_hand_worked_values():
    rms = RunningMeanStd(epsilon=1.0, comm=MPI.COMM_SELF)
    rms.update(np.array([2.0, 4.0, 6.0]))  # sum 12, sumsq 1 + 56, count 4
    assert rms.mean.shape == rms.std.shape == ()
    assert rms.mean == 3.0
    assert rms.std == np.float32(np.sqrt(np.float32(57 / 4 - 9)))


@pytest.mark.parametrize("epsilon", [1e-2, 1e-8])
def test_std_never_falls_below_a_tenth_whatever_epsilon_is(epsilon):
    rms = RunningMeanStd(epsilon=epsilon, shape=(1,), comm=MPI.COMM_SELF)
    rms.update(np.full((1000, 1), 3.0))
    np.testing.assert_allclose(rms.std, 0.1, rtol=1e-6)


def test_variance_is_a_float32_difference():
    """A float64 one would differ by a thousandth here, as baselines' does not."""
    x = np.random.RandomState(0).randn(500, 1) + 300.0
    rms = RunningMeanStd(shape=(1,), comm=MPI.COMM_SELF)
    rms.update(x)
    second = np.float32(rms.runningsumsq / rms.count)
    assert rms.std == np.sqrt(second - rms.mean * rms.mean)
    exact = np.sqrt(rms.runningsumsq / rms.count - (rms.runningsum / rms.count) ** 2)
    assert abs(rms.std - exact) > 1e-4


def test_an_earlier_mean_is_not_overwritten_and_sums_can_be_set():
    rms = RunningMeanStd(shape=(2,), comm=MPI.COMM_SELF)
    before = rms.mean
    rms.update(np.ones((4, 2)))
    assert before.tolist() == [0, 0]
    rms.runningsum[:] = 8.0
    rms.runningsumsq[:] = 40.0
    rms.count[...] = 2.0
    rms.refresh()
    assert (rms.mean.tolist(), rms.std.tolist()) == ([4, 4], [2, 2])


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_a_copy_goes_on_alone(how, shape):
    x = np.random.RandomState(0).randn(3, 20, *shape)
    rms = RunningMeanStd(shape=shape, comm=MPI.COMM_SELF)
    rms.update(x[0])
    other = how(rms)
    other.update(x[1])
    rms.update(x[1])
    np.testing.assert_array_equal(other._totals, rms._totals)
    np.testing.assert_array_equal(other.std, rms.std)
    other.update(x[2])
    other.runningsum[...] += 1
    assert (other._totals != rms._totals).all()
    other = how(rms)
    assert other.comm is (MPI.COMM_SELF if how is copy.deepcopy else MPI.COMM_WORLD)


def test_means_too_large_for_their_spread():
    """From there on the float32 difference is more rounding than variance."""
    noise = np.random.RandomState(0).choice([-1.0, 1.0], size=(2048, 1))
    level = np.array([0.0, 999.0, -1001.0, 1e6, 1e9, 99.0, 101.0, 1e6, 500.0])
    spread = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.01, 0.01, 1e4, 0.0])
    x = level + noise * spread
    assert ill_scaled(x - noise.mean() * spread) == [(2,), (3,), (4,), (6,)]
    assert ill_scaled(x.astype(np.float32)[:, :8].reshape(-1, 2, 4)) == [(0, 2), (0, 3), (1, 2)]
    rms = RunningMeanStd(shape=(9,), comm=MPI.COMM_SELF)
    rms.update(np.concatenate([x] * 50))
    assert rms.std[3] > 100  # baselines' formula, where 1 would be right
