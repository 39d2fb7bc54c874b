import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.gradients import eot, exact, nes, spsa
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")

X = jax.random.normal(jax.random.key(0), (3, 4))
W = jnp.array([1.0, -2.0, 0.5, 3.0])


def quadratic(x):
    value = jnp.sum(x * x, axis=1) + x @ W
    return value, value > 0


def as_float(fn):
    def wrapped(x):
        value, aux = fn(x)
        return value, aux.astype(value.dtype)

    return wrapped


def test_exact_is_the_gradient_of_each_example():
    value, grad, aux = exact(as_float(quadratic), X)
    np.testing.assert_allclose(grad, 2 * X + W[None], rtol=1e-5)
    np.testing.assert_allclose(value, quadratic(X)[0], rtol=1e-6)
    np.testing.assert_array_equal(aux, quadratic(X)[1])


def test_exact_sums_over_the_batch():
    _, grad, _ = exact(as_float(quadratic), X)
    _, first, _ = exact(as_float(quadratic), X[:1])
    np.testing.assert_allclose(grad[:1], first, rtol=1e-6)


def scaled_by_a_draw():
    def fn(x, key):
        scale = jax.random.uniform(key, (), minval=0.0, maxval=2.0)  # mean 1
        value = scale * (x @ W)
        return value, jnp.zeros_like(value) + scale

    return Stochastic(fn)


def test_exact_follows_one_draw_and_eot_their_mean():
    key = jax.random.key(1)
    _, one, scale = exact(scaled_by_a_draw(), X, key)
    np.testing.assert_allclose(one, scale[:, None] * W[None], rtol=1e-5)
    _, mean, aux = jax.jit(lambda x, k: eot(300)(scaled_by_a_draw(), x, k))(X, key)
    np.testing.assert_allclose(aux, np.ones(3), atol=0.1)
    np.testing.assert_allclose(mean, aux[:, None] * W[None], rtol=1e-4)


@pytest.mark.parametrize("hook", [nes(2000, 1e-2), spsa(2000, 1e-2)])
def test_gradient_free_estimates_converge(hook):
    value, grad, _ = jax.jit(lambda x, k: hook(as_float(quadratic), x, k))(X, jax.random.key(2))
    wanted = np.asarray(2 * X + W[None])
    error = np.linalg.norm(grad - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert (error < 0.15).all()
    np.testing.assert_allclose(value, quadratic(X)[0], rtol=1e-5)


@pytest.mark.parametrize("hook", [nes(50, 1e-2), spsa(50, 1e-2)])
def test_estimates_do_not_see_the_neighbours(hook):
    key = jax.random.key(3)
    _, grad, _ = hook(as_float(quadratic), X, key)
    _, first, _ = hook(as_float(quadratic), X[:1], key)
    np.testing.assert_allclose(grad[:1], first, rtol=1e-4, atol=1e-5)


def test_estimates_difference_the_same_draw_of_a_stochastic_model():
    def noisy(x, key):
        value = x @ W + 1e3 * jax.random.normal(key, (x.shape[0],))
        return value, value

    _, grad, _ = jax.jit(lambda x, k: spsa(2000, 1.0)(Stochastic(noisy), x, k))(
        X, jax.random.key(4)
    )
    np.testing.assert_allclose(grad, np.broadcast_to(W, (3, 4)), atol=0.4)


@pytest.mark.parametrize("hook", [eot(2), nes(2), spsa(2)])
def test_drawing_hooks_need_a_key(hook):
    with pytest.raises(ValueError, match="needs a random key"):
        hook(as_float(quadratic), X, None)


@pytest.mark.parametrize("make", [eot, nes, spsa])
def test_no_draws_is_an_error(make):
    with pytest.raises(ValueError, match=r"n must be >= 1 \(got n=0\)"):
        make(0)


def test_widths_are_positive():
    with pytest.raises(ValueError, match=r"sigma must be > 0 \(got sigma=0\)"):
        nes(3, 0.0)
    with pytest.raises(ValueError, match=r"delta must be > 0 \(got delta=-1\)"):
        spsa(3, -1.0)
