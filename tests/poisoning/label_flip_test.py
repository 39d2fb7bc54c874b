"""Label flips: how many, which, to what, and what they do to a learner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from spax.poisoning import flip_labels

KEY = jax.random.key(0)
Y = jnp.asarray(np.random.default_rng(0).integers(0, 10, 997).astype(np.int32))


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.29, 1.0])
def test_exactly_the_floor_of_the_share_is_flipped_and_never_to_itself(rate, strict):
    x, flipped = flip_labels(Y, Y, key=KEY, rate=rate, num_classes=10)
    assert int((flipped != Y).sum()) == int(np.floor(rate * 997 + 1e-9))
    assert x is Y
    assert flipped.dtype == Y.dtype
    assert ((flipped >= 0) & (flipped < 10)).all()


def test_the_share_of_a_decimal_is_what_it_says(strict):
    # 0.29 * 100 and its like fall short of a whole number in floating point
    y = jnp.zeros(100, jnp.int32)
    count = jax.jit(
        jax.vmap(lambda rate: (flip_labels(y, y, key=KEY, rate=rate, num_classes=2)[1] != y).sum())
    )
    rates = np.arange(101) / 100
    np.testing.assert_array_equal(count(jnp.asarray(rates, jnp.float32)), np.arange(101))


def test_random_flips_are_uniform_over_examples_and_other_classes():
    y = jnp.zeros(10, jnp.int32) + 3
    keys = jax.random.split(KEY, 2000)
    flips = jax.jit(jax.vmap(lambda key: flip_labels(y, y, key=key, rate=0.3, num_classes=5)[1]))(
        keys
    )
    flips = np.asarray(flips)
    assert scipy.stats.chisquare((flips != 3).sum(axis=0)).pvalue > 0.001
    new = np.bincount(flips[flips != 3], minlength=5)
    assert new[3] == 0
    assert scipy.stats.chisquare(np.delete(new, 3)).pvalue > 0.001


def test_a_mapping_says_what_to(strict):
    pair = (jnp.arange(10, dtype=jnp.int32) + 1) % 10
    _, flipped = flip_labels(Y, Y, key=KEY, rate=0.4, num_classes=10, mapping=pair)
    changed = np.asarray(flipped != Y)
    assert changed.sum() == 398
    np.testing.assert_array_equal(flipped[changed], (np.asarray(Y)[changed] + 1) % 10)


def test_a_class_mapped_to_itself_is_left_alone(strict):
    only_seven = jnp.arange(10, dtype=jnp.int32).at[7].set(1)
    sevens = np.asarray(Y) == 7
    _, flipped = flip_labels(Y, Y, key=KEY, rate=0.5, num_classes=10, mapping=only_seven)
    np.testing.assert_array_equal(flipped != Y, sevens)  # fewer than half: all there are
    _, flipped = flip_labels(Y, Y, key=KEY, rate=0.05, num_classes=10, mapping=only_seven)
    changed = np.asarray(flipped != Y)
    assert changed.sum() == 49
    assert (flipped[changed] == 1).all()
    assert sevens[changed].all()


def test_scores_say_which_and_need_no_key(strict):
    scores = jnp.asarray(np.random.default_rng(1).normal(size=997).astype(np.float32))
    pair = (jnp.arange(10, dtype=jnp.int32) + 1) % 10
    _, flipped = flip_labels(Y, Y, rate=0.1, num_classes=10, mapping=pair, scores=scores)
    changed = np.asarray(flipped != Y)
    assert changed.sum() == 99
    assert scores[changed].min() > scores[~changed].max()


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_labels_of_any_integer_type_do_not_overflow(dtype, strict):
    y = jnp.full(50, 99, dtype)
    _, flipped = flip_labels(y, y, key=KEY, rate=1.0, num_classes=100)
    assert flipped.dtype == dtype
    assert ((flipped >= 0) & (flipped < 99)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.1}, r"got rate=1\.1"),
        ({"num_classes": 5}, "got labels from"),
        ({"num_classes": 1}, "got num_classes=1"),
        ({"key": None}, "random key"),
        ({"mapping": jnp.zeros(3, jnp.int32)}, r"mapping\.shape=\(3,\)"),
        ({"mapping": jnp.full(10, 10, jnp.int32)}, "labels from 10"),
        ({"scores": jnp.zeros(3)}, r"scores\.shape=\(3,\)"),
        ({"scores": jnp.full(997, jnp.nan)}, "scores"),
        ({"y": Y[:5]}, r"y\.shape=\(5,\)"),
    ],
)
def test_bad_input_raises(changes, message):
    settings = {"x": Y, "y": Y, "key": KEY, "rate": 0.1, "num_classes": 10} | changes
    with pytest.raises(ValueError, match=message):
        flip_labels(settings.pop("x"), settings.pop("y"), **settings)


def test_flips_harm_a_learner_of_digits(digits):
    from sklearn.neighbors import KNeighborsClassifier

    def score(y):
        fit = KNeighborsClassifier(1).fit(digits.x_train.reshape(len(y), -1), y)
        return fit.score(digits.x_test.reshape(len(digits.y_test), -1), digits.y_test)

    clean = score(digits.y_train)
    y = jnp.asarray(digits.y_train)
    _, flipped = flip_labels(y, y, key=KEY, rate=0.2, num_classes=10)
    # a 1-nearest neighbour passes the flips on: a fifth of its answers turn wrong
    assert abs(score(np.asarray(flipped)) - 0.8 * clean) < 0.05


def test_a_concrete_rate_is_exact_for_many_examples():
    y = jnp.zeros(5_000_000, jnp.int8)
    scores = jnp.zeros(y.shape)
    _, flipped = flip_labels(
        y, y, rate=0.5, num_classes=2, mapping=jnp.array([1, 0]), scores=scores
    )
    assert int((flipped != y).sum()) == 2_500_000
