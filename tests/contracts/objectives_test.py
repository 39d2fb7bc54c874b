"""The laws of training objectives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts.cases import OBJECTIVES, QUICK

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(1)
PARAMS = {
    "w": jax.random.normal(jax.random.key(0), (6, 3)),
    "mean": jnp.zeros(6),
}
X = jax.random.uniform(jax.random.key(2), (4, 6))
Y = jnp.array([0, 1, 2, 0])


# Case by case, so that one worker compiles a case once for all of its laws.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(make, id=f"{name}-{i}")
        for name, makes in OBJECTIVES.items()
        for i, make in enumerate(makes)
    ],
)
def make(request):
    return request.param


def dropping(params, x, *, train, key):
    """A linear model with dropout."""
    keep = jax.random.bernoulli(key, 0.8, x.shape) if train else jnp.ones(x.shape, bool)
    return jnp.where(keep, x, 0) @ params["w"]


def linear(params, x, *, train, key):
    return x @ params["w"]


def stateful(params, x, *, train, key):
    """The same with a running mean, as batch norm has."""
    mean = jnp.mean(x, axis=0) if train else params["mean"]
    return (x - mean[None]) @ params["w"], {"mean": mean}


@functools.cache
def compiled(make):
    """The objective of the model with dropout and its gradient, traced once."""
    chex.clear_trace_counter()
    loss_fn = chex.assert_max_traces(make(dropping), n=1)
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True), compiler_options=QUICK)


def test_it_is_a_finite_scalar_with_a_gradient_for_every_parameter(make):
    (value, _), grads = compiled(make)(PARAMS, (X, Y), KEY)
    assert value.shape == ()
    assert jnp.isfinite(value)
    assert jnp.isfinite(grads["w"]).all()
    assert grads["w"].any()


def test_jit_equals_eager_with_one_trace_and_the_key_decides(make):
    run = compiled(make)
    found, _ = run(PARAMS, (X, Y), KEY)
    chex.assert_trees_all_close(found, make(dropping)(PARAMS, (X, Y), KEY), rtol=1e-4)
    chex.assert_trees_all_equal(found, run(PARAMS, (X, Y), KEY)[0])
    assert found[0] != run(PARAMS, (X, Y), jax.random.key(5))[0][0]


def test_sharded_equals_unsharded(make):
    rows = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
    sharded = jax.device_put((X, Y), rows)
    run = jax.jit(make(dropping), compiler_options=QUICK)
    chex.assert_trees_all_close(
        run(PARAMS, sharded, KEY), compiled(make)(PARAMS, (X, Y), KEY)[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("in_train_mode", [False, True])
def test_a_model_with_state_hands_its_new_state_on(make, in_train_mode):
    loss_fn = make(stateful, has_state=True, attack_in_train_mode=in_train_mode)
    value, aux = jax.jit(loss_fn, compiler_options=QUICK)(PARAMS, (X, Y), KEY)
    assert jnp.isfinite(value)
    assert aux.state["mean"].shape == (6,)
    assert aux.state["mean"].any()


def test_a_missing_state_says_so(make):
    with pytest.raises(ValueError, match="pair"):
        jax.eval_shape(make(linear, has_state=True), PARAMS, (X, Y), KEY)


def test_no_gradient_flows_through_the_attack(make):
    """The gradient is that of the loss at the attacked points, held fixed: a linear check."""
    run = jax.jit(jax.value_and_grad(make(linear), has_aux=True), compiler_options=QUICK)
    grad = run(PARAMS, (X, Y), KEY)[1]["w"]
    step = 1e-2 * grad / jnp.linalg.norm(grad)
    ahead, behind = (
        run({**PARAMS, "w": PARAMS["w"] + s * step}, (X, Y), KEY)[0][0] for s in (1.0, -1.0)
    )
    # By Danskin's theorem the derivative of the maximum is the derivative at the maximiser.
    np.testing.assert_allclose((ahead - behind) / 2e-2, jnp.linalg.norm(grad), rtol=0.1)
