"""Noise and steps for a budget, several kinds of steps, and other ways to draw batches, by RDP."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln

from spax.dp.accounting import divergences, rdp

ROWS = json.loads(pathlib.Path(__file__).with_name("generated_reference.json").read_text())
ORDERS = np.asarray(rdp.ORDERS)


def spent(noise_multiplier, sampling_rate, steps, **kind):
    return rdp.update(
        rdp.init(**kind),
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        steps=steps,
    )[1]


def total(state):
    return np.asarray(state.total, np.float64) + np.asarray(state.carry, np.float64)


def check(rows):
    for q, sigma, steps, delta, _, exact in rows:
        ours = float(rdp.epsilon(spent(sigma, q, steps), delta))
        # The reference is exact to 1e-8.
        assert exact * (1 - 1e-7) <= ours <= exact * 1.001 + 1.1e-4, (q, sigma, steps, delta)


@pytest.mark.slow
def test_generated_settings():
    check(ROWS[5::42])


@pytest.mark.slow
def test_all_generated_settings():
    assert len(ROWS) >= 200
    check(ROWS)


@pytest.mark.parametrize(
    ("epsilon", "q", "steps", "sigma"),
    # The noise that dp-accounting finds at its orders, which are fewer.
    [(3.0, 256 / 60_000, 4680, 0.8024), (1.0, 0.01, 1000, 1.5131), (8.0, 0.05, 1000, 1.2520)],
)
def test_calibrated_noise_is_known_and_safe(epsilon, q, steps, sigma):
    noise, reached = rdp.calibrate(epsilon=epsilon, delta=1e-5, sampling_rate=q, steps=steps)
    assert sigma - 4e-4 < float(noise) < sigma + 2e-4
    assert epsilon - 1e-3 < float(reached) <= epsilon
    # Both are bounds: the state's chords between orders add up to a thousandth to its own.
    whole = float(rdp.epsilon(spent(float(noise), q, steps), 1e-5))
    assert float(reached) * (1 - 1e-3) < whole <= float(reached) * (1 + 1e-3)


@pytest.mark.slow
def test_calibration_is_safe_everywhere():
    for q, sigma, steps, delta, _, exact in ROWS:
        if not 1e-3 < exact < 1e4:
            continue
        noise, reached = rdp.calibrate(epsilon=exact, delta=delta, sampling_rate=q, steps=steps)
        assert float(reached) <= exact
        assert float(noise) >= sigma * (1 - 1e-5), (q, sigma, steps, delta)
        if exact > 0.05:
            assert float(noise) <= sigma * 1.02, (q, sigma, steps, delta)


def test_the_quick_quadrature_is_the_other():
    with jax.enable_x64(True):
        quick = jax.jit(divergences.quick_log_excess, static_argnums=3)
        for s, q in ((0.05, 0.01), (0.5, 1e-5), (2.0, 0.3), (30.0, 0.999)):
            for a in (1.3, 2.0, 17.0, 900.0):
                a = jnp.float64(a)
                exact = jnp.logaddexp(*divergences.log_excess_by_quadrature(a, s, q))
                ours, theirs = jnp.logaddexp(quick(a, s, q, 4096), 0), jnp.logaddexp(exact, 0)
                assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
        for a in (5000.0, 100_000.0):
            exact = divergences.log_excess_by_series(jnp.float64(a), 1.5, 0.01)
            assert float(quick(jnp.float64(a), 1.5, 0.01, 4096)) == pytest.approx(
                float(exact), rel=1e-6
            )


@pytest.mark.slow
def test_calibration_under_vmap_and_out_of_range():
    budgets = jnp.array([1.0, -1.0])
    noise, reached = jax.jit(
        jax.vmap(lambda e: rdp.calibrate(epsilon=e, delta=1e-5, sampling_rate=1.0, steps=10))
    )(budgets)
    exact = float(rdp.epsilon(spent(float(noise[0]), 1.0, 10), 1e-5))
    assert 0.999 < float(reached[0]) <= 1.0
    assert exact <= float(reached[0]) * (1 + 1e-3)
    assert np.isinf(noise[1])
    assert float(reached[1]) == 0


def test_max_steps_is_the_last_that_fits():
    numbers = {"noise_multiplier": 1.1, "sampling_rate": 0.01}
    n = int(rdp.max_steps(epsilon=2.0, delta=1e-5, **numbers))
    fits, above = (float(rdp.epsilon(spent(1.1, 0.01, k), 1e-5)) for k in (n, n + 1))
    assert fits <= 2.0 < above * (1 + 1e-6)
    assert (
        int(rdp.max_steps(epsilon=0.001, delta=1e-5, noise_multiplier=0.3, sampling_rate=1.0)) == 0
    )


def test_kinds_of_steps_add_up():
    sigma, q = np.array([2.0, 5.0, 2.0]), np.array([0.1, 0.02, 0.1])
    steps = np.array([3, 400, 7])
    exact = total(spent(2.0, 0.1, 10)) + total(spent(5.0, 0.02, 400))
    np.testing.assert_allclose(total(spent(sigma, q, steps)), exact, rtol=1e-9)


def test_a_million_steps_that_differ_lose_nothing():
    sigma = np.linspace(1.0, 100.0, 1_000_000)
    state = rdp.update(rdp.init(), noise_multiplier=sigma)[1]
    exact = math.fsum(1 / sigma**2) / 2 * ORDERS
    assert (total(state) >= exact).all()
    np.testing.assert_allclose(total(state), exact, rtol=3e-6)


def without_replacement(a, s, q):
    """The sum of Theorem 9, term by term."""
    j = np.arange(3, a + 1)
    choose = gammaln(a + 1) - gammaln(j + 1) - gammaln(a - j + 1)
    rest = choose + j * np.log(q) + np.log(2) + 2 * j * (j - 1) / s**2
    second = np.log(q * q * a * (a - 1) / 2 * min(4 * np.expm1(4 / s**2), 2 * np.exp(4 / s**2)))
    return min(np.logaddexp.reduce([0.0, second, *rest]) / (a - 1), 2 * a / s**2)


def test_sampling_without_replacement_is_the_theorem():
    for s, q in ((8.0, 0.01), (2.0, 0.3), (40.0, 1e-3)):
        ours = total(
            rdp.add(
                rdp.init(sampler="fixed_size", adjacency="replace"),
                rdp.fixed_size_gaussian(noise_multiplier=s, sampling_rate=q),
            )
        )
        for a in (2, 3, 10, 50):
            at = int(np.searchsorted(ORDERS, a))
            exact = without_replacement(a, s, q)
            assert ours[at] >= exact
            assert ours[at - 1] <= exact * (1 + 1e-5)
        assert (ours <= 2 * ORDERS / s**2 * (1 + 3e-6)).all()


def test_full_batches_with_one_replaced_have_twice_the_sensitivity():
    one = spent(2.0, 1.0, 3, sampler="full_batch")
    two = spent(4.0, 1.0, 3, sampler="full_batch", adjacency="replace")
    np.testing.assert_allclose(total(one), total(two), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rdp.init(sampler="fixed_size"), "adjacency='add_remove'"),
        (
            lambda: rdp.add(rdp.init(), rdp.full_batch_gaussian(noise_multiplier=1.0)),
            "got a cost for 'full_batch'",
        ),
        (lambda: spent(1.0, 0.5, 1, sampler="full_batch"), "sampling_rate=1"),
        (lambda: spent(np.ones(2), np.ones(3), 1), "one length"),
        (lambda: spent(np.ones((2, 2)), 1.0, 1), "one dimension"),
        (lambda: rdp.full_batch_gaussian(noise_multiplier=1.0, adjacency="x"), "adjacency"),
        (lambda: rdp.calibrate(epsilon=0.0, delta=1e-5, sampling_rate=0.1, steps=1), "epsilon"),
        (lambda: rdp.calibrate(epsilon=1.0, delta=1e-5, sampling_rate=0.1, steps=0), "steps"),
        (
            lambda: rdp.max_steps(
                epsilon=-1.0, delta=1e-5, noise_multiplier=1.0, sampling_rate=0.1
            ),
            "epsilon",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
