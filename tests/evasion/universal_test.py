import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import apply_universal, universal, universal_deepfool
from spax.gradients import spsa
from spax.losses import margin
from spax.typing import Stochastic
from tests.evasion import ridge

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.slow]

KEY = jax.random.key(0)
W = jnp.asarray(np.random.default_rng(2).normal(size=(6, 2)), jnp.float32)
X = jnp.asarray(np.random.default_rng(3).uniform(0.3, 0.7, size=(8, 6)), jnp.float32)


def f(x):
    return (x - 0.5) @ W


Y = jnp.argmax(f(X), axis=1)


def one_class():
    """Inputs of class 0 alone: on a linear model they share their worst direction."""
    return X[Y == 0]


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_of_a_linear_model_the_best_is_the_ball_in_the_direction_of_the_weights(norm, dual):
    x = one_class()
    attack = universal(f, eps=0.1, norm=norm, loss=margin, cap=100.0)
    update = jax.jit(attack.update)
    state = attack.init(x[0])
    for _ in range(25):
        v, state = update(state, x)
    gain = margin(f(x + v[None]), Y[Y == 0]) - margin(f(x), Y[Y == 0])
    wanted = 0.1 * np.linalg.norm(np.asarray(W[:, 1] - W[:, 0]), dual)
    np.testing.assert_allclose(gain, np.full(len(x), wanted), rtol=1e-3)
    assert np.linalg.norm(v, np.inf if norm == "linf" else 2) <= 0.1 + 1e-6
    assert int(state.steps) == 25


def test_targets_are_approached():
    attack = universal(f, eps=0.5, targeted=True)
    state, update = attack.init(X[0]), jax.jit(attack.update)
    for _ in range(20):
        v, state = update(state, X, jnp.ones(8, jnp.int32))
    assert (jnp.argmax(f(apply_universal(v, X)), 1) == 1).mean() > (Y == 1).mean()
    _, state = update(state, X, jnp.ones(8, jnp.int32))
    rate = (jnp.argmax(f(apply_universal(v, X)), 1) == 1).mean()
    np.testing.assert_allclose(state.fooled, rate)


def test_examples_beyond_the_cap_have_no_say():
    """One example is fooled far beyond the cap; the step is the gradient of the other alone."""

    def turned(x):  # the two rows pull in opposite directions
        z = jnp.where(x[:, :1] > 0.5, x[:, 1:] * 20 - 5, 2 - x[:, 1:])
        return jnp.concatenate([jnp.zeros_like(z), z], axis=1)

    x, y = jnp.array([[0.9, 0.9], [0.1, 0.5]]), jnp.array([0, 0])
    step = functools.partial(universal, turned, eps=0.1, step_size=0.05, loss=margin)
    capped = step(cap=5.0).update(universal(f, eps=0.1).init(x[0]), x, y)[0]
    free = step(cap=1e6).update(universal(f, eps=0.1).init(x[0]), x, y)[0]
    assert float(capped[1]) < 0 < float(free[1])


def test_a_pixel_at_the_box_can_come_back():
    """v first went below 0 where every image is black: the gradient upwards must still count."""
    rise = lambda x: jnp.stack([jnp.zeros_like(x[:, 0]), x[:, 0]], axis=1)  # noqa: E731
    attack = universal(rise, eps=0.2, step_size=0.1)
    state = attack.init(jnp.zeros(1))._replace(v=jnp.array([-0.15]))
    x, y = jnp.zeros((3, 1)), jnp.zeros(3, jnp.int32)
    for _ in range(3):
        v, state = attack.update(state, x, y)
    np.testing.assert_allclose(v, [0.15], atol=1e-6)


def test_without_labels_the_clean_predictions_are_left():
    state = universal(f, eps=0.1).init(X[0])
    for make in (universal, universal_deepfool):
        update = make(f, eps=0.1).update
        np.testing.assert_array_equal(update(state, X)[0], update(state, X, Y)[0])


def test_gradient_free_hooks_work():
    attack = universal(f, eps=0.1, loss=margin, cap=100.0, gradient=spsa(200))
    x = one_class()
    v, _ = attack.update(attack.init(x[0]), x, key=KEY)
    exact = universal(f, eps=0.1, loss=margin, cap=100.0)
    np.testing.assert_allclose(v, exact.update(exact.init(x[0]), x)[0], atol=1e-6)


