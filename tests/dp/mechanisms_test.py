"""The basic mechanisms: exact noise levels, the right distributions, and the promised epsilon."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import stats

from spax import dp
from spax.crypto import ChaChaKey
from spax.dp import draws

KEY = jax.random.key(0)
SECRET = ChaChaKey(jnp.arange(8, dtype=jnp.uint32))
KEYS = pytest.mark.parametrize("key", [KEY, SECRET], ids=["jax.random", "ChaCha20"])


def exact_delta(epsilon, sigma):
    """Balle and Wang's Theorem 8, in 60 digits."""
    with mp.workdps(60):
        m, e = 1 / mp.mpf(sigma), mp.mpf(epsilon)
        return mp.ncdf(m / 2 - e / m) - mp.exp(e) * mp.ncdf(-m / 2 - e / m)


@pytest.mark.parametrize(
    ("epsilon", "delta", "sigma"),
    [
        (0.1, 1e-5, 30.749566),
        (0.5, 1e-5, 7.031827),
        (1.0, 1e-5, 3.730632),
        (2.0, 1e-6, 2.230476),
        (3.0, 1e-5, 1.390593),
        (4.0, 1e-5, 1.081162),
        (8.0, 1e-5, 0.600229),
    ],
)
def test_the_analytic_noise_is_the_papers(epsilon, delta, sigma):
    assert float(dp.analytic_noise_multiplier(epsilon, delta)) == pytest.approx(sigma, rel=1e-5)


def test_the_analytic_noise_is_private_and_hardly_more_than_that():
    rng = np.random.default_rng(0)
    solve = jax.jit(dp.analytic_noise_multiplier)
    for epsilon, log_delta in zip(
        [*10 ** rng.uniform(-3, 2, 40), 1e-3, 0.0, 700.0],
        [*rng.uniform(-12, -0.1, 40), -12, -6, -9],
        strict=True,
    ):
        delta = 10.0**log_delta
        sigma = float(solve(np.float64(epsilon), np.float64(delta)))
        # Inside jit both are rounded to 32 bits.
        epsilon, delta = float(np.float32(epsilon)), float(np.float32(delta))
        assert exact_delta(epsilon, sigma) <= delta
        assert exact_delta(epsilon, sigma * (1 - 1e-4)) > delta * (1 - 1e-6)


def test_the_classic_noise_is_more_and_ends_at_one():
    for epsilon in (0.01, 0.3, 1.0):
        classic = float(dp.classic_noise_multiplier(epsilon, 1e-6))
        assert classic == pytest.approx(np.sqrt(2 * np.log(1.25e6)) / epsilon, rel=1e-6)
        assert classic >= np.sqrt(2 * np.log(1.25e6)) / epsilon
        assert classic > float(dp.analytic_noise_multiplier(epsilon, 1e-6))
    assert np.isinf(jax.jit(dp.classic_noise_multiplier)(1.5, 1e-6))


@KEYS
def test_the_noise_has_its_distribution(key):
    n = 200_000
    laplace = dp.laplace(key, jnp.full(n, 3.0), epsilon=0.5, l1_sensitivity=2.0)
    assert stats.kstest((np.asarray(laplace) - 3) / 4, "laplace").pvalue > 1e-3
    gaussian = dp.gaussian(key, jnp.zeros(n), noise_multiplier=2.0, l2_sensitivity=1.5)
    assert stats.kstest(np.asarray(gaussian) / 3, "norm").pvalue > 1e-3
    for noise, name in (
        (dp.exponential_noise, "expon"),
        (dp.laplace_noise, "laplace"),
        (dp.gumbel_noise, "gumbel_r"),
    ):
        assert stats.kstest(np.asarray(noise(key, (n,))), name).pvalue > 1e-3


