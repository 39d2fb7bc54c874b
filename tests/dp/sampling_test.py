"""Poisson sampling: every record on its own, at the stated rate, at a fixed shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax.crypto import ChaChaKey
from spax.dp import (
    BallsInBins,
    FixedSize,
    Poisson,
    Shuffled,
    Users,
    capacity_for,
    draws,
    sample,
    shuffle,
)

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


KEYS = pytest.mark.parametrize("key", [KEY, SECRET], ids=["jax.random", "ChaCha20"])


def epochs(sampling, steps, key=KEY):
    """Batches of all steps, as sets of records."""
    draw = jax.jit(lambda i: sample(key, jnp.arange(sampling.num_records), sampling, step=i))
    batches = [draw(i) for i in range(steps)]
    return [np.asarray(b.data)[np.asarray(b.mask)] for b in batches]


@KEYS
def test_an_epoch_of_shuffled_batches_has_every_record_once(key):
    sampling = Shuffled(batch_size=4, num_records=12)
    batches = epochs(sampling, 6, key)
    first, second = (np.concatenate(part) for part in (batches[:3], batches[3:]))
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(12))
    assert (first != second).any()
    assert sampling.batches == 3


def test_the_rest_of_an_epoch_is_left_out():
    batches = np.concatenate(epochs(Shuffled(batch_size=5, num_records=12), 2))
    assert len(np.unique(batches)) == 10


def test_orders_are_uniform():
    drawn = jax.jit(jax.vmap(lambda k: draws.order(k, 4)))(jax.random.split(KEY, 12_000))
    codes = np.asarray(drawn) @ np.array([64, 16, 4, 1])
    _, observed = np.unique(codes, return_counts=True)
    assert len(observed) == 24
    assert stats.chisquare(observed).pvalue > 1e-3


def test_batches_of_fixed_size_are_uniform_subsets():
    sampling = FixedSize(batch_size=2, num_records=5)
    many = jax.jit(jax.vmap(lambda k: sample(k, jnp.arange(5), sampling).data))
    pairs = np.sort(np.asarray(many(jax.random.split(KEY, 10_000))), axis=1)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    _, observed = np.unique(pairs @ np.array([5, 1]), return_counts=True)
    assert len(observed) == 10
    assert stats.chisquare(observed).pvalue > 1e-3
    assert (sampling.rate, sampling.capacity, sampling.expected_size) == (0.4, 2, 2.0)


@KEYS
def test_balls_fall_into_one_bin_an_epoch_each_equally_often(key):
    sampling = BallsInBins(batches=3, capacity=900, num_records=900)
    batches = epochs(sampling, 6, key)
    for epoch in (batches[:3], batches[3:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(900))
        assert stats.chisquare([len(b) for b in epoch]).pvalue > 1e-4
    assert set(batches[0]) != set(batches[3])


def test_users_are_drawn_as_records_are():
    records, users = Poisson(0.3, 20, 20), Users(0.3, 20, 20)
    data = {"text": jnp.arange(60).reshape(20, 3)}
    for one, two in zip(
        *(jax.tree.leaves(sample(KEY, data, rule)) for rule in (records, users)), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    assert (users.unit, users.expected_size, users.overflow) == ("user", 6.0, 0.0)
    assert Users(0.3, 9, 20).overflow == Poisson(0.3, 9, 20).overflow


def test_the_step_is_folded_into_the_key():
    """What is resumed draws what it would have drawn; without a step the key is used as it is."""
    for rule in (Poisson(0.4, 30, 30), FixedSize(5, 30)):
        found = sample(KEY, jnp.arange(30), rule, step=7)
        again = sample(jax.random.fold_in(KEY, 7), jnp.arange(30), rule)
        np.testing.assert_array_equal(found.data, again.data)
        other = sample(KEY, jnp.arange(30), rule, step=8)
        assert (np.asarray(found.data) != np.asarray(other.data)).any()


def test_rules_say_what_an_accountant_has_to_know():
    rules = (
        Poisson(0.1, 5, 10),
        Users(0.1, 5, 10),
        FixedSize(5, 10),
        Shuffled(5, 10),
        BallsInBins(2, 10, 10),
    )
    assert [(r.sampler, r.adjacency, r.unit) for r in rules] == [
        ("poisson", "add_remove", "record"),
        ("poisson", "add_remove", "user"),
        ("fixed_size", "replace", "record"),
        ("shuffled", "replace", "record"),
        ("balls_in_bins", "add_remove", "record"),
    ]
    assert len(set(rules)) == 5
    for rule in rules:
        batch = sample(KEY, jnp.arange(10), rule, step=0)
        assert batch.mask.shape == (rule.capacity,)
        assert rule.expected_size == rule.rate * rule.num_records
        assert 0 <= rule.overflow <= 1


@pytest.mark.parametrize("capacity", [300, 340, 400])
def test_the_overflow_of_bins_is_bounded(capacity):
    assert BallsInBins(3, capacity, 900).overflow >= stats.binom.sf(capacity, 900, 1 / 3)


@pytest.mark.slow
def test_an_empty_batch_is_noise_and_is_counted():
    from spax import dp

    sampling = Poisson(rate=1e-9, capacity=2, num_records=3)
    batch = sample(KEY, jnp.ones(3), sampling)
    assert not batch.mask.any()
    step = dp.private_grad(
        lambda w, x, key: (w @ w * x, None),
        l2_clip_norm=1.0,
        noise_multiplier=1.0,
        sampling=sampling,
    )
    out, privacy = step(jnp.ones(4), batch, dp.init_privacy(sampling), key=KEY)
    assert (np.abs(out.grads) > 0).all()
    assert int(privacy.steps) == 1
    assert float(privacy.spent.total[-1]) > 0


@KEYS
def test_shuffling_keeps_the_multiset_and_rows_together(key):
    reports = {"a": jnp.arange(50), "b": jnp.arange(100).reshape(50, 2)}
    found = shuffle(key, reports)
    np.testing.assert_array_equal(np.sort(found["a"]), np.arange(50))
    np.testing.assert_array_equal(found["b"][:, 0], 2 * found["a"])
    assert (found["a"] != reports["a"]).any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Users(0.0, 5, 10), ValueError, "rate"),
        (lambda: FixedSize(11, 10), ValueError, "got batch_size=11"),
        (lambda: Shuffled(0, 10), ValueError, "batch_size"),
        (lambda: BallsInBins(0, 5, 10), ValueError, "batches"),
        (lambda: sample(KEY, jnp.arange(10), Shuffled(5, 10)), ValueError, "step=None"),
        (lambda: sample(KEY, jnp.arange(10), Shuffled(5, 10), step=-1), ValueError, "step"),
        (lambda: sample(KEY, jnp.arange(10), Shuffled(5, 10), step=1.5), TypeError, "step"),
        (lambda: sample(KEY, jnp.arange(10), 0.1), TypeError, "got float"),
        (lambda: shuffle(KEY, (jnp.arange(3), jnp.arange(4))), ValueError, "one length"),
        (lambda: shuffle(None, jnp.arange(3)), ValueError, "key"),
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
