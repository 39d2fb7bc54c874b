"""zCDP, GDP, composition and the moments accountant against closed forms and known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import norm

from spax.dp.accounting import composition, gdp, moments, rdp, zcdp


def test_zcdp_converts_as_known():
    for rho, delta, simple, tight in (
        (0.1, 1e-6, 2.450788, 2.141939),
        (0.5, 1e-5, 5.298526, 4.728387),
    ):
        state = zcdp.add(zcdp.init(), rho)[1]
        assert simple <= float(zcdp.epsilon(state, delta, tight=False)) <= simple + 2e-6
        found = zcdp.epsilon(state, delta)
        assert tight - 1e-6 <= float(found) <= tight * (1 + 2e-6)
        assert delta * (1 - 1e-4) <= float(zcdp.delta(state, found)) <= delta * (1 + 1e-4)


def test_gaussians_cost_the_least_by_gdp_and_the_most_by_the_simple_formula():
    for sigma, steps in ((1.0, 1), (20.0, 100)):
        rho = zcdp.update(zcdp.init(), noise_multiplier=sigma, steps=steps)[1]
        mu = gdp.update(gdp.init(), noise_multiplier=sigma, steps=steps)[1]
        three = [
            gdp.epsilon(mu, 1e-5),
            zcdp.epsilon(rho, 1e-5),
            zcdp.epsilon(rho, 1e-5, tight=False),
        ]
        assert three == sorted(three)


def test_replacing_one_costs_four_times_the_rho():
    one, two = (
        zcdp.update(zcdp.init(adjacency=a), noise_multiplier=3.0)[0]
        for a in ("add_remove", "replace")
    )
    assert float(two) == pytest.approx(4 * float(one), rel=1e-6)


def test_zcdp_calibrates_safely():
    for epsilon, delta, steps in ((0.1, 1e-6, 1), (3.0, 1e-5, 50), (20.0, 1e-9, 1000)):
        noise, reached = zcdp.calibrate(epsilon=epsilon, delta=delta, steps=steps)
        state = zcdp.update(zcdp.init(), noise_multiplier=noise, steps=steps)[1]
        assert float(zcdp.epsilon(state, delta)) == float(reached) <= epsilon
        simple = float(zcdp.epsilon(state, delta, tight=False))
        assert epsilon * (1 - 1e-5) <= simple <= epsilon * (1 + 1e-6)


def test_reshuffled_epochs_and_the_published_figure_for_sampling():
    """Yu et al.: 100 epochs at sigma = 6; and a schedule is the sum of its epochs' worst."""
    rho = zcdp.reshuffled_rho(jnp.full((100, 10), 6.0), adjacency="zero_out")
    assert 1.388888 < float(rho) < 1.38889
    state = zcdp.add(zcdp.init(adjacency="zero_out"), rho)[1]
    assert float(zcdp.epsilon(state, 1e-5, tight=False)) == pytest.approx(9.386432, abs=1e-5)
    sigma = jnp.array([[5.0, 4.0], [3.0, 6.0]])
    exact = 2 * (1 / 16 + 1 / 9)
    assert float(zcdp.reshuffled_rho(sigma)) == pytest.approx(exact, rel=1e-6)
    told = zcdp.sampled_epsilon(noise_multiplier=6.0, sampling_rate=0.01, steps=10_000, delta=1e-5)
    assert float(told.estimate) == pytest.approx(1.158801, abs=1e-5)
    outside = zcdp.sampled_epsilon(noise_multiplier=6.0, sampling_rate=0.5, steps=1, delta=1e-5)
    assert np.isinf(outside.estimate)


def test_gdp_is_exact():
    for mu, epsilon, delta in (
        (0.5, 1.993091, 6.829595e-3),
        (1.0, 4.377178, 0.12693674),
        (2.0, 9.997256, 0.50986166),
    ):
        state = gdp.update(gdp.init(), noise_multiplier=1 / mu)[1]
        assert epsilon - 1e-6 <= float(gdp.epsilon(state, 1e-5)) <= epsilon + 2e-6
        assert delta * (1 - 1e-6) <= float(gdp.delta(state, 1.0)) <= delta * (1 + 1e-6)


@pytest.mark.parametrize("mu", [1e-3, 0.03, 0.7, 5.0, 40.0, 1000.0])
def test_gdp_is_never_below_the_formula(mu):
    state = gdp.update(gdp.init(), noise_multiplier=1 / mu)[1]
    for delta in (1e-10, 1e-5, 1e-3):
        epsilon = float(gdp.epsilon(state, delta))
        a, b = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        exact = np.exp(norm.logcdf(a)) * -np.expm1(epsilon + norm.logcdf(b) - norm.logcdf(a))
        assert exact <= delta * (1 + 1e-6)
        assert epsilon == 0 or exact >= delta * (1 - 1e-3)