def test_tails_are_long(monkeypatch):
    """Float32 uniforms end at 2^-24; the ends of 64 bits are another matter."""
    words = jnp.array([[0, 2**31, 2**31 - 1, 2**32 - 1], [0, 0, 2**32 - 1, 2**32 - 1]], jnp.uint32)
    monkeypatch.setattr(draws, "bits", lambda key, shape: words)
    upper, w = draws.tails(KEY, (4,))
    np.testing.assert_array_equal(upper, [False, True, False, True])
    np.testing.assert_allclose(w, [2.0**-65, 2.0**-65, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        dp.exponential_noise(KEY, (4,)), [2.0**-65, 65 * np.log(2), np.log(2), np.log(2)], rtol=1e-6
    )
    np.testing.assert_allclose(dp.laplace_noise(KEY, (4,))[:2], [-44.36, 44.36], rtol=1e-3)
    np.testing.assert_allclose(dp.gumbel_noise(KEY, (4,))[0], 65 * np.log(2), rtol=1e-6)


def frequencies(choose, size, draws=100_000):
    picked = jax.jit(jax.vmap(choose))(jax.random.split(KEY, draws))
    return np.bincount(np.asarray(picked), minlength=size)


@pytest.mark.parametrize("monotone", [False, True])
def test_the_exponential_mechanism_has_its_probabilities(monotone):
    utility = jnp.array([0.0, 1.0, 2.5, -3.0])
    counts = frequencies(
        lambda k: dp.exponential(k, utility, epsilon=1.2, sensitivity=1.5, monotone=monotone), 4
    )
    weights = np.exp(1.2 * np.asarray(utility, np.float64) / (1.5 * (1 if monotone else 2)))
    assert stats.chisquare(counts, weights / weights.sum() * counts.sum()).pvalue > 1e-3


def permute_and_flip(gaps):
    """Probabilities of the largest of utilities plus exponential noise, by its definition."""
    from itertools import permutations

    accept = np.exp(gaps)
    found = np.zeros(len(gaps))
    orders = list(permutations(range(len(gaps))))
    for order in orders:
        left = 1.0
        for i in order:
            found[i] += left * accept[i] / len(orders)
            left *= 1 - accept[i]
    return found


def test_exponential_noise_is_permute_and_flip():
    utility = np.array([0.0, -1.0, -2.5])
    counts = frequencies(
        lambda k: dp.noisy_max(k, jnp.asarray(utility), epsilon=2.0, sensitivity=1.0), 3
    )
    expected = permute_and_flip(utility * 2.0 / 2.0)
    assert expected.sum() == pytest.approx(1)
    assert stats.chisquare(counts, expected * counts.sum()).pvalue > 1e-3


def test_laplace_noise_picks_the_larger_of_two_as_often_as_its_integral_says():
    counts = frequencies(
        lambda k: dp.noisy_max(
            k, jnp.array([0.0, 2.0]), epsilon=1.0, sensitivity=1.0, noise=dp.laplace_noise
        ),
        2,
    )
    gap = 1.0  # 2 in units of the scale 2; the difference of two Laplace numbers, by quadrature
    x = np.linspace(-60, 60, 2_000_001)
    wins = np.trapezoid(stats.laplace.pdf(x) * stats.laplace.sf(x - gap), x)
    assert stats.binomtest(int(counts[1]), int(counts.sum()), wins).pvalue > 1e-3


def test_choices_are_made_row_by_row_and_far_gaps_are_never_lost():
    utility = jnp.array([[0.0, 1e9], [1e9, 0.0], [-jnp.inf, 5.0]])
    picked = dp.exponential(KEY, utility, epsilon=1.0, sensitivity=1.0)
    assert picked.dtype == jnp.int32
    np.testing.assert_array_equal(picked, [1, 0, 1])
    traced = jax.jit(lambda u: dp.exponential(KEY, u, epsilon=1.0, sensitivity=1.0))
    np.testing.assert_array_equal(traced(jnp.array([jnp.nan, 0.0])), 1)


@pytest.mark.parametrize(("epsilon", "classes", "truth"), [(1.0, 2, 0.731059), (2.0, 10, 0.450853)])
@KEYS
def test_randomized_response_tells_the_truth_as_often_as_it_may(epsilon, classes, truth, key):
    n = 200_000
    told = dp.randomized_response(
        key, jnp.full(n, classes - 1, jnp.uint8), epsilon=epsilon, num_classes=classes
    )
    assert told.dtype == jnp.uint8
    counts = np.bincount(np.asarray(told), minlength=classes)
    expected = np.full(classes, (1 - truth) / (classes - 1))
    expected[-1] = truth
    assert stats.chisquare(counts, expected * n, sum_check=False).pvalue > 1e-3


def test_many_classes_do_not_overflow_a_small_type():
    told = dp.randomized_response(KEY, jnp.full(5000, 250, jnp.uint8), epsilon=0.1, num_classes=251)
    assert int(told.max()) == 250
    assert len(np.unique(told)) == 251


def test_shares_are_estimated_without_bias():
    truth = np.array([0.6, 0.3, 0.1, 0.0])
    expected = truth * 0.0
    keep = np.e / (np.e + 3)
    expected = truth * keep + (1 - truth) * (1 - keep) / 3
    np.testing.assert_allclose(
        dp.debias_counts(jnp.asarray(1000 * expected, jnp.float32), epsilon=1.0, num_classes=4),
        truth,
        atol=1e-5,
    )


def test_a_mean_of_real_data_has_the_error_of_its_noise():
    from sklearn.datasets import load_diabetes

    y = np.clip(load_diabetes().target, 0, 350)
    total = jnp.full(4000, y.sum(), jnp.float32)
    noised = dp.laplace(KEY, total, epsilon=0.1, l1_sensitivity=350.0)
    error = np.sqrt(np.mean((np.asarray(noised, np.float64) - y.sum()) ** 2))
    assert error == pytest.approx(3500 * np.sqrt(2), rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["laplace", "randomized_response", "exponential", "laplace_noise"])
def test_no_output_is_likelier_on_a_neighbour_than_epsilon_allows(name):
    """Counts on two neighbouring inputs, with their intervals."""
    epsilon, n = 1.0, 400_000
    keys = jax.random.split(KEY, 2)
    outputs = []
    for key, there in zip(keys, (0, 1), strict=True):
        if name == "laplace":
            x = dp.laplace(key, jnp.full(n, float(there)), epsilon=epsilon, l1_sensitivity=1.0)
            out = np.clip(np.floor(np.asarray(x)), -6, 6) + 6
        elif name == "randomized_response":
            out = dp.randomized_response(key, jnp.full(n, there), epsilon=epsilon, num_classes=5)
        else:
            noise = dp.laplace_noise if name == "laplace_noise" else dp.gumbel_noise
            utility = jnp.array([1.0 - there, 0.0 + there, 0.5])
            out = jax.vmap(
                lambda k, u=utility, f=noise: dp.noisy_max(
                    k, u, epsilon=epsilon, sensitivity=1.0, noise=f
                )
            )(jax.random.split(key, n))
        outputs.append(np.bincount(np.asarray(out, int), minlength=13))
    for first, second in (outputs, outputs[::-1]):
        for a, b in zip(first, second, strict=True):
            low = stats.beta.ppf(1e-4, a, n - a + 1) if a else 0.0
            high = stats.beta.ppf(1 - 1e-4, b + 1, n - b)
            assert low <= np.exp(epsilon) * high


RAISES = [
    (lambda: dp.laplace(KEY, 0.0, epsilon=0.0, l1_sensitivity=1.0), "epsilon"),
    (lambda: dp.laplace(KEY, 0.0, epsilon=1.0, l1_sensitivity=-1.0), "sensitivity"),
    (lambda: dp.laplace(None, 0.0, epsilon=1.0, l1_sensitivity=1.0), "key"),
    (lambda: dp.gaussian(None, 0.0, noise_multiplier=1.0, l2_sensitivity=1.0), "key"),
    (lambda: dp.gaussian(KEY, 0.0, noise_multiplier=-1.0, l2_sensitivity=1.0), "noise_multiplier"),
    (lambda: dp.gaussian(KEY, 0.0, noise_multiplier=1.0, l2_sensitivity=0.0), "l2_sensitivity"),
    (lambda: dp.classic_noise_multiplier(1.1, 1e-5), r"epsilon=1\.1"),
    (lambda: dp.classic_noise_multiplier(0.5, 0.0), "delta"),
    (lambda: dp.analytic_noise_multiplier(-1.0, 1e-5), "epsilon"),
    (lambda: dp.analytic_noise_multiplier(1.0, 1.0), "delta"),
    (lambda: dp.exponential(KEY, 1.0, epsilon=1.0, sensitivity=1.0), "utility"),
    (lambda: dp.exponential(KEY, jnp.array([jnp.nan]), epsilon=1.0, sensitivity=1.0), "utility"),
    (lambda: dp.noisy_max(None, jnp.zeros(2), epsilon=1.0, sensitivity=1.0), "key"),
    (lambda: dp.randomized_response(KEY, jnp.array([2]), epsilon=1.0, num_classes=2), "labels"),
    (lambda: dp.randomized_response(KEY, jnp.array([0]), epsilon=1.0, num_classes=1), "classes"),
    (lambda: dp.debias_counts(jnp.zeros(3), epsilon=1.0, num_classes=2), r"got \(3,\)"),
]


@pytest.mark.parametrize(("call", "message"), RAISES)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
