"""Sparse vector: answers as often as their integral says, within the stated epsilon."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax import dp
from spax.crypto import ChaChaKey

KEY = jax.random.key(0)
SECRET = ChaChaKey(jnp.arange(8, dtype=jnp.uint32))


def answers(values, key, draws, **settings):
    """Answers ``[draws, Q]`` of so many runs over the same values."""
    questions = dp.sparse_vector(threshold=0.0, sensitivity=1.0, **settings)

    def run(key):
        def ask(state, given):
            value, key = given
            above, state = questions.update(state, value, key=key)
            return state, above

        first, rest = jax.random.split(key)
        given = jnp.asarray(values, jnp.float32), jax.random.split(rest, len(values))
        return jax.lax.scan(ask, questions.init(key=first), given)[1]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(key, draws)))


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("hits", [1, 3])
def test_a_value_is_above_as_often_as_its_integral_says(hits, monotone):
    epsilon, value, n = 2.0, 1.5, 40_000
    factor = hits if monotone else 2 * hits
    first = epsilon / (1 + factor ** (2 / 3))
    b1, b2 = 1 / first, factor / (epsilon - first)
    x = np.linspace(-80, 80, 400_001)
    expected = np.trapezoid(
        stats.laplace.pdf(x, scale=b1) * stats.laplace.sf(x - value, scale=b2), x
    )
    found = answers([value], KEY, n, epsilon=epsilon, max_hits=hits, monotone=monotone)
    assert stats.binomtest(int(found.sum()), n, expected).pvalue > 1e-3


def test_there_are_no_more_hits_than_were_paid_for():
    found = answers([100.0] * 6, KEY, 50, epsilon=5.0, max_hits=3)
    np.testing.assert_array_equal(found.sum(axis=1), 3)
    assert found[:, :3].all()


def worst_ratio(found, neighbour):
    """The largest ratio of probabilities of an output, at 99.99 % confidence."""
    weights = 1 << np.arange(found.shape[1])
    counts = [np.bincount(a @ weights, minlength=weights.sum() + 1) for a in (found, neighbour)]
    worst, n = 0.0, len(found)
    for first, second in (counts, counts[::-1]):
        for a, b in zip(first, second, strict=True):
            if a:
                low = stats.beta.ppf(1e-4, a, n - a + 1)
                worst = max(worst, low / stats.beta.ppf(1 - 1e-4, b + 1, n - b))
    return worst


@pytest.mark.slow
def test_neighbours_are_told_apart_by_no_more_than_epsilon_and_broken_noise_is_caught():
    epsilon, n = 1.0, 400_000
    values = np.array([0.5, 0.5, 0.5, -0.5, -0.5, -0.5])
    runs = [
        answers(v, key, n, epsilon=epsilon, max_hits=3)
        for v, key in zip((values, -values), jax.random.split(KEY), strict=True)
    ]
    assert worst_ratio(*runs) <= np.exp(epsilon)

    def broken(values, seed):
        """A published variant: the noise of values is not scaled by the number of hits."""
        rng = np.random.default_rng(seed)
        threshold = rng.laplace(scale=2 / epsilon, size=(n, 1))
        above = values + rng.laplace(scale=2 / epsilon, size=(n, 6)) >= threshold
        return above & (np.cumsum(above, axis=1) <= 3)

    assert worst_ratio(broken(values, 0), broken(-values, 1)) > np.exp(epsilon)


def test_a_secure_key_and_a_lost_value():
    questions = dp.sparse_vector(epsilon=1.0, threshold=0.0, sensitivity=1.0, max_hits=1)
    state = questions.init(key=SECRET)
    above, state = jax.jit(questions.update)(state, jnp.nan, key=KEY)
    assert not above
    assert int(state.queries) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"sensitivity": -1.0}, "sensitivity"),
        ({"max_hits": 0}, "max_hits"),
        ({"threshold": float("nan")}, "threshold"),
    ],
)
def test_bad_numbers_are_refused(settings, message):
    good = {"epsilon": 1.0, "threshold": 0.0, "sensitivity": 1.0, "max_hits": 1}
    with pytest.raises(ValueError, match=message):
        dp.sparse_vector(**{**good, **settings})


def test_it_needs_keys():
    questions = dp.sparse_vector(epsilon=1.0, threshold=0.0, sensitivity=1.0, max_hits=1)
    with pytest.raises(ValueError, match="key"):
        questions.init(key=None)
    with pytest.raises(ValueError, match="key"):
        questions.update(questions.init(key=KEY), 1.0, key=None)
