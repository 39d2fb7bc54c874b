import numpy as np
import pytest
from scipy import optimize, stats

from spax import evaluation, leakage

EPS = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
DELTA = np.array([0.0, 1e-5, 1e-5, 1e-5, 1e-5])


def gaussian_delta(epsilon, mu):
    """The exact delta of the Gaussian mechanism of sensitivity mu sigma."""
    return stats.norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * stats.norm.cdf(
        -mu / 2 - epsilon / mu
    )


def test_the_bounds_have_their_known_values():
    np.testing.assert_allclose(
        leakage.advantage_bound(EPS, DELTA), [0.24492, 0.46212, 0.76160, 0.96403, 0.99933],
        atol=6e-6,
    )  # fmt: skip
    np.testing.assert_allclose(
        leakage.tpr_bound(0.001, EPS, DELTA), [0.00165, 0.00273, 0.00740, 0.05461, 0.99966],
        atol=6e-6,
    )  # fmt: skip


def test_the_bounds_are_their_formulas():
    f = np.linspace(0, 1, 41)[:, None]
    wanted = np.minimum(np.exp(EPS) * f + DELTA, 1 - np.exp(-EPS) * (1 - DELTA - f))
    np.testing.assert_allclose(leakage.tpr_bound(f, EPS, DELTA), np.minimum(wanted, 1), rtol=1e-12)
    wanted = (np.exp(EPS) - 1 + 2 * DELTA) / (np.exp(EPS) + 1)
    np.testing.assert_allclose(leakage.advantage_bound(EPS, DELTA), wanted, rtol=1e-12)


def test_the_advantage_bound_is_the_largest_gap_of_the_tpr_bound():
    for epsilon, delta in [(0.0, 0.1), (0.7, 0.0), (1.5, 0.05), (6.0, 1e-6)]:
        f = np.append(np.linspace(0, 1, 2001), (1 - delta) / (1 + np.exp(epsilon)))
        gap = (leakage.tpr_bound(f, epsilon, delta) - f).max()
        assert gap == pytest.approx(float(leakage.advantage_bound(epsilon, delta)), rel=1e-9)


@pytest.mark.parametrize("mu", [0.25, 0.5, 1.0, 2.0])
def test_the_bounds_hold_for_the_gaussian_mechanism_and_touch_it(mu):
    exact = 2 * stats.norm.cdf(mu / 2) - 1
    # Every (epsilon, delta) on its privacy curve bounds its advantage; epsilon = 0 gives it.
    epsilons = np.linspace(0, 5, 101)
    bounds = leakage.advantage_bound(epsilons, gaussian_delta(epsilons, mu))
    assert (bounds >= exact - 1e-12).all()
    assert bounds[0] == pytest.approx(exact, rel=1e-12)
    # Likewise its ROC curve, which the envelope of the lines over epsilon touches.
    f = np.array([1e-3, 0.01, 0.1])
    tpr = stats.norm.cdf(stats.norm.ppf(f) + mu)
    bound = leakage.tpr_bound(f[:, None], epsilons, gaussian_delta(epsilons, mu))
    assert (bound >= tpr[:, None] - 1e-12).all()
    for rate, reached in zip(f, tpr, strict=True):
        tightest = optimize.minimize_scalar(
            lambda e, rate=rate: float(leakage.tpr_bound(rate, e, gaussian_delta(e, mu))),
            bounds=(0, 10), method="bounded", options={"xatol": 1e-9},
        )  # fmt: skip
        assert tightest.fun == pytest.approx(reached, rel=1e-6)


def test_the_edges_of_privacy():
    assert leakage.advantage_bound(0.0, 0.0) == 0
    assert leakage.advantage_bound(np.inf, 0.0) == 1
    assert leakage.advantage_bound(1000.0, 0.0) == 1
    assert leakage.advantage_bound(0.0, 1.0) == 1
    np.testing.assert_array_equal(leakage.tpr_bound([0.0, 0.5], np.inf, 0.0), [1, 1])
    np.testing.assert_array_equal(leakage.tpr_bound([0.0, 0.5], 1000.0, 0.01), [0.01, 1])
    np.testing.assert_array_equal(leakage.tpr_bound([0.0, 0.3, 1.0], 0.0, 0.0), [0, 0.3, 1])


