"""Adam without the bias of its noise, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spax import dp

KEY = jax.random.key(0)


def test_without_noise_it_is_adam():
    """Where the floor is not reached, and Adam's own epsilon is 0."""
    grads = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) + 2
    ours = dp.adam_bias_corrected(0.1, noise_variance=0.0, b1=0.8, b2=0.95, floor=1e-12)
    theirs = optax.adam(0.1, b1=0.8, b2=0.95, eps=0.0)
    states = [tx.init(jnp.zeros(5)) for tx in (ours, theirs)]
    for g in grads:
        found, states[0] = ours.update(jnp.asarray(g), states[0])
        wanted, states[1] = theirs.update(jnp.asarray(g), states[1])
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_pure_noise_leaves_a_second_moment_of_zero():
    """``mean(v - Phi)`` within three standard errors of 0."""
    sigma, n = 0.3, 100_000
    tx = dp.scale_by_adam_bias_corrected(noise_variance=sigma**2, b2=0.9)
    state = tx.init(jnp.zeros(n))
    for i in range(4):
        noise = dp.add_noise(jax.random.fold_in(KEY, i), jnp.zeros(n), sigma)
        _, state = tx.update(noise, state)
    excess = (np.asarray(state.nu, np.float64) - float(state.noise)) / (1 - 0.9**4)
    assert abs(excess.mean()) < 3 * excess.std() / np.sqrt(n)
    assert np.asarray(state.nu).mean() / (1 - 0.9**4) == pytest.approx(sigma**2, rel=0.02)


def test_a_constant_gradient_in_closed_form():
    """The first step of a gradient g with variance Phi: ``g / sqrt(g^2 - Phi)``, or the floor."""
    g = jnp.array([2.0, 0.1])
    tx = dp.scale_by_adam_bias_corrected(noise_variance=1.0, floor=0.25)
    scaled, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(scaled, [2 / np.sqrt(3), 0.1 / 0.5], rtol=1e-5)
    assert int(state.steps) == 1


def test_changing_noise_is_averaged_as_the_squares_are():
    b2, variances = 0.7, (1.0, 4.0, 0.25)
    tx = dp.scale_by_adam_bias_corrected(noise_variance=9.0, b2=b2)
    state = tx.init(jnp.zeros(2))
    for v in variances:
        # A gradient whose square is the variance: nothing is left of it.
        _, state = jax.jit(tx.update)(jnp.full(2, np.sqrt(v)), state, noise_variance=v)
    expected = sum((1 - b2) * b2 ** (2 - i) * v for i, v in enumerate(variances))
    assert float(state.noise) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(state.nu, expected, rtol=1e-6)


def test_it_composes_and_keeps_types():
    tx = optax.chain(
        optax.clip(1.0), dp.adam_bias_corrected(optax.constant_schedule(0.1), noise_variance=0.01)
    )
    params = {"w": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(())}
    updates, _ = tx.update(
        jax.tree.map(jnp.ones_like, params), tx.init(params), params, noise_variance=0.0
    )
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_variance": -1.0}, "noise_variance"),
        ({"noise_variance": 1.0, "b1": 1.0}, "b1"),
        ({"noise_variance": 1.0, "b2": -0.1}, "b2"),
        ({"noise_variance": 1.0, "floor": 0.0}, "floor"),
    ],
)
def test_bad_numbers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dp.adam_bias_corrected(0.1, **settings)
