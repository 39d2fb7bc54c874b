"""Integer noise: the exact distribution, on a grid, at its stated cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax import dp
from spax.crypto import ChaChaKey

KEY = jax.random.key(0)
SECRET = ChaChaKey(jnp.arange(8, dtype=jnp.uint32))
K = np.arange(-400, 401)


N = 20_000


@jax.jit
def gaussian(key, stddev, grid):
    return dp.discrete_gaussian(key, jnp.zeros(N), stddev=stddev, grid=grid)


@jax.jit
def laplace(key, epsilon):
    return dp.discrete_laplace(key, jnp.zeros(N), epsilon=epsilon, l1_sensitivity=1.0)


def gaussian_mass(sigma):
    mass = np.exp(-(K**2) / (2 * sigma**2))
    return mass / mass.sum()


def agrees(drawn, mass):
    """A chi-square test of integers against probabilities of ``K``."""
    counts = np.array([(drawn == k).sum() for k in K])
    expected = mass * drawn.size
    common = expected > 5
    counts, expected = (np.append(v[common], v[~common].sum()) for v in (counts, expected))
    return stats.chisquare(counts, expected).pvalue > 1e-3


# Exact variances, none above sigma^2.
@pytest.mark.parametrize(("sigma", "variance"), [(0.5, 0.215013), (1.0, 0.99999979), (5.0, 25.0)])
def test_the_discrete_gaussian_is_exactly_that(sigma, variance):
    drawn = np.asarray(gaussian(KEY, sigma, 1.0))
    mass = gaussian_mass(sigma)
    assert (mass * K**2).sum() == pytest.approx(variance, abs=1e-6)
    assert agrees(drawn, mass)


@pytest.mark.slow
def test_fractions_of_a_step_are_rounded_up():
    """0.3 is 76.8 / 256 and becomes 77 / 256; with a secure key as well."""
    assert agrees(np.asarray(gaussian(KEY, 0.3, 1.0)), gaussian_mass(77 / 256))
    assert agrees(np.asarray(gaussian(KEY, 2.6, 2.0)) / 2, gaussian_mass(333 / 256))
    drawn = dp.discrete_gaussian(SECRET, jnp.zeros(4000), stddev=0.3, grid=1.0)
    assert agrees(np.asarray(drawn), gaussian_mass(77 / 256))


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
def test_the_discrete_laplace_is_exactly_that(epsilon):
    scale = np.ceil(1024 / epsilon) / 1024
    mass = np.exp(-np.abs(K) / scale)
    assert agrees(np.asarray(laplace(KEY, epsilon)), mass / mass.sum())
    # Two-sided geometric: the ratio of neighbouring outputs is at most e^epsilon.
    assert np.exp(1 / scale) <= np.exp(epsilon)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.5, 1.0, 37.3])
def test_a_million_draws_are_of_the_exact_distribution(sigma):
    draw = jax.jit(lambda key: dp.discrete_gaussian(key, jnp.zeros(10**6), stddev=sigma, grid=1.0))
    assert agrees(np.asarray(draw(KEY)), gaussian_mass(np.ceil(256 * sigma) / 256))


def test_on_a_fine_grid_it_is_the_continuous_one():
    assert stats.kstest(np.asarray(gaussian(KEY, 3.0, 2.0**-15)) / 3, "norm").pvalue > 1e-3


def test_everything_is_a_multiple_of_the_grid():
    x = {"a": jnp.linspace(-3, 3, 50), "b": jnp.array([jnp.nan, 1e30, -jnp.inf])}
    noised = dp.discrete_gaussian(KEY, x, stddev=0.5, grid=0.125)
    assert jax.tree.structure(noised) == jax.tree.structure(x)
    for leaf in jax.tree.leaves(noised):
        np.testing.assert_array_equal(np.asarray(leaf) % 0.125, 0)
    assert abs(float(noised["b"][0])) < 10
    np.testing.assert_allclose(noised["b"][1:], [2.0**27, -(2.0**27)], rtol=1e-6)
    small = dp.discrete_gaussian(KEY, x["a"], stddev=1e-6, grid=0.125)
    np.testing.assert_allclose(small, x["a"], atol=0.0626)


def test_leaves_and_keys_have_noise_of_their_own():
    x = {"a": jnp.zeros(500), "b": jnp.zeros(500)}
    draw = jax.jit(lambda key: dp.discrete_gaussian(key, x, stddev=100.0, grid=1.0))
    first, again, other = (draw(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first["a"], again["a"])
    for one, two in ((first["a"], first["b"]), (first["a"], other["a"])):
        assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(500)


def test_neighbouring_numbers_are_independent():
    drawn = np.asarray(gaussian(KEY, 50.0, 1.0))
    for lag in (1, 2, 4096):  # 4096: the size of a block
        assert abs(np.corrcoef(drawn[lag:], drawn[:-lag])[0, 1]) < 5 / np.sqrt(N - lag)


def test_rounding_moves_two_answers_apart_by_no_more_than_is_said():
    rng = np.random.default_rng(0)
    for size in (1, 10, 1000):
        for grid in (2.0**-4, 0.1, 1.0):
            x = rng.normal(size=size)
            y = x + rng.normal(size=size) / np.sqrt(size)
            apart = np.linalg.norm(x - y)
            rounded = np.linalg.norm(grid * np.round(x / grid) - grid * np.round(y / grid))
            bound = float(dp.rounded_sensitivity(float(apart), grid=grid, size=size))
            assert rounded <= bound
            assert bound == pytest.approx(apart + grid * np.sqrt(size), rel=1e-5)
    assert rounded > 0


@pytest.mark.parametrize("shift", [1, 3])
def test_its_divergence_is_the_continuous_ones(shift):
    """The guarantee: D_a <= a d^2 / (2 s^2), with equality at whole orders."""
    sigma = 20.0
    p, q = (np.exp(-((K - m) ** 2) / (2 * sigma**2)) for m in (shift, 0))
    p, q = p / p.sum(), q / q.sum()
    for order in (1.5, 2.0, 3.0, 7.3):
        with np.errstate(all="ignore"):
            found = np.log(np.nansum(p * np.exp((order - 1) * (np.log(p) - np.log(q)))))
        bound = order * shift**2 / (2 * sigma**2)
        assert found / (order - 1) <= bound * (1 + 1e-9)
        if order % 1 == 0:
            assert found / (order - 1) == pytest.approx(bound, rel=1e-6)


def test_traced_numbers_out_of_range_destroy_the_answer():
    noised = jax.jit(lambda s: dp.discrete_gaussian(KEY, jnp.zeros(2), stddev=s, grid=1.0))
    for stddev in (0.0, -1.0, 2.0**19, jnp.nan):
        assert np.isnan(noised(jnp.float32(stddev))).all()
    assert np.isfinite(noised(jnp.float32(2.0))).all()
    laplace = jax.jit(lambda e: dp.discrete_laplace(KEY, 0.0, epsilon=e, l1_sensitivity=1.0))
    assert np.isnan(laplace(jnp.float32(0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dp.discrete_gaussian(KEY, 0.0, stddev=0.0, grid=1.0), "stddev"),
        (lambda: dp.discrete_gaussian(KEY, 0.0, stddev=1.0, grid=0.0), "grid"),
        (lambda: dp.discrete_gaussian(KEY, 0.0, stddev=1.0, grid=1e-6), "got 1e"),
        (lambda: dp.discrete_gaussian(None, 0.0, stddev=1.0, grid=1.0), "key"),
        (lambda: dp.discrete_laplace(KEY, 0.0, epsilon=-1.0, l1_sensitivity=1.0), "epsilon"),
        (lambda: dp.discrete_laplace(KEY, 0.0, epsilon=1e-10, l1_sensitivity=1.0), "got 1e"),
        (lambda: dp.discrete_laplace(None, 0.0, epsilon=1.0, l1_sensitivity=1.0), "key"),
        (lambda: dp.rounded_sensitivity(-1.0, grid=1.0, size=3), "l2_sensitivity"),
        (lambda: dp.rounded_sensitivity(1.0, grid=1.0, size=0), "size"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
