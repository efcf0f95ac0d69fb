import numpy as np
import pytest
import torch

from common.dataset import Dataset, iterbatches
from tests.conftest import load_golden


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("make", [np.arange, torch.arange])
def test_order_equals_baselines(deterministic, make):
    data = load_golden("dataset")
    np.random.seed(data["seed"])
    dataset = Dataset({"i": make(int(data["n"]))}, deterministic=deterministic)
    order = [
        batch["i"]
        for _ in range(data["epochs"])
        for batch in dataset.iterate_once(int(data["batch"]))
    ]
    want = data["order_deterministic" if deterministic else "order"]
    np.testing.assert_array_equal(np.array([np.asarray(batch) for batch in order]), want)


def test_rows_stay_together_and_the_callers_dict_as_it_was():
    a = np.arange(10)
    given = {"a": a, "b": torch.arange(10) * 2}
    dataset = Dataset(given)
    for batch in dataset.iterate_once(3):
        np.testing.assert_array_equal(batch["a"] * 2, batch["b"])
    assert given["a"] is a
    np.testing.assert_array_equal(a, np.arange(10))


def test_partial_batch_is_dropped_by_iterate_once_and_kept_by_next_batch():
    dataset = Dataset({"a": np.arange(10)}, deterministic=True)
    assert [batch["a"].tolist() for batch in dataset.iterate_once(4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    assert [dataset.next_batch(4)["a"].tolist() for _ in range(4)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3],
    ]  # fmt: skip


def test_next_batch_shuffles_after_the_last_row():
    np.random.seed(1)
    dataset = Dataset({"a": np.arange(50)})
    first = dataset.next_batch(50)["a"].tolist()
    second = dataset.next_batch(50)["a"].tolist()
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_iterate_once_begins_anew_after_one_that_was_left_early():
    dataset = Dataset({"a": np.arange(6)}, deterministic=True)
    next(dataset.iterate_once(2))
    assert [batch["a"].tolist() for batch in dataset.iterate_once(2)] == [[0, 1], [2, 3], [4, 5]]


def test_shuffle_off_keeps_the_first_order():
    np.random.seed(3)
    want = np.arange(8)
    np.random.shuffle(want)
    np.random.seed(3)
    dataset = Dataset({"a": np.arange(8)}, shuffle=False)
    for _ in range(2):
        assert next(dataset.iterate_once(8))["a"].tolist() == want.tolist()


def test_subset():
    dataset = Dataset({"a": np.arange(6)}, deterministic=True)
    assert dataset.subset(2).data_map["a"].tolist() == [0, 1]


def test_one_row():
    assert [b["a"].tolist() for b in Dataset({"a": np.array([7])}).iterate_once(1)] == [[7]]


@pytest.mark.parametrize("data_map", [{}, {"a": np.arange(2), "b": np.arange(3)}])
def test_lengths_must_agree(data_map):
    with pytest.raises(ValueError, match="one length"):
        Dataset(data_map)


def test_iterbatches():
    arrays = [np.arange(7), torch.arange(7) * 10]

    def first(**options):
        return [a.tolist() for a, _ in iterbatches(arrays, shuffle=False, **options)]

    assert first(batch_size=3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert first(batch_size=3, include_final_partial_batch=False) == [[0, 1, 2], [3, 4, 5]]
    assert first(num_batches=3) == [[0, 1, 2], [3, 4], [5, 6]]
    shuffled = list(iterbatches(arrays, batch_size=2))
    assert sorted(i for a, _ in shuffled for i in a.tolist()) == list(range(7))
    for a, b in shuffled:
        np.testing.assert_array_equal(a * 10, b)


@pytest.mark.parametrize("options", [{}, {"num_batches": 2, "batch_size": 2}])
def test_iterbatches_takes_one_of_two_sizes(options):
    with pytest.raises(ValueError, match="exactly one"):
        list(iterbatches([np.arange(4)], **options))


def test_iterbatches_takes_lists():
    (batch,) = iterbatches([[1, 2], [3, 4]], num_batches=1, shuffle=False)
    assert [part.tolist() for part in batch] == [[1, 2], [3, 4]]


def test_iterbatches_lengths_must_agree():
    with pytest.raises(ValueError, match="different lengths"):
        list(iterbatches([np.arange(4), np.arange(5)], num_batches=2))