def test_mus_add_up_as_squares():
    _, state = gdp.update(
        gdp.init(), noise_multiplier=jnp.array([2.0, 4.0]), steps=jnp.array([3, 16])
    )
    _, one = gdp.update(gdp.init(), noise_multiplier=1 / np.sqrt(3 / 4 + 1))
    assert float(gdp.epsilon(state, 1e-5)) == pytest.approx(float(gdp.epsilon(one, 1e-5)), rel=1e-6)


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "mu", "epsilon"),
    [
        (256 / 60_000, 1.1, 14_062, 0.573581, 2.32427),
        (0.01, 4.0, 10_000, 0.253958, 0.94244),
        (0.01, 1.0, 1000, 0.414522, 1.61771),
    ],
)
def test_the_limit_theorem_is_an_estimate_and_no_number(q, sigma, steps, mu, epsilon):
    cost, state = gdp.update_clt(gdp.init(), noise_multiplier=sigma, sampling_rate=q, steps=steps)
    assert float(cost) == pytest.approx(mu, abs=2e-6)
    # Sticky: nothing turns it back into a guarantee.
    _, state = gdp.update(state, noise_multiplier=1e6)
    found = gdp.epsilon(state, 1e-5)
    assert isinstance(found, gdp.Approximate)
    assert float(found.estimate) == pytest.approx(epsilon, abs=1e-4)
    assert isinstance(gdp.delta(state, 1.0), gdp.Approximate)
    assert "no guarantee" in str(found)
    with pytest.raises(TypeError):
        float(found)
    with pytest.raises(TypeError):
        _ = found < 3.0


def responses(epsilon0, k, epsilon):
    """Delta of k randomised responses, term by term."""
    j = np.arange(k + 1)
    log_p = gammaln(k + 1) - gammaln(j + 1) - gammaln(k - j + 1)
    log_p += -j * np.log1p(np.exp(-epsilon0)) - (k - j) * np.log1p(np.exp(epsilon0))
    loss = (2 * j - k) * epsilon0
    return np.sum(np.exp(log_p) * np.maximum(0, -np.expm1(np.minimum(epsilon - loss, 0))))


def test_composition_as_known():
    state = composition.init()
    for _ in range(100):
        _, state = composition.update(state, epsilon=0.1)
    assert float(composition.basic(state)[0]) == pytest.approx(10.0, rel=1e-6)
    assert float(composition.advanced(state, 1e-5)[0]) == pytest.approx(5.850235, rel=1e-6)
    assert float(composition.optimal(0.1, 0.0, 100, 1e-5)) == pytest.approx(4.306791, abs=2e-6)
    assert float(composition.optimal(1.0, 0.0, 10, 1e-3)) == pytest.approx(9.976799, abs=2e-6)
    # The grid of the theorem: (k - 2i) epsilon0.
    assert responses(0.1, 100, 4.4) == pytest.approx(5.7725e-6, rel=1e-4)


@pytest.mark.parametrize("epsilon0", [1e-3, 0.1, 2.0, 30.0])
def test_optimal_is_the_least_and_below_the_others(epsilon0):
    for k, delta in ((1, 1e-3), (7, 1e-8), (400, 1e-5), (20_000, 1e-6)):
        found = float(composition.optimal(epsilon0, 0.0, k, delta))
        assert responses(epsilon0, k, found) <= delta * (1 + 1e-6)
        assert found < 1e-9 or responses(epsilon0, k, found * (1 - 1e-4) - 1e-7) > delta * (
            1 - 1e-6
        )
        assert found <= k * epsilon0 * (1 + 1e-6)


def test_deltas_of_the_parts_are_paid_for():
    assert np.isinf(composition.optimal(0.1, 1e-6, 100, 9e-5))
    with_delta = float(composition.optimal(0.1, 1e-8, 100, 1e-5))
    exact = 1 - (1 - 1e-8) ** 100 * (1 - responses(0.1, 100, with_delta))
    assert exact == pytest.approx(1e-5, rel=1e-3)
    _, state = composition.update(composition.init(), epsilon=1.0, delta=1e-6)
    assert float(composition.advanced(state, 1e-5)[1]) == pytest.approx(1.1e-5, rel=1e-6)


def test_composition_of_many_loses_nothing():
    def add(state, _):
        return composition.update(state, epsilon=1e-4)[1], None

    state, _ = jax.jit(lambda s: jax.lax.scan(add, s, None, 1_000_000))(composition.init())
    epsilon = np.float64(np.float32(1e-4))
    assert 100 * (1 - 1e-9) <= float(composition.basic(state)[0]) <= 1e6 * epsilon * (1 + 1e-6)


