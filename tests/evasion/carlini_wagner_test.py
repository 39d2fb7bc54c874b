import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from spax import norms
from spax.evasion import carlini_wagner
from spax.losses import margin, misclassified
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")


run = jax.jit(
    lambda f_params, x, y, **kw: carlini_wagner(
        lambda x: (x - 0.5) @ f_params, x, y, return_info=True, **kw
    ),
    static_argnames=("steps", "search_steps", "abort_early", "targeted"),
)


def _nearest_in_box(normal, x):
    """The nearest point of the box in the half-space ``normal . (z - 1/2) >= 0``, by SciPy."""
    result = scipy.optimize.minimize(
        lambda z: np.sum((z - x) ** 2),
        x,
        jac=lambda z: 2 * (z - x),
        bounds=[(0, 1)] * len(x),
        constraints={"type": "ineq", "fun": lambda z: normal @ (z - 0.5), "jac": lambda z: normal},
        method="SLSQP",
    )
    return np.sqrt(result.fun)


@pytest.mark.parametrize("abort_early", [False, True])
def test_distances_of_a_linear_model_are_the_least_possible(linear, abort_early):
    apply_fn, params, x, _ = linear
    params = params[:, :2]
    y = jnp.argmax(apply_fn(params, x), axis=1)
    x_adv, info = run(params, x, y, steps=400, abort_early=abort_early)
    distance = norms.norm(x_adv - x, "l2")
    difference = np.asarray(params[:, 1] - params[:, 0], np.float64)
    wanted = np.array(
        [
            _nearest_in_box(difference * (1 - 2 * label), point)
            for point, label in zip(np.asarray(x, np.float64), np.asarray(y), strict=True)
        ]
    )
    assert misclassified(apply_fn(params, x_adv), y).all()
    assert (distance >= wanted * (1 - 1e-4)).all()
    np.testing.assert_allclose(distance, wanted, rtol=0.03, atol=1e-3)
    assert ((info.const > 0) & jnp.isfinite(info.const)).all()


def test_early_stop_spends_fewer_steps_and_none_without_it(linear):
    _, params, x, y = linear
    spent = [run(params, x, y, steps=200, abort_early=early)[1].steps for early in (False, True)]
    assert (spent[0] == 9 * 200).all()
    assert (spent[1] < 9 * 200).all()


@pytest.mark.parametrize("abort_early", [False, True])
def test_an_example_does_not_see_its_neighbours(linear, abort_early):
    _, params, x, y = linear
    together = run(params, x, y, steps=100, abort_early=abort_early)
    alone = run(params, x[2:3], y[2:3], steps=100, abort_early=abort_early)
    np.testing.assert_allclose(together[0][2:3], alone[0], atol=1e-5)
    np.testing.assert_allclose(together[1].const[2:3], alone[1].const, rtol=1e-5)


def test_confidence_is_reached_and_costs_distance(linear):
    apply_fn, params, x, y = linear
    near, _ = run(params, x, y, steps=200)
    far, _ = run(params, x, y, steps=200, confidence=0.5)
    reached = margin(apply_fn(params, far), y)
    assert (reached >= 0.5).all()
    assert (norms.norm(far - x, "l2") > norms.norm(near - x, "l2")).all()


def test_targets_are_hit(linear):
    apply_fn, params, x, y = linear
    wanted = (y + 1) % 4
    x_adv, info = run(params, x, wanted, steps=200, targeted=True)
    hit = jnp.argmax(apply_fn(params, x_adv), axis=1) == wanted
    np.testing.assert_array_equal(hit, jnp.isfinite(info.const))
    assert hit.mean() > 0.5


def test_failures_and_needless_attacks_return_the_input(linear):
    _, params, x, y = linear
    constant = jnp.array([[1.0, 0.0]])
    x_adv, info = carlini_wagner(
        lambda x: jnp.broadcast_to(constant, (x.shape[0], 2)) + 0 * x[:, :1],
        x,
        jnp.zeros(8, int),
        steps=20,
        search_steps=2,
        return_info=True,
    )
    np.testing.assert_array_equal(x_adv, x)
    assert jnp.isinf(info.const).all()
    already, info = run(params, x, (y + 1) % 4, steps=20)
    np.testing.assert_array_equal(already, x)
    assert (info.const == 0).all()


def test_inputs_at_the_box_and_nan_gradients_do_no_harm():
    def f(x):
        z = jnp.sqrt(x[:, 0]) - 0.5  # infinite slope at 0
        return jnp.stack([jnp.zeros_like(z), z], axis=1)

    x = jnp.array([[0.0], [1.0]])
    x_adv = carlini_wagner(f, x, jnp.array([0, 1]), steps=1000)
    assert jnp.isfinite(x_adv).all()
    assert misclassified(f(x_adv), jnp.array([0, 1])).all()
    np.testing.assert_allclose(x_adv, [[0.25], [0.25]], atol=0.01)


def test_bfloat16_inputs_stay_bfloat16(linear):
    apply_fn, params, x, y = linear
    x = x.astype(jnp.bfloat16)
    y = jnp.argmax(apply_fn(params, x), axis=1)
    x_adv = carlini_wagner(functools.partial(apply_fn, params), x, y, steps=100)
    assert x_adv.dtype == jnp.bfloat16
    assert misclassified(apply_fn(params, x_adv), y).all()


def test_a_stochastic_model_needs_a_key_and_is_attacked(linear):
    apply_fn, params, x, y = linear
    noisy = Stochastic(
        lambda x, key: apply_fn(params, x) + 0.01 * jax.random.normal(key, (x.shape[0], 4))
    )
    with pytest.raises(ValueError, match="needs a random key"):
        carlini_wagner(noisy, x, y)
    x_adv = carlini_wagner(noisy, x, y, key=jax.random.key(0), steps=100, confidence=0.1)
    assert misclassified(apply_fn(params, x_adv), y).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, r"norm must be one of \['l0', 'l2', 'linf'\]"),
        ({"confidence": -1.0}, "confidence must be >= 0"),
        ({"initial_const": 0.0}, "initial_const must be > 0"),
        ({"step_size": 0.0}, "step_size must be > 0"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"search_steps": 0}, "search_steps must be >= 1"),
        ({"y": jnp.full(8, 9)}, r"labels must lie in \[0, 4\)"),
    ],
)
def test_bad_settings_raise(linear, arguments, message):
    apply_fn, params, x, y = linear
    with pytest.raises(ValueError, match=message):
        carlini_wagner(functools.partial(apply_fn, params), x, arguments.pop("y", y), **arguments)
