import math

import numpy as np
import pytest
import torch
from mpi4py import MPI

from common import mpi_adam
from common.mpi_adam import MpiAdam
from common.mpi_util import CollectiveError
from tests.conftest import assert_close, load_golden
from tests.ranks import on_ranks

CASES = [(epsilon, scale) for epsilon in ("1e-08", "1e-05") for scale in (0, 1)]


def golden_on_rank(comm):
    data = load_golden(f"mpi_adam_{comm.Get_size()}")
    histories = {}
    for epsilon, scale in CASES:
        theta0 = torch.from_numpy(data["theta0"])
        variables = [torch.nn.Parameter(theta0[:5]), torch.nn.Parameter(theta0[5:].view(3, 4))]
        adam = MpiAdam(
            variables, epsilon=float(epsilon), scale_grad_by_procs=bool(scale), comm=comm
        )
        adam.sync()
        histories[epsilon, scale] = []
        for g, stepsize in zip(data["grads"][comm.Get_rank()], data["stepsizes"], strict=True):
            adam.update(g.copy(), stepsize)
            by_variable = np.concatenate([v.detach().numpy().ravel() for v in variables])
            np.testing.assert_array_equal(by_variable, adam.getflat())
            histories[epsilon, scale].append(adam.getflat())
    return histories


def check_golden(size, results):
    want = load_golden(f"mpi_adam_{size}")
    for histories in results:
        for epsilon, scale in CASES:
            assert_close(histories[epsilon, scale], want[f"theta_eps{epsilon}_scale{scale}"])


def test_one_rank_equals_baselines():
    check_golden(1, [golden_on_rank(MPI.COMM_SELF)])


@pytest.mark.slow
@pytest.mark.mpi
def test_four_ranks_equal_baselines_and_each_other_bit_for_bit():
    results = on_ranks(4, golden_on_rank)
    check_golden(4, results)
    for case in CASES:
        for histories in results[1:]:
            np.testing.assert_array_equal(histories[case], results[0][case])


def make_adam(size=7, comm=MPI.COMM_SELF, **options):
    return MpiAdam([torch.nn.Parameter(torch.ones(size))], comm=comm, **options)


def test_chunks_do_not_change_the_result(monkeypatch):
    """In chunks or at once, and as the formula written plainly: the same float32, bit for bit."""
    gradients = np.random.RandomState(0).randn(6, 1000).astype(np.float32)
    whole = make_adam(1000)
    for g in gradients:
        whole.update(g.copy(), 1e-2)
    monkeypatch.setattr(mpi_adam, "CHUNK", 64)
    chunked = make_adam(1000)
    theta, m, v = np.ones(1000, np.float32), np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    for t, g in enumerate(gradients, start=1):
        chunked.update(g.copy(), 1e-2)
        a = 1e-2 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * (g * g)
        theta = theta + (-a) * m / (np.sqrt(v) + 1e-8)
    np.testing.assert_array_equal(chunked.getflat(), whole.getflat())
    np.testing.assert_array_equal(chunked.getflat(), theta)
    np.testing.assert_array_equal(chunked.m, m)
    np.testing.assert_array_equal(chunked.v, v)


def test_a_numpy_stepsize_keeps_the_vectors_float32():
    adam = make_adam()
    adam.update(np.ones(7, np.float32), np.float64(1e-3))
    assert adam.getflat().dtype == adam.m.dtype == adam.v.dtype == np.float32
    assert adam.t == 1


def test_takes_torch_gradients_and_read_only_ones():
    torch_adam, numpy_adam = make_adam(), make_adam()
    gradient = np.arange(7, dtype=np.float32)
    torch_adam.update(torch.from_numpy(gradient.copy()), 0.1)
    gradient.flags.writeable = False
    numpy_adam.update(gradient, 0.1)
    np.testing.assert_array_equal(torch_adam.getflat(), numpy_adam.getflat())


def test_getflat_is_a_copy_and_setfromflat_reaches_the_parameters():
    p = torch.nn.Parameter(torch.zeros(2, 2))
    adam = MpiAdam([p], comm=MPI.COMM_SELF)
    before = adam.getflat()
    adam.setfromflat(np.arange(4, dtype=np.float32))
    assert p.tolist() == [[0, 1], [2, 3]]
    assert before.tolist() == [0, 0, 0, 0]


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"shape \(3,\) for parameters of shape \(7,\)"):
        make_adam().update(np.ones(3, np.float32), 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(value):
    adam = make_adam()
    adam.update(np.ones(7, np.float32), 0.1)
    before = adam.getflat(), adam.m.copy(), adam.v.copy()
    gradient = np.ones(7, np.float32)
    gradient[3] = value
    with pytest.raises(CollectiveError, match="gradient is not finite at update 2"):
        adam.update(gradient, 0.1)
    for got, want in zip((adam.getflat(), adam.m, adam.v), before, strict=True):
        np.testing.assert_array_equal(got, want)
    assert adam.t == 1


def test_large_gradients_whose_sum_overflows_are_finite():
    adam = make_adam()
    gradient = np.full(7, 1e38, np.float32)
    with np.errstate(over="ignore"):
        adam.update(
            gradient, 0.1
        )  # its square overflows to an infinite v: no step, as in baselines
    assert np.isfinite(adam.getflat()).all()


def test_looking_for_infinities_warns_of_nothing():
    assert mpi_adam._is_finite(np.full(7, 1e30, np.float32))  # whose squares overflow
    assert not mpi_adam._is_finite(np.array([1.0, np.inf], np.float32))


def faults_on_rank(comm):
    """NaN on rank 1 alone, then drifting parameters on the last rank alone."""
    adam = make_adam(comm=comm)
    adam.sync()
    messages = []
    gradient = np.ones(7, np.float32)
    if comm.Get_rank() == 1:
        gradient[0] = math.nan
    try:
        adam.update(gradient, 0.1)
    except CollectiveError as error:
        messages.append(str(error))
    if comm.Get_rank() == comm.Get_size() - 1:
        adam.theta[2] += 0.25
    try:
        adam.check_synced()
    except CollectiveError as error:
        messages.append(str(error))
    adam.sync()
    adam.check_synced()
    return messages


@pytest.mark.mpi
def test_all_ranks_raise_together_and_name_the_rank():
    for messages in on_ranks(3, faults_on_rank):
        assert messages == [
            "the gradient is not finite (from rank 1) at update 1",
            "after 0 updates parameters differ from rank 0's: rank 2 by up to 0.25",
        ]


def drift_on_rank(comm):
    adam = make_adam(comm=comm)
    adam.sync()
    for t in range(205):
        if t == 120 and comm.Get_rank() == 1:
            adam.theta[0] = float(np.nextafter(np.float32(adam.theta[0]), np.float32(9)))
        try:
            adam.update(np.ones(7, np.float32), 1e-3)
        except CollectiveError as error:
            return t, str(error)
    return None


@pytest.mark.slow
@pytest.mark.mpi
def test_drift_in_the_last_bit_is_found_before_every_hundredth_update():
    for found_at, message in on_ranks(2, drift_on_rank):
        assert found_at == 200
        assert "after 200 updates parameters differ from rank 0's: rank 1" in message


def sync_on_rank(comm):
    p = torch.nn.Parameter(torch.full((3,), float(comm.Get_rank() + 5)))
    MpiAdam([p], comm=comm).sync()
    return p.tolist()


@pytest.mark.slow
@pytest.mark.mpi
def test_sync_gives_all_ranks_the_roots_parameters():
    assert on_ranks(2, sync_on_rank) == [[5, 5, 5]] * 2