@pytest.mark.parametrize(
    ("counts", "tpr", "fpr", "epsilon"),
    [
        ((1000, 1000, 0, 1000), 0.99632, 0.00368, 5.6006),
        ((480, 500, 5, 500), 0.93890, 0.02318, 3.7013),
        ((600, 1000, 400, 1000), 0.56888, 0.43112, 0.2773),
        ((250, 250, 0, 250), 0.98535, 0.01465, 4.2087),
    ],
)
def test_the_lower_bound_has_its_known_values(counts, tpr, fpr, epsilon):
    assert evaluation.binomial_interval(*counts[:2])[0] == pytest.approx(tpr, abs=6e-6)
    assert evaluation.binomial_interval(*counts[2:])[1] == pytest.approx(fpr, abs=6e-6)
    assert leakage.epsilon_lower_bound(*counts, delta=1e-5) == pytest.approx(epsilon, abs=6e-5)


def test_the_lower_bound_stays_below_the_gaussian_mechanisms_epsilon():
    mu, delta, trials = 1.0, 1e-5, 500
    epsilon = optimize.brentq(lambda e: gaussian_delta(e, mu) - delta, 0, 20)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        hits = int((rng.normal(mu, 1, trials) > 1.5).sum())
        alarms = int((rng.normal(0, 1, trials) > 1.5).sum())
        found.append(leakage.epsilon_lower_bound(hits, trials, alarms, trials, delta=delta))
    assert np.mean(found) > 0.5
    assert max(found) < epsilon
    # Without the noise it should have, a mechanism is caught.
    assert leakage.epsilon_lower_bound(500, 500, 0, 500, delta=delta) > epsilon


def test_what_the_bounds_allow_refutes_nothing():
    for epsilon in (0.5, 2.0):
        n = 10**6
        alarms = round(0.05 * n)
        hits = int(n * leakage.tpr_bound(alarms / n, epsilon, 1e-5))
        found = leakage.epsilon_lower_bound(hits, n, alarms, n, delta=1e-5)
        assert 0.9 * epsilon < found <= epsilon
    assert leakage.epsilon_lower_bound(0, 100, 100, 100, delta=1e-5) == 0
    assert leakage.epsilon_lower_bound(50, 50, 0, 50, delta=1.0) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: leakage.advantage_bound(-1.0, 0.0), r"epsilon must be >= 0 \(got epsilon=-1\)"),
        (lambda: leakage.advantage_bound(np.nan, 0.0), "got epsilon=nan"),
        (lambda: leakage.advantage_bound(1.0, 1.5), r"delta must be >= 0 and <= 1 \(got delta=1.5"),
        (lambda: leakage.tpr_bound(1.1, 1.0, 0.0), "got fpr=1.1"),
        (lambda: leakage.tpr_bound(0.1, 1.0, -0.1), "got delta=-0.1"),
        (lambda: leakage.epsilon_lower_bound(3, 2, 0, 2, delta=0.0), "got successes=3, n=2"),
        (lambda: leakage.epsilon_lower_bound(0, 0, 0, 2, delta=0.0), "got n=0"),
        (lambda: leakage.epsilon_lower_bound(1, 2, 0, 2, delta=2.0), "got delta=2"),
    ],
)
def test_bad_privacy_parameters_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_lower_bound_broadcasts():
    hits, delta = np.array([500, 900, 1000]), np.array([1e-5, 1e-2])[:, None]
    found = leakage.epsilon_lower_bound(hits, 1000, 10, 1000, delta=delta)
    for i, j in np.ndindex(2, 3):
        alone = leakage.epsilon_lower_bound(int(hits[j]), 1000, 10, 1000, delta=float(delta[i, 0]))
        assert found[i, j] == pytest.approx(alone)
