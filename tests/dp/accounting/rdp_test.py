"""The RDP accountant against exact values, another implementation and closed forms."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.dp.accounting import divergences, rdp
from tests.dp.accounting.reference import CASES

REFERENCE = json.loads(pathlib.Path(__file__).with_name("rdp_reference.json").read_text())
ORDERS = np.asarray(rdp.ORDERS)


def spent(noise_multiplier, sampling_rate=1.0, steps=1):
    return rdp.update(
        rdp.init(), noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps
    )[1]


def divergence(noise_multiplier, sampling_rate):
    """The cost of one release in 64 bits."""
    cost = rdp.subsampled_gaussian(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate)
    return sum(np.asarray(part, np.float64) for part in cost)


def test_the_reference_covers_all_cases():
    keys = ("sampling_rate", "noise_multiplier", "steps", "delta")
    assert [tuple(row[k] for k in keys) for row in REFERENCE] == CASES
    assert 1e-5 in [q for q, *_ in CASES]
    assert any(sigma == 50 and steps == 100_000 for _, sigma, steps, _ in CASES)


@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: "-".join(map(str, row.values())))
def test_epsilon_is_the_exact_one_rounded_up_a_little(row):
    exact = float(row["epsilon"])
    state = spent(row["noise_multiplier"], row["sampling_rate"], row["steps"])
    ours = float(rdp.epsilon(state, row["delta"]))
    assert exact <= ours <= exact * 1.001 + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("q", "sigma", "steps", "delta"), CASES[:2])
def test_the_stored_reference_is_what_the_quadrature_gives(q, sigma, steps, delta):
    import mpmath

    from tests.dp.accounting.reference import epsilon

    stored = {tuple(row.values())[:4]: float(row["epsilon"]) for row in REFERENCE}
    with mpmath.workdps(40):
        again = float(epsilon(q, sigma, steps, delta))
    assert again == pytest.approx(stored[q, sigma, steps, delta], rel=1e-9)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.1), (0.2, 3.0), (0.001, 0.6), (0.5, 10.0)])
def test_another_implementation_agrees_at_integer_orders(q, sigma):
    """dp-accounting sums Mironov's binomial series there."""
    import dp_accounting

    orders = np.array([*range(2, 30), 50, 100, 200, 500, 1500])
    accountant = dp_accounting.rdp.RdpAccountant(orders)
    gaussian = dp_accounting.GaussianDpEvent(sigma)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, gaussian))
    ours, above = divergence(sigma, q), np.searchsorted(ORDERS, orders)
    # Ours at the next order below and above; it grows with the order.
    assert (ours[above - 1] <= accountant._rdp * (1 + 1e-3)).all()
    assert (ours[above] >= accountant._rdp * (1 - 1e-9)).all()
    np.testing.assert_allclose(ours[above], accountant._rdp, rtol=0.02)


@pytest.mark.parametrize(("q", "sigma"), [(1e-5, 1.0), (0.001, 5.0), (0.3, 0.7), (0.1, 30.0)])
def test_between_its_nodes_it_is_above_the_integral_and_close(q, sigma):
    chosen = np.searchsorted(ORDERS, [1.0105, 1.52, 3.03, 8.4, 22.2, 24.1, 60.7, 343.3, 801.0])
    with jax.enable_x64(True):
        parts = np.array(
            [divergences.log_excess_by_quadrature(a, sigma, q) for a in ORDERS[chosen]]
        )
    exact = np.logaddexp(0, np.logaddexp(*parts.T)) / (ORDERS[chosen] - 1)
    ours = divergence(sigma, q)[chosen]
    assert (ours >= exact).all()
    # What a chord adds is worth a thousandth of an order.
    nearby = np.searchsorted(ORDERS, 1 + (ORDERS[chosen] - 1) * 1.002)
    assert (ours <= divergence(sigma, q)[nearby]).all()


@pytest.mark.parametrize("sigma", [0.03, 0.3, 2.0, 20.0])
def test_quadrature_and_series_agree(sigma):
    """Two ways to one integral, over all rates."""
    with jax.enable_x64(True):
        ways = (divergences.log_excess_by_quadrature, divergences.log_excess_by_series)
        for a in (2.0, 34.0, 1000.0):
            for q in (1e-7, 1e-3, 0.5, 0.999):
                pair, total = (way(jnp.asarray(a), sigma, q) for way in ways)
                found, exact = np.logaddexp(0, np.logaddexp(*pair)), np.logaddexp(0, total)
                assert found == pytest.approx(float(exact), rel=1e-7, abs=1e-300)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 50.0])