def test_the_clipped_sum_is_applied_and_v_itself_is_not_clipped():
    v = jnp.array([0.3, -0.3])
    x = jnp.array([[0.9, 0.1], [0.5, 0.5]])
    np.testing.assert_allclose(apply_universal(v, x), [[1.0, 0.0], [0.8, 0.2]], atol=1e-6)
    assert apply_universal(v, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_deepfool_adds_the_least_step_over_the_boundary_of_an_affine_model():
    """Algorithm 1 by hand for one example: |f| / |w|^2 w, with its overshoot."""
    x = one_class()[:1]
    w = W[:, 1] - W[:, 0]
    attack = universal_deepfool(f, eps=10.0, norm="l2", overshoot=0.02)
    v, state = attack.update(attack.init(x[0]), x)
    gap = f(x)[0, 0] - f(x)[0, 1]
    np.testing.assert_allclose(v, 1.02 * gap * w / (w @ w), rtol=1e-2, atol=1e-5)
    # Once it fools, it rests.
    assert float(state.fooled) == 0.0
    again, state = attack.update(state, x)
    np.testing.assert_array_equal(again, v)
    assert float(state.fooled) == 1.0


def test_deepfool_goes_through_the_examples_in_order():
    attack = universal_deepfool(f, eps=0.05)
    update = jax.jit(attack.update)
    together, _ = update(attack.init(X[0]), X, Y)
    state = attack.init(X[0])
    for i in range(8):
        v, state = update(state, X[i : i + 1], Y[i : i + 1])
    np.testing.assert_allclose(together, v, atol=1e-6)
    assert (jnp.abs(together) <= 0.05 + 1e-6).all()


def test_bfloat16_stays():
    x = X.astype(jnp.bfloat16)
    for make in (universal, universal_deepfool):
        attack = make(lambda x: (x - 0.5) @ W.astype(x.dtype), eps=0.1)
        v, state = attack.update(attack.init(x[0]), x)
        assert v.dtype == state.v.dtype == jnp.bfloat16
        assert (jnp.abs(v.astype(jnp.float32)) <= 0.1).all()


@pytest.mark.parametrize("make", [universal, universal_deepfool])
def test_bad_arguments_raise(make):
    with pytest.raises(ValueError, match="norm must be one of"):
        make(f, eps=0.1, norm="l1")
    with pytest.raises(ValueError, match="eps must be >= 0"):
        make(f, eps=-0.1)
    with pytest.raises(ValueError, match="eps must be a scalar"):
        make(f, eps=jnp.array([0.1, 0.2]))
    attack = make(f, eps=0.1)
    with pytest.raises(ValueError, match="one floating example"):
        attack.init(jnp.zeros(6, jnp.int32))
    with pytest.raises(ValueError, match="shape"):
        attack.update(attack.init(X[0, :2]), X)
    with pytest.raises(ValueError, match="within bounds"):
        attack.update(attack.init(X[0]), 2 * X)
    noisy = make(Stochastic(lambda x, key: f(x)), eps=0.1)
    with pytest.raises(ValueError, match="needs a random key"):
        noisy.update(noisy.init(X[0]), X)


def test_bad_settings_raise():
    with pytest.raises(ValueError, match="cap must be > 0"):
        universal(f, eps=0.1, cap=0.0)
    with pytest.raises(ValueError, match="step_size must be >= 0"):
        universal(f, eps=0.1, step_size=-1.0)
    attack = universal(f, eps=0.1, targeted=True)
    with pytest.raises(ValueError, match="wanted labels"):
        attack.update(attack.init(X[0]), X)
    with pytest.raises(ValueError, match="steps must be >= 1"):
        universal_deepfool(f, eps=0.1, steps=0)
    with pytest.raises(ValueError, match="candidates must be >= 2"):
        universal_deepfool(f, eps=0.1, candidates=1)
    with pytest.raises(ValueError, match="overshoot must be >= 0"):
        universal_deepfool(f, eps=0.1, overshoot=-1.0)
    with pytest.raises(ValueError, match="v must have the shape"):
        apply_universal(jnp.zeros(3), X)


def test_one_perturbation_fools_digits_it_was_not_fitted_on(digits):
    """Against random signs of the same size, by both forms."""
    w = ridge.fit(digits.x_train, digits.y_train)
    x, x_test = jnp.asarray(digits.x_train[:512]), jnp.asarray(digits.x_test)

    @jax.jit
    def fit(w, x):
        model = functools.partial(ridge.logits, w)
        fast = universal(model, eps=0.25)
        step = lambda state, x: (fast.update(state, x)[1], None)  # noqa: E731
        batches = jnp.tile(x.reshape(4, 128, 8, 8, 1), (10, 1, 1, 1, 1))
        slow = universal_deepfool(model, eps=0.25, steps=3)
        return (
            jax.lax.scan(step, fast.init(x[0]), batches)[0].v,
            slow.update(slow.init(x[0]), x[:128])[0],
        )

    def rate(v):
        clean = jnp.argmax(ridge.logits(w, x_test), 1)
        return float((jnp.argmax(ridge.logits(w, apply_universal(v, x_test)), 1) != clean).mean())

    fast, slow = fit(w, x)
    noise = 0.25 * jax.random.rademacher(KEY, (8, 8, 1), jnp.float32)
    assert rate(fast) >= 0.6
    assert rate(slow) > rate(noise) + 0.1
    assert rate(fast) > rate(noise) + 0.2
