"""FGSM on the observations of a policy for CartPole; noise of the same size does nothing."""

import functools

import jax
import pytest

from spax.evasion import policy_fgsm

pytest.importorskip("gymnax", reason="needs gymnax: pip install 'spax[rl]'")
cartpole = pytest.importorskip("tests.evasion.cartpole")


@pytest.mark.slow
def test_the_pole_falls_under_fgsm_and_not_under_noise():
    eps, key = 0.05, jax.random.key(9)

    def noise(logits_fn, x, y, *, key):
        return x + eps * jax.random.rademacher(key, x.shape, x.dtype)

    fgsm = functools.partial(policy_fgsm, eps=eps, bounds=cartpole.BOUNDS)
    weights, _ = cartpole.trained(jax.random.key(0))
    clean, noisy, attacked = (
        float(cartpole.returns(weights, attack, key=key, episodes=50).mean())
        for attack in (None, noise, fgsm)
    )
    assert clean > 0.95 * cartpole.STEPS
    assert noisy > 0.95 * clean
    assert attacked < 0.75 * clean