@pytest.mark.parametrize(
    ("epsilon0", "n", "delta", "known"),
    [(1.0, 10**6, 1e-8, 0.0267752), (2.0, 60_000, 1e-6, 0.2345750), (0.5, 10_000, 1e-6, 0.0938682)],
)
def test_shuffling_as_known(epsilon0, n, delta, known):
    found = float(composition.shuffle_epsilon(epsilon0, n=n, delta=delta))
    assert found == pytest.approx(known, abs=1e-7)


def test_shuffling_outside_its_range_gains_nothing():
    # The range ends at 5.5548 for 60,000 users and delta 1e-6.
    assert float(composition.shuffle_epsilon(5.55, n=60_000, delta=1e-6)) < 5.55
    assert float(composition.shuffle_epsilon(5.56, n=60_000, delta=1e-6)) >= 5.56


def test_calibration_of_any_accountant_is_safe():
    def spent(noise):
        return gdp.epsilon(gdp.update(gdp.init(), noise_multiplier=noise)[1], 1e-5)

    for epsilon, sigma in ((0.5, 7.031827), (3.0, 1.390593), (8.0, 0.600229)):
        noise, reached = composition.calibrate(spent, epsilon=epsilon)
        assert sigma <= float(noise) <= sigma * (1 + 2e-4)
        assert float(spent(noise)) == pytest.approx(float(reached), rel=1e-6)
        assert float(reached) <= epsilon
    noise, _ = composition.calibrate(lambda noise: 1 + 0 * noise, epsilon=0.5)
    assert np.isinf(noise)


def test_the_moments_accountant_is_the_papers():
    """1.26 at q = 0.01, sigma = 4, 10,000 steps; its orders end at 33."""
    _, state = rdp.update(rdp.init(), noise_multiplier=4.0, sampling_rate=0.01, steps=10_000)
    found = float(moments.epsilon(state, 1e-5))
    assert found == pytest.approx(1.26, abs=5e-3)
    assert found > float(rdp.epsilon(state, 1e-5))
    assert float(moments.delta(state, found)) == pytest.approx(1e-5, rel=1e-3)
    _, gaussian = rdp.update(rdp.init(), noise_multiplier=2.0)
    exact = min((lam + 1) / 8 - np.log(1e-5) / lam for lam in range(1, 33))
    assert exact <= float(moments.epsilon(gaussian, 1e-5)) <= exact * 1.001


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zcdp.init(adjacency="other"), "adjacency"),
        (lambda: zcdp.add(zcdp.init(), -1.0), "rho"),
        (lambda: zcdp.update(zcdp.init(), noise_multiplier=-1.0), "noise_multiplier"),
        (lambda: zcdp.epsilon(zcdp.init(), 1.0), "delta"),
        (lambda: zcdp.calibrate(epsilon=0.0, delta=1e-5), "epsilon"),
        (lambda: zcdp.reshuffled_rho(jnp.ones(3)), "epochs"),
        (lambda: zcdp.reshuffled_rho(jnp.ones((1, 3)), adjacency="add_remove"), "adjacency"),
        (lambda: gdp.init(adjacency="zero_out"), "adjacency"),
        (lambda: gdp.update(gdp.init(), noise_multiplier=1.0, steps=-1), "steps"),
        (
            lambda: gdp.update_clt(
                gdp.init(adjacency="replace"), noise_multiplier=1.0, sampling_rate=0.1, steps=1
            ),
            "add_remove",
        ),
        (lambda: gdp.epsilon(gdp.init(), 0.0), "delta"),
        (lambda: composition.update(composition.init(), epsilon=-0.1), "epsilon"),
        (lambda: composition.advanced(composition.init(), 0.0), "slack"),
        (lambda: composition.optimal(0.1, 1.0, 3, 1e-5), "delta0"),
        (lambda: composition.shuffle_epsilon(1.0, n=0, delta=1e-5), "n must"),
        (lambda: composition.calibrate(lambda s: s, epsilon=-1.0), "epsilon"),
        (lambda: moments.epsilon(rdp.init(), 0.0), "delta"),
        (lambda: moments.delta(rdp.init(), -1.0), "epsilon"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("rho", [1e30, 1e31])
def test_a_huge_rho_is_a_huge_epsilon(rho):
    assert float(zcdp.epsilon(zcdp.add(zcdp.init(), rho)[1], 1e-5)) >= rho


def test_a_delta_that_float32_hardly_holds_is_not_zero():
    _, spent = rdp.update(rdp.init(), noise_multiplier=1.0)
    _, mu = gdp.update(gdp.init(), noise_multiplier=1.0)
    assert float(rdp.delta(spent, 14.0)) >= 5.3e-43
    assert float(gdp.delta(mu, 14.0)) >= 5.3e-43


def test_steps_that_no_integer_holds_are_refused():
    with pytest.raises(ValueError, match="add up to less than"):
        rdp.update(rdp.init(), noise_multiplier=np.ones(4), steps=np.array([2**62] * 4))
