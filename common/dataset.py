"""Shuffled minibatches of several arrays of equal length.

Source: baselines/common/dataset.py @ ea25b9e.
Differs: takes torch tensors beside NumPy arrays, and leaves the caller's dict as it was.

All shuffles draw from NumPy's global legacy random state.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class Dataset:
    """Arrays that are permuted together; each shuffle permutes what the last one left.

    Attributes:
        data_map: name to array; every array is (n, ...).
        n: the number of rows.
    """

    def __init__(
        self, data_map: dict[str, Any], deterministic: bool = False, shuffle: bool = True
    ) -> None:
        """Take the arrays and shuffle them once.

        Args:
            data_map: name to NumPy array or torch tensor, all with the same first dimension.
            deterministic: never shuffle.
            shuffle: shuffle anew at each `iterate_once` too.

        Raises:
            ValueError: if the arrays' lengths differ.
        """
        self.data_map = dict(data_map)
        lengths = {key: len(array) for key, array in self.data_map.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a Dataset needs arrays of one length, got {lengths}")
        self.deterministic = deterministic
        self.enable_shuffle = shuffle
        self.n = next(iter(lengths.values()))
        self._next_id = 0
        self.shuffle()

    def shuffle(self) -> None:
        """Permute all arrays by one random permutation, unless deterministic."""
        if self.deterministic:
            return
        permutation = np.arange(self.n)
        np.random.shuffle(permutation)
        self.data_map = {key: array[permutation] for key, array in self.data_map.items()}
        self._next_id = 0

    def next_batch(self, batch_size: int) -> dict[str, Any]:
        """Return the next rows, at most `batch_size` of them; at the end, shuffle and go on."""
        if self._next_id >= self.n:
            self._next_id = 0
            if self.enable_shuffle:
                self.shuffle()
        start = self._next_id
        self._next_id = min(start + batch_size, self.n)
        return {key: array[start : self._next_id] for key, array in self.data_map.items()}

    def iterate_once(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield minibatches of exactly `batch_size` rows; a last partial one is dropped."""
        self._next_id = 0
        if self.enable_shuffle:
            self.shuffle()
        while self._next_id <= self.n - batch_size:
            yield self.next_batch(batch_size)
        self._next_id = 0

    def subset(self, num_elements: int, deterministic: bool = True) -> "Dataset":
        """Return a Dataset of the first `num_elements` rows."""
        first = {key: array[:num_elements] for key, array in self.data_map.items()}
        return Dataset(first, deterministic)


def iterbatches(
    arrays: Sequence[Any],
    *,
    num_batches: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = True,
    include_final_partial_batch: bool = True,
) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of matching rows of `arrays`, once through.

    Args:
        arrays: NumPy arrays or torch tensors of one length n.
        num_batches: split into this many nearly equal parts; or give
        batch_size: rows a part.
        shuffle: draw the order from NumPy's global state; else keep it.
        include_final_partial_batch: with `batch_size`, yield the shorter last part too.

    Raises:
        ValueError: if not exactly one of `num_batches` and `batch_size` is given, or the lengths
            differ.
    """
    if (num_batches is None) == (batch_size is None):
        raise ValueError(
            f"give exactly one of num_batches ({num_batches}) and batch_size ({batch_size})"
        )
    arrays = [a if hasattr(a, "shape") else np.asarray(a) for a in arrays]
    n = len(arrays[0])
    if any(len(array) != n for array in arrays):
        raise ValueError(f"arrays of different lengths: {[len(array) for array in arrays]}")
    order = np.arange(n)
    if shuffle:
        np.random.shuffle(order)
    if num_batches is not None:
        parts = np.array_split(order, num_batches)
    elif batch_size is not None:
        parts = np.split(order, np.arange(batch_size, n, batch_size))
    for part in parts:
        if include_final_partial_batch or batch_size is None or len(part) == batch_size:
            yield tuple(array[part] for array in arrays)
