"""The laws of training objectives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts.cases import OBJECTIVES

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(1)
CASES = [
    pytest.param(make, id=f"{name}-{i}")
    for name, makes in OBJECTIVES.items()
    for i, make in enumerate(makes)
]
PARAMS = {
    "w": jax.random.normal(jax.random.key(0), (6, 3)),
    "mean": jnp.zeros(6),
}
X = jax.random.uniform(jax.random.key(2), (4, 6))
Y = jnp.array([0, 1, 2, 0])


def apply_fn(params, x, *, train, key):
    """A linear model with dropout."""
    keep = jax.random.bernoulli(key, 0.8, x.shape) if train else jnp.ones(x.shape, bool)
    return jnp.where(keep, x, 0) @ params["w"]


def stateful(params, x, *, train, key):
    """The same with a running mean, as batch norm has."""
    mean = jnp.mean(x, axis=0) if train else params["mean"]
    return (x - mean[None]) @ params["w"], {"mean": mean}


@pytest.mark.parametrize("make", CASES)
def test_it_is_a_finite_scalar_with_a_gradient_for_every_parameter(make):
    loss_fn = make(apply_fn)
    (value, _), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(PARAMS, (X, Y), KEY)
    assert value.shape == ()
    assert jnp.isfinite(value)
    assert jnp.isfinite(grads["w"]).all()
    assert grads["w"].any()


@pytest.mark.parametrize("make", CASES)
def test_jit_equals_eager_with_one_trace_and_the_key_decides(make):
    chex.clear_trace_counter()
    loss_fn = make(apply_fn)
    run = jax.jit(chex.assert_max_traces(loss_fn, n=1))
    value, aux = run(PARAMS, (X, Y), KEY)
    chex.assert_trees_all_close((value, aux), loss_fn(PARAMS, (X, Y), KEY), rtol=1e-4)
    chex.assert_trees_all_equal((value, aux), run(PARAMS, (X, Y), KEY))
    assert value != run(PARAMS, (X, Y), jax.random.key(5))[0]


@pytest.mark.parametrize("in_train_mode", [False, True])
@pytest.mark.parametrize("make", CASES)
def test_a_model_with_state_hands_its_new_state_on(make, in_train_mode):
    loss_fn = make(stateful, has_state=True, attack_in_train_mode=in_train_mode)
    value, aux = jax.jit(loss_fn)(PARAMS, (X, Y), KEY)
    assert jnp.isfinite(value)
    assert aux.state["mean"].shape == (6,)
    assert aux.state["mean"].any()


@pytest.mark.parametrize("make", CASES)
def test_a_missing_state_says_so(make):
    with pytest.raises(ValueError, match="pair"):
        make(apply_fn, has_state=True)(PARAMS, (X, Y), KEY)


@pytest.mark.parametrize("make", CASES)
def test_no_gradient_flows_through_the_attack(make):
    """The gradient is that of the loss at the attacked points, held fixed: a linear check."""
    loss_fn = make(lambda params, x, *, train, key: x @ params["w"])
    grad = jax.jit(jax.grad(lambda p: loss_fn(p, (X, Y), KEY)[0]))(PARAMS)["w"]
    step = 1e-2 * grad / jnp.linalg.norm(grad)
    ahead, behind = (
        loss_fn({**PARAMS, "w": PARAMS["w"] + s * step}, (X, Y), KEY)[0] for s in (1.0, -1.0)
    )
    # By Danskin's theorem the derivative of the maximum is the derivative at the maximiser.
    np.testing.assert_allclose((ahead - behind) / 2e-2, jnp.linalg.norm(grad), rtol=0.1)
