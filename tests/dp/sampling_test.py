"""Poisson sampling: every record on its own, at the stated rate, at a fixed shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax.crypto import ChaChaKey
from spax.dp import Poisson, capacity_for, sample

KEY = jax.random.key(0)
SECRET = ChaChaKey(jnp.arange(8, dtype=jnp.uint32))


def counts(key, sampling, draws):
    """How often each record was drawn, and the size of each batch."""

    def one(key):
        batch = sample(key, jnp.arange(sampling.num_records), sampling)
        hits = (
            jnp.zeros(sampling.num_records + 1)
            .at[jnp.where(batch.mask, batch.data, sampling.num_records)]
            .add(1)
        )
        return hits[:-1], batch.mask.sum()

    hits, sizes = jax.jit(jax.vmap(one))(jax.random.split(key, draws))
    return np.asarray(hits), np.asarray(sizes)


def test_records_take_part_independently_at_the_rate():
    sampling, draws = Poisson(rate=0.3, capacity=20, num_records=20), 4000
    hits, sizes = counts(KEY, sampling, draws)
    assert set(np.unique(hits)) <= {0, 1}
    low, high = stats.binom.interval(1 - 1e-6, draws, 0.3)
    assert (hits.sum(0) >= low).all()
    assert (hits.sum(0) <= high).all()
    # Independent records: sizes are binomial, and no two records are correlated.
    observed = np.bincount(sizes, minlength=21)
    expected = draws * stats.binom.pmf(np.arange(21), 20, 0.3)
    common = expected > 5
    assert (
        stats.chisquare(
            np.append(observed[common], observed[~common].sum()),
            np.append(expected[common], expected[~common].sum()),
        ).pvalue
        > 1e-4
    )
    correlation = np.corrcoef(hits.T)[~np.eye(20, dtype=bool)]
    assert np.abs(correlation).max() < 5 / np.sqrt(draws)


def test_a_secure_key_draws_at_the_rate_too():
    sampling = Poisson(rate=0.3, capacity=1000, num_records=1000)
    batch = sample(SECRET, jnp.arange(1000), sampling)
    low, high = stats.binom.interval(1 - 1e-6, 1000, 0.3)
    assert low <= int(batch.mask.sum()) <= high


def test_rows_are_whole_records_in_order_and_padding_is_marked():
    sampling = Poisson(rate=0.5, capacity=32, num_records=30)
    data = {"x": jnp.arange(60.0).reshape(30, 2), "y": jnp.arange(30)}
    batch = jax.jit(lambda key: sample(key, data, sampling))(KEY)
    assert batch.data["x"].shape == (32, 2)
    assert batch.mask.dtype == jnp.bool_
    size = int(batch.mask.sum())
    assert (np.asarray(batch.mask) == (np.arange(32) < size)).all()
    y = np.asarray(batch.data["y"])[:size]
    assert (np.diff(y) > 0).all()
    np.testing.assert_array_equal(batch.data["x"][:size], data["x"][y])


def test_the_last_records_are_cut_off_where_there_is_no_room():
    whole = Poisson(rate=0.5, capacity=50, num_records=50)
    small = Poisson(rate=0.5, capacity=5, num_records=50)
    all_of_them = sample(KEY, jnp.arange(50), whole)
    first = sample(KEY, jnp.arange(50), small)
    assert first.mask.all()
    np.testing.assert_array_equal(first.data, all_of_them.data[:5])


def test_a_rate_of_one_takes_everybody():
    batch = sample(KEY, jnp.arange(7), Poisson(rate=1.0, capacity=9, num_records=7))
    np.testing.assert_array_equal(batch.data[:7], np.arange(7))
    assert int(batch.mask.sum()) == 7


@pytest.mark.parametrize(("n", "rate"), [(100, 0.1), (1257, 0.2), (60_000, 0.004)])
def test_the_bound_on_overflow_is_one(n, rate):
    mean = n * rate
    for capacity in (int(mean), int(1.3 * mean) + 1, int(2 * mean), n - 1):
        exact = stats.binom.sf(capacity, n, rate)
        assert Poisson(rate, capacity, n).overflow >= exact
    assert Poisson(rate, n, n).overflow == 0


@pytest.mark.parametrize(("n", "rate", "steps"), [(100, 0.1, 50), (60_000, 0.004, 10_000)])
def test_the_capacity_suffices_and_is_the_smallest(n, rate, steps):
    capacity = capacity_for(n, rate, steps, overflow=1e-8)
    assert steps * Poisson(rate, capacity, n).overflow <= 1e-8
    assert steps * Poisson(rate, capacity - 1, n).overflow > 1e-8
    assert steps * stats.binom.sf(capacity, n, rate) <= 1e-8
    assert capacity_for(n, rate, steps, overflow=1e-3) < capacity
    assert capacity_for(5, 1.0, 10) == 5


def test_the_rate_is_rounded_down_to_the_draw():
    """2^-32 is the smallest rate that can be drawn; below it nobody is."""
    tiny = Poisson(rate=1e-12, capacity=4, num_records=1000)
    assert not sample(KEY, jnp.arange(1000), tiny).mask.any()


def test_the_same_rule_is_equal_and_hashable():
    assert Poisson(0.1, 5, 10) == Poisson(0.1, 5, 10)
    assert hash(Poisson(0.1, 5, 10)) == hash(Poisson(0.1, 5, 10))
    assert Poisson(0.1, 5, 10) != Poisson(0.1, 6, 10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Poisson(0.0, 5, 10), ValueError, "rate"),
        (lambda: Poisson(1.5, 5, 10), ValueError, "rate"),
        (lambda: Poisson(float("nan"), 5, 10), ValueError, "rate"),
        (lambda: Poisson(0.1, 0, 10), ValueError, "capacity"),
        (lambda: Poisson(0.1, 5, 0), ValueError, "num_records"),
        (lambda: capacity_for(10, 0.1, 5, overflow=0.0), ValueError, "overflow"),
        (lambda: sample(None, jnp.arange(10), Poisson(0.1, 5, 10)), ValueError, "key"),
        (lambda: sample(KEY, jnp.arange(9), Poisson(0.1, 5, 10)), ValueError, r"got .*\(9,\)"),
        (lambda: sample(KEY, jnp.float32(1), Poisson(0.1, 5, 10)), ValueError, "10 records"),
    ],
)
def test_bad_numbers_and_data_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