def test_without_sampling_it_is_the_gaussian_mechanism(sigma):
    exact = ORDERS / (2 * sigma**2)
    ours = divergence(sigma, 1.0)
    assert (ours >= exact).all()
    np.testing.assert_allclose(ours, exact, rtol=2e-6)


@pytest.mark.parametrize("q", [1e-4, 0.05, 0.7])
def test_order_two_has_a_closed_form(q):
    """The second moment of the ratio: ``1 + q^2 (e^(1/s^2) - 1)``, at the nearest order above."""
    at = int(np.searchsorted(ORDERS, 2.0))
    for sigma in (0.8, 5.0):
        exact = np.log1p(q * q * np.expm1(1 / sigma**2))
        below, above = divergence(sigma, q)[[at - 1, at]]
        assert below * (1 - 1e-3) <= exact <= above


@pytest.mark.slow
def test_divergence_grows_with_the_order_and_the_rate_and_falls_with_the_noise():
    rates = np.array([divergence(1.5, q) for q in (1e-4, 1e-2, 0.3, 1.0)])
    noises = np.array([divergence(sigma, 0.1) for sigma in (0.5, 1.0, 4.0, 20.0)])
    assert (np.diff(rates, axis=0) >= 0).all()
    assert (np.diff(rates, axis=0) > 0).mean() > 0.6
    assert (np.diff(noises, axis=0) < 0).all()
    for curve in (*rates, *noises):
        assert (np.diff(curve) >= -3e-6 * curve[1:]).all()  # the safety margin, twice


@pytest.mark.slow
def test_epsilon_falls_with_delta_and_grows_with_steps():
    state = spent(1.2, 0.05, 100)
    values = [float(rdp.epsilon(state, delta)) for delta in (1e-10, 1e-7, 1e-4, 0.01, 0.5)]
    assert values == sorted(values, reverse=True)
    values = [float(rdp.epsilon(spent(1.2, 0.05, n), 1e-5)) for n in (0, 1, 10, 1000)]
    assert values[0] == 0
    assert values == sorted(set(values))


def test_divergences_add_up():
    first, second = spent(2.0, 0.1, 30), spent(5.0, 0.02, 400)
    both = rdp.update(first, noise_multiplier=5.0, sampling_rate=0.02, steps=400)[1]
    exact = sum(
        np.asarray(v, np.float64) for state in (first, second) for v in (state.total, state.carry)
    )
    found = np.asarray(both.total, np.float64) + np.asarray(both.carry, np.float64)
    np.testing.assert_allclose(found, exact, rtol=1e-12)


@pytest.mark.parametrize("kind", ["scan", "update"])
def test_a_hundred_thousand_steps_lose_nothing_to_rounding(kind):
    sigma, q, steps = 50.0, 1e-5, 100_000
    cost = rdp.subsampled_gaussian(noise_multiplier=sigma, sampling_rate=q)
    one = divergence(sigma, q)
    if kind == "scan":
        run = jax.jit(lambda s: jax.lax.scan(lambda s, _: (rdp.add(s, cost), None), s, None, steps))
        state, _ = run(rdp.init())
    else:
        state = spent(sigma, q, steps)
    found = np.asarray(state.total, np.float64) + np.asarray(state.carry, np.float64)
    # Only _SAFETY may be eaten up, never more.
    assert (found >= steps * one * (1 - 1e-7)).all()
    np.testing.assert_allclose(found, steps * one, rtol=1e-6)


def test_epsilon_and_delta_are_each_others_inverse():
    state = spent(1.1, 0.01, 2000)
    for delta in (1e-8, 1e-5, 1e-2):
        eps = rdp.epsilon(state, delta)
        back = float(rdp.delta(state, eps))
        assert delta * (1 - 1e-3) <= back <= delta * (1 + 1e-5)


