import jax
import numpy as np
import pytest

from spax.audit import AuditError
from spax.audit.data import check_data, describe_data, in_batches, sample
from spax.datasets import Dataset
from tests.audit import linear

KEY = jax.random.key(0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("n", [1, 5, 6])
def test_batches_give_what_singles_give(n, batch_size):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 3)), rng.integers(0, 4, n)
    got = in_batches(
        lambda x, y, key: {"sum": x.sum(axis=1) + y, "x": x},
        x,
        y,
        key=KEY,
        batch_size=batch_size,
    )
    np.testing.assert_array_equal(got["sum"], x.sum(axis=1) + y)
    np.testing.assert_array_equal(got["x"], x)


@pytest.mark.parametrize(("n", "batch_size"), [(7, 3), (10, 4), (6, 3), (5, 9)])
def test_batches_have_one_shape_that_is_no_larger_than_asked_for(n, batch_size):
    seen = []
    in_batches(
        lambda x, y, key: seen.append(x.shape) or x,
        np.zeros((n, 2)),
        np.zeros(n),
        key=KEY,
        batch_size=batch_size,
    )
    assert len(set(seen)) == 1
    assert seen[0][0] <= batch_size
    assert len(seen) == -(-n // batch_size)


def test_each_batch_draws_for_itself():
    draws = in_batches(
        lambda x, y, key: jax.random.normal(key, x.shape),
        np.zeros(100),
        np.zeros(100),
        key=KEY,
        batch_size=10,
    )
    assert len(np.unique(draws)) == 100


def test_a_sample_is_drawn_without_replacement_and_keeps_order_and_pairs():
    x, y = np.arange(100.0), np.arange(100)
    got_x, got_y = sample(x, y, 30, KEY)
    np.testing.assert_array_equal(got_x, got_y)
    assert len(got_y) == 30
    assert (np.diff(got_y) > 0).all()
    np.testing.assert_array_equal(sample(x, y, 30, KEY)[1], got_y)
    assert (sample(x, y, 30, jax.random.key(1))[1] != got_y).any()
    np.testing.assert_array_equal(sample(x, y, 100, KEY)[1], y)


def test_a_sample_of_sorted_data_has_every_class():
    # Hypergeometric: a class of 100 among 1000 is missed by 100 draws with probability 1.6e-5.
    y = np.repeat(np.arange(10), 100)
    _, got = sample(y, y, 100, KEY)
    assert len(np.unique(got)) == 10


def test_data_are_described():
    described = describe_data(linear.data())
    assert described == {
        "name": "linear",
        "test_examples": 40,
        "train_examples": 60,
        "example_shape": [4, 4, 1],
        "classes": 2,
        "bounds": [0.0, 1.0],
    }
    assert describe_data(linear.data(members=False))["train_examples"] is None


@pytest.mark.parametrize("wrong", [None, (np.zeros((2, 2)), np.zeros(2)), {"x": 1}])
def test_only_a_dataset_is_data(wrong):
    with pytest.raises(AuditError, match="Dataset"):
        check_data(wrong)
    x = np.zeros((2, 3), np.float32)
    check_data(Dataset(None, None, x, np.array([0, 1]), "two"))
