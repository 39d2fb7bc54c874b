import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.gradients import bpda
from spax.typing import Stochastic, call, lift

pytestmark = pytest.mark.usefixtures("strict")

X = jnp.array([[0.2, 0.7], [1.4, -0.6]])


def quantize(x):
    return jnp.round(x * 4) / 4


def test_the_value_is_that_of_h_and_the_derivative_that_of_the_surrogate():
    step = bpda(quantize, jnp.sin)
    np.testing.assert_array_equal(step(X), quantize(X))
    np.testing.assert_allclose(jax.grad(lambda x: step(x).sum())(X), jnp.cos(X), rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(step, (X,), (jnp.ones_like(X),))[1], jnp.cos(X), rtol=1e-6)


def test_the_identity_is_the_default():
    np.testing.assert_array_equal(jax.grad(lambda x: bpda(quantize)(x).sum())(X), np.ones((2, 2)))


def test_it_gives_a_model_its_gradient_back():
    w = jnp.array([2.0, -1.0])
    assert not jax.grad(lambda x: lift(quantize, lambda x: x @ w)(x).sum())(X).any()
    grad = jax.grad(lambda x: lift(bpda(quantize), lambda x: x @ w)(x).sum())(X)
    np.testing.assert_allclose(grad, np.broadcast_to(w, (2, 2)))


def test_stochastic_steps_and_surrogates_see_the_same_draw():
    def noise(x, key):
        return x * jax.random.normal(key, x.shape)

    step = bpda(Stochastic(lambda x, key: jnp.round(noise(x, key))), Stochastic(noise))
    assert isinstance(step, Stochastic)
    key = jax.random.key(0)
    np.testing.assert_array_equal(call(step, X, key), jnp.round(noise(X, key)))
    grad = jax.grad(lambda x: call(step, x, key).sum())(X)
    np.testing.assert_allclose(grad, jax.random.normal(key, X.shape), rtol=1e-6)


def test_a_huge_surrogate_does_not_disturb_the_value():
    step = bpda(quantize, lambda x: 1e8 * x)
    np.testing.assert_array_equal(step(X), quantize(X))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"got h\(x\): float32\[2,1\], surrogate\(x\)"):
        bpda(lambda x: x[:, :1])(X)
