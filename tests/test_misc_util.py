"""Global seeds and zipsame."""

import random

import numpy as np
import pytest
import torch

from common.misc_util import set_global_seeds, zipsame


@pytest.fixture(autouse=True)
def generators_restored():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.parametrize("seed", [0, 7, np.int64(7), 2**32 - 1])
def test_every_generator_gets_the_seed(seed):
    set_global_seeds(seed)
    expected = (
        random.Random(int(seed)).random(),
        np.random.RandomState(int(seed)).rand(),
        torch.rand((), generator=torch.Generator().manual_seed(int(seed))).item(),
    )
    assert draw() == expected


def test_other_seed_other_numbers():
    set_global_seeds(1)
    first = draw()
    set_global_seeds(2)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


def test_none_leaves_all_alone():
    set_global_seeds(3)
    expected = draw()
    set_global_seeds(3)
    set_global_seeds(None)
    assert draw() == expected


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_out_of_range_touches_nothing(seed):
    set_global_seeds(3)
    expected = draw()
    set_global_seeds(3)
    with pytest.raises(ValueError, match=rf"less than 4294967296 \(2\*\*32\), got {seed}$"):
        set_global_seeds(seed)
    assert draw() == expected


def test_float_is_refused():
    with pytest.raises(TypeError):
        set_global_seeds(1.0)


def test_zipsame():
    assert list(zipsame([1, 2], "ab", (3.0, 4.0))) == [(1, "a", 3.0), (2, "b", 4.0)]
    assert list(zipsame([], [])) == []


def test_zipsame_checks_before_the_first_item():
    with pytest.raises(ValueError, match=r"got lengths \[3, 2\]"):
        zipsame([1, 2, 3], [1, 2])