def test_the_gaussian_mechanism_is_never_under_reported():
    """Balle and Wang's exact delta of one Gaussian release lies below ours."""
    from scipy.stats import norm

    for sigma in (0.5, 1.0, 4.0):
        state = spent(sigma)
        for eps in (0.1, 1.0, 3.0):
            a, b = 1 / (2 * sigma), eps * sigma
            exact = norm.cdf(a - b) - np.exp(eps) * norm.cdf(-a - b)
            assert float(rdp.delta(state, eps)) >= exact


def test_no_noise_is_no_privacy_and_no_sampling_costs_nothing():
    assert np.isinf(rdp.epsilon(spent(0.0, 0.1), 1e-5))
    assert np.isinf(rdp.epsilon(spent(0.0, 1.0), 1e-5))
    assert float(rdp.delta(spent(0.0, 0.1), 100.0)) == 1
    assert float(rdp.epsilon(spent(1.0, 0.0, 1000), 1e-5)) == 0
    assert float(rdp.epsilon(rdp.init(), 1e-5)) == 0
    assert float(rdp.delta(rdp.init(), 0.0)) == 0


@pytest.mark.slow
def test_noise_may_be_traced_and_mapped_over():
    noises = jnp.array([0.0, 0.7, 2.0, -1.0])

    @jax.jit
    def epsilons(noises):
        def one(noise):
            _, state = rdp.update(rdp.init(), noise_multiplier=noise, sampling_rate=0.1, steps=10)
            return rdp.epsilon(state, 1e-5)

        return jax.vmap(one)(noises)

    found = np.asarray(epsilons(noises))
    assert np.isinf(found[[0, 3]]).all()  # out of range: no claim
    for value, noise in zip(found[1:3], (0.7, 2.0), strict=True):
        concrete = float(rdp.epsilon(spent(noise, 0.1, 10), 1e-5))
        # A traced rate is rounded to 32 bits on its way in.
        assert value == pytest.approx(concrete, rel=1e-5)


def test_the_users_64_bit_flag_is_left_alone():
    assert not jax.config.jax_enable_x64
    state = spent(1.0, 0.1)
    assert rdp.epsilon(state, 1e-5).dtype == jnp.float32
    assert state.total.dtype == jnp.float32
    assert not jax.config.jax_enable_x64
    with jax.enable_x64(True):
        assert float(rdp.epsilon(spent(1.0, 0.1), 1e-5)) == float(rdp.epsilon(state, 1e-5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rdp.subsampled_gaussian(noise_multiplier=-1.0), "noise_multiplier"),
        (lambda: rdp.subsampled_gaussian(noise_multiplier=float("nan")), "noise_multiplier"),
        (lambda: rdp.subsampled_gaussian(noise_multiplier=1.0, sampling_rate=1.5), "sampling_rate"),
        (lambda: spent(1.0, 0.1, -1), "steps"),
        (lambda: rdp.epsilon(rdp.init(), 0.0), "delta"),
        (lambda: rdp.epsilon(rdp.init(), 1.0), "delta"),
        (lambda: rdp.delta(rdp.init(), -0.1), "epsilon"),
        (lambda: rdp.init(sampler="shuffle"), "'poisson' with 'add_remove'.*got sampler='shuffle'"),
        (lambda: rdp.init(adjacency="replace"), "got sampler='poisson', adjacency='replace'"),
    ],
)
def test_numbers_out_of_range_and_other_mechanisms_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("damage", [jnp.nan, -1.0])
def test_a_damaged_state_looks_like_nothing_spent_to_nobody(damage):
    _, state = rdp.update(rdp.init(), noise_multiplier=2.0, steps=3)
    broken = dataclasses.replace(state, total=damage * state.total)
    assert float(rdp.epsilon(broken, 1e-5)) == np.inf
    assert float(rdp.delta(broken, 5.0)) == 1


def test_steps_are_whole():
    with pytest.raises(ValueError, match="whole"):
        rdp.update(rdp.init(), noise_multiplier=1.0, steps=0.5)
    traced = jax.jit(lambda n: rdp.update(rdp.init(), noise_multiplier=1.0, steps=n)[1])
    one = rdp.update(rdp.init(), noise_multiplier=1.0, steps=1)[1]
    np.testing.assert_allclose(traced(0.5).total, one.total, rtol=1e-6)
