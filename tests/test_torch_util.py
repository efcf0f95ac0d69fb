import numpy as np
import pytest
import torch

from common.torch_util import (
    FlatLayout,
    at_most_weights,
    flatten_parameters,
    glorot_uniform_conv,
    normc,
)


def test_normc_columns_have_the_norm_asked_for():
    weights = normc((30, 20), 0.7)
    # float32 sum of 30 squares
    np.testing.assert_allclose(weights.norm(dim=0), 0.7, atol=1e-6)
    np.random.seed(5)
    first = normc((3, 2), 1.0)
    np.random.seed(5)
    draws = np.random.randn(3, 2)
    np.testing.assert_allclose(first, draws / np.linalg.norm(draws, axis=0), atol=1e-6)


def test_glorot_bounds_memory_and_random_stream():
    before = np.random.get_state()[1].copy()
    weights = glorot_uniform_conv(4, 32, (8, 8))
    bound = np.sqrt(6 / (64 * 4 + 64 * 32))
    assert weights.shape == (32, 4, 8, 8)
    assert weights.is_contiguous(memory_format=torch.channels_last)
    assert 0.98 * bound < weights.abs().max() <= bound
    # A uniform variable's variance is bound**2 / 3; 8192 draws give it to about 1 %, allow 5
    np.testing.assert_allclose(weights.var().item(), bound**2 / 3, rtol=0.05)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def parameters():
    conv = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last)
    return [
        torch.nn.Parameter(torch.tensor([1.0, 2.0])),
        torch.nn.Parameter(conv),
        torch.nn.Parameter(torch.arange(6.0).view(3, 2).T),
        torch.nn.Parameter(torch.tensor(7.0)),
    ]


def test_parameters_become_views_with_values_and_memory_order_kept():
    params = parameters()
    before = [p.detach().clone() for p in params]
    strides = [p.stride() for p in params]
    flat = flatten_parameters(params)
    for p, value, stride in zip(params, before, strides, strict=True):
        assert torch.equal(p.data, value)
        assert p.stride() == stride
        assert p.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    assert flat[:2].tolist() == [1, 2]
    assert flat[2:122].tolist() == before[1].permute(0, 2, 3, 1).flatten().tolist()
    assert flat[122:128].tolist() == list(range(6))
    flat.fill_(3.0)
    assert all((p == 3.0).all() for p in params)


def test_layout_reads_what_flatten_wrote():
    params = parameters()
    flat = flatten_parameters(params)
    for view, p in zip(FlatLayout(params).views(flat.clone()), params, strict=True):
        assert torch.equal(view, p)


def test_flatten_rejects_what_it_cannot_hold():
    p = torch.nn.Parameter(torch.zeros(2))
    for wrong in ([], [p, p]):
        with pytest.raises(ValueError, match="each once"):
            flatten_parameters(wrong)
    with pytest.raises(ValueError, match="must be float32, got torch.float64"):
        flatten_parameters([p, torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))])


def test_weights_beyond_those_of_a_file_are_not_drawn(monkeypatch):
    monkeypatch.setattr("common.torch_util.MANY_WEIGHTS", 0)
    with at_most_weights(14):
        normc((2, 3), 1.0)
        glorot_uniform_conv(2, 1, (2, 2))
        with pytest.raises(ValueError, match=r"larger than the saved one: a layer of \(1, 1\)"):
            normc((1, 1), 1.0)
    normc((1, 1), 1.0)
