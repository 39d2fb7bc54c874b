import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax import evaluation
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")


def test_the_interval_ends_are_the_tail_probabilities_of_the_binomial():
    n = 37
    k = np.arange(n + 1)
    low, high = evaluation.binomial_interval(k, n, 0.9)
    # P[Bin(n, low) >= k] = 5 % = P[Bin(n, high) <= k], the definition of Clopper and Pearson
    np.testing.assert_allclose(stats.binom.sf(k[1:] - 1, n, low[1:]), 0.05, rtol=1e-9)
    np.testing.assert_allclose(stats.binom.cdf(k[:-1], n, high[:-1]), 0.05, rtol=1e-9)
    assert low[0] == 0
    assert high[-1] == 1


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (3, 10), (999, 1000), (5, 100_000)])
def test_the_interval_is_made_of_beta_quantiles(k, n):
    low, high = evaluation.binomial_interval(k, n)
    assert low == (pytest.approx(stats.beta.ppf(0.025, k, n - k + 1), rel=1e-12) if k else 0)
    assert high == (pytest.approx(stats.beta.ppf(0.975, k + 1, n - k), rel=1e-12) if k < n else 1)
    # scipy's own interval, whose solver is coarser
    wanted = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose((low, high), (wanted.low, wanted.high), rtol=1e-7)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.97])
def test_the_interval_covers(p):
    n = 50
    k = np.arange(n + 1)
    low, high = evaluation.binomial_interval(k, n, 0.95)
    weight = stats.binom.pmf(k, n, p)
    assert weight[low > p].sum() <= 0.025
    assert weight[high < p].sum() <= 0.025


@pytest.mark.parametrize(
    ("k", "n", "confidence", "message"),
    [
        (-1, 5, 0.95, r"successes must lie between 0 and n \(got successes=-1, n=5\)"),
        (6, 5, 0.95, r"got successes=6, n=5"),
        (0, 0, 0.95, r"n must be >= 1 \(got n=0\)"),
        (0.5, 5, 0.95, r"successes must be whole numbers \(got successes=0.5\)"),
        (float("nan"), 5, 0.95, r"got successes=nan"),
        (1, 5, 1.0, r"confidence must be > 0 and < 1 \(got confidence=1\)"),
    ],
)
def test_the_interval_refuses_what_are_no_counts(k, n, confidence, message):
    with pytest.raises(ValueError, match=message):
        evaluation.binomial_interval(k, n, confidence)


def test_host_functions_say_that_they_belong_outside_jit():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda k: evaluation.binomial_interval(k, 5)[0])(1)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: evaluation.accuracy(lambda x: x, x, jnp.array([0, 1])))(jnp.eye(2))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 100])
def test_accuracy_counts_every_example_once(linear, batch_size):
    apply_fn, params, x, y = linear
    y = y.at[:3].set((y[:3] + 1) % 4)  # three wrong labels, in the first batches
    got = evaluation.accuracy(lambda x: apply_fn(params, x), x, y, batch_size=batch_size)
    assert got[::3] == (5 / 8, 8)
    assert got[1:3] == pytest.approx(evaluation.binomial_interval(5, 8), rel=1e-12)
    y = y[::-1]  # ... and in the last
    again = evaluation.accuracy(lambda x: apply_fn(params, x), x[::-1], y, batch_size=batch_size)
    assert again == got


def test_a_jitted_model_is_traced_once_and_sees_at_most_a_batch():
    shapes = []

    @jax.jit
    def logits_fn(x):
        shapes.append(x.shape)
        return x

    x, y = np.eye(10, dtype=np.float32), np.arange(10)
    for _ in range(2):
        assert evaluation.accuracy(logits_fn, x, y, batch_size=4).value == 1
    assert shapes == [(4, 10)]


def test_a_nan_counts_as_wrong_whatever_the_criterion():
    def logits_fn(x):
        return jnp.where(x[:, :1] > 0, jnp.nan, x)

    x, y = jnp.eye(3), jnp.arange(3)
    assert evaluation.accuracy(logits_fn, x, y).value == pytest.approx(2 / 3)
    everything = evaluation.accuracy(logits_fn, x, y, criterion=lambda o, y: y == y)
    assert everything.value == pytest.approx(2 / 3)


def test_a_stochastic_model_needs_a_key_and_draws_apart_in_each_batch():
    coin = Stochastic(
        lambda x, key: jnp.broadcast_to(jax.random.uniform(key, (1, 2)), (x.shape[0], 2))
    )
    x, y = jnp.zeros((64, 2)), jnp.zeros(64, jnp.int32)
    with pytest.raises(ValueError, match="key"):
        evaluation.accuracy(coin, x, y)
    got = evaluation.accuracy(coin, x, y, key=jax.random.key(0), batch_size=1)
    assert 0.25 < got.value < 0.75
    assert got == evaluation.accuracy(coin, x, y, key=jax.random.key(0), batch_size=1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 2), np.float32), np.zeros(0, int), "at least one example"),
        (np.full((1, 2), np.nan, np.float32), np.zeros(1, int), "finite"),
        (np.zeros((2, 2), np.float32), np.zeros(1, int), "one entry per example"),
        (np.zeros((1, 2), np.float32), np.array([2]), r"labels must lie in \[0, 2\)"),
    ],
)
def test_accuracy_refuses_what_cannot_be_measured(x, y, message):
    with pytest.raises(ValueError, match=message):
        evaluation.accuracy(lambda x: x, x, y)


def test_the_radius_curve_is_the_survival_function_of_the_distances():
    rng = np.random.default_rng(0)
    distances = np.where(rng.uniform(size=50) < 0.2, np.inf, rng.exponential(size=50))
    eps = np.array([3.0, 0.0, 0.5, 1.0])
    curve = evaluation.radius_curve(jnp.asarray(distances, jnp.float32), eps)
    np.testing.assert_allclose(curve.accuracy, [(distances > e).mean() for e in eps])
    np.testing.assert_array_equal(curve.eps, eps)
    low, high = evaluation.binomial_interval(np.round(curve.accuracy * 50), 50)
    np.testing.assert_array_equal((curve.low, curve.high), (low, high))
    assert curve.n == 50


def test_a_distance_at_the_radius_is_not_robust():
    eps = 8 / 255
    rounded_up = float(np.nextafter(np.float32(eps), np.float32(1)))
    assert evaluation.radius_curve([rounded_up], [eps]).accuracy.tolist() == [0]


@pytest.mark.parametrize(
    ("distances", "eps", "message"),
    [
        ([], [0.1], r"distances must have shape \[n\], n >= 1 \(got distances.shape=\(0,\)\)"),
        ([[0.1]], [0.1], "distances must have shape"),
        ([float("nan")], [0.1], "got distances=nan"),
        ([0.1], [-0.1], "got eps=-0.1"),
        ([0.1], 0.1, "eps must have shape"),
    ],
)
def test_the_radius_curve_refuses_what_are_no_distances(distances, eps, message):
    with pytest.raises(ValueError, match=message):
        evaluation.radius_curve(distances, eps)
