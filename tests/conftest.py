"""Fixtures that several test modules use."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common import logger

torch.set_num_threads(1)  # as the scripts do

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Return a loader of baselines' numbers by file name."""
    return load_golden


def load_golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def assert_close(got: object, want: np.ndarray) -> None:
    """Float32 results of another library: 1e-6, times the largest value where that is above 1."""
    want = np.asarray(want)
    tolerance = 1e-6 * max(1.0, float(np.abs(want).max(initial=0.0)))
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Give each test the same seeds and an unconfigured logger."""
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    logger.reset()
