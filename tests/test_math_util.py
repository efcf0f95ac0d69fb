"""explained_variance against numbers worked by hand."""

import math

import numpy as np
import pytest

from common.math_util import explained_variance


def f32(*numbers):
    return np.array(numbers, dtype=np.float32)


@pytest.mark.parametrize(
    "ypred, expected",
    [
        ((1, 2, 3, 4), 1.0),  # perfect
        ((2, 3, 4, 5), 1.0),  # off by a constant, which costs nothing
        ((7, 7, 7, 7), 0.0),  # a constant
        ((4, 3, 2, 1), -3.0),  # errors -3 -1 1 3: variance 5, against 1.25
        ((0, 2, 3, 5), 0.6),  # errors 1 0 0 -1: variance 0.5
    ],
)
def test_value(ypred, expected):
    # Within one float32 rounding of the ratio of variances.
    assert explained_variance(f32(*ypred), f32(1, 2, 3, 4)) == pytest.approx(expected, abs=1e-7)


def test_constant_target_is_nan():
    assert math.isnan(explained_variance(f32(1, 2, 3), f32(5, 5, 5)))


def test_float32_ratio_is_subtracted_in_float64():
    """As NumPy 1 did: the ratio of float32 variances, exactly, and no rounding after it."""
    y, ypred = f32(0, 1, 0, 1), f32(0.1, 0.9, 0.1, 0.9)
    ratio = np.var(y - ypred) / np.var(y)
    assert ratio.dtype == np.float32
    got = explained_variance(ypred, y)
    assert type(got) is float
    assert got == 1.0 - float(ratio)
    assert got != float(np.float32(1) - ratio)


@pytest.mark.parametrize(
    "ypred, y", [(np.zeros((2, 2)), np.zeros((2, 2))), (np.zeros(3), np.zeros(4)), (0.0, 0.0)]
)
def test_bad_shapes(ypred, y):
    with pytest.raises(ValueError, match=r"1-d arrays of one length, got shapes \("):
        explained_variance(ypred, y)
