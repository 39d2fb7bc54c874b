import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import pgd, spsa_attack
from spax.losses import margin, misclassified
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


def logits(w, x, quantum):
    """Two classes, on inputs rounded to a grid."""
    z = (jnp.round(x / quantum) * quantum - 0.5) @ w
    return jnp.stack([jnp.zeros_like(z), z], axis=1)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.choice([-1.0, 1.0], 20) * rng.uniform(0.5, 1.5, 20), jnp.float32)
    x = jnp.asarray(rng.uniform(0.3, 0.7, size=(6, 20)), jnp.float32)
    return w, x, (logits(w, x, 1e-6)[:, 1] > 0).astype(jnp.int32)


@jax.jit
def run(w, x, y, key, quantum, delta, eps, most):
    return spsa_attack(
        functools.partial(logits, w, quantum=quantum), x, y, key=key, eps=eps, delta=delta,
        max_queries=most, step_size=0.02, n=64, steps=30, return_info=True,
    )  # fmt: skip


def test_it_reaches_the_optimum_of_a_linear_model(model):
    w, x, y = model
    f = functools.partial(logits, w, quantum=1e-6)
    reach = float(jnp.abs(w).sum())
    eps = 0.9 * jnp.min(-margin(f(x), y)) / reach  # nothing fools
    x_adv, info = run(w, x, y, KEY, 1e-6, 0.01, eps, 10**6)
    gain = margin(f(x_adv), y) - margin(f(x), y)
    np.testing.assert_allclose(gain, np.full(6, eps * reach), rtol=0.02)
    np.testing.assert_array_equal(info.queries, 30 * (2 * 64 + 1) + 1)


def test_an_example_that_fools_rests_and_no_budget_is_exceeded(model):
    w, x, y = model
    f = functools.partial(logits, w, quantum=1e-6)
    x_adv, info = run(w, x, y, KEY, 1e-6, 0.01, 0.2, 10**6)
    assert misclassified(f(x_adv), y).all()
    assert (info.queries < 30 * 129).all()
    assert ((info.queries - 1) % 129 == 0).all()
    most = jnp.array([0, 1, 128, 129, 300, 387])
    _, info = run(w, x, y, KEY, 1e-6, 0.01, 1e-3, most)
    np.testing.assert_array_equal(info.queries, [0, 1, 1, 129, 259, 387])


def test_it_works_behind_quantisation_where_pgd_does_not(model):
    w, x, _ = model
    f = functools.partial(logits, w, quantum=0.1)
    y = jnp.argmax(f(x), axis=1)
    still = pgd(f, x, y, eps=0.2, steps=3, random_start=False)
    np.testing.assert_array_equal(still, x)
    moved, _ = run(w, x, y, KEY, 0.1, 0.1, 0.2, 10**6)
    assert misclassified(f(moved), y).all()
    blind, _ = run(w, x, y, KEY, 0.1, 1e-4, 0.2, 10**6)  # delta below the quantum
    assert misclassified(f(blind), y).mean() < 1


def test_the_noise_of_a_stochastic_model_cancels_in_a_pair(model):
    w, x, y = model

    def noisy(x, key):
        shift = 100 * jax.random.normal(key, (x.shape[0], 1))
        return jnp.concatenate([-shift, shift], axis=1) + logits(w, x, 1e-6)

    never = lambda outputs, y: jnp.zeros(y.shape, bool)  # noqa: E731
    attack = functools.partial(spsa_attack, eps=0.05, n=64, steps=2, step_size=0.05)
    x_adv = jax.jit(lambda x, y, k: attack(Stochastic(noisy), x, y, key=k, criterion=never))(
        x, y, KEY
    )
    # Each point is one of two: a step along the signs of w, or (by the noise of its value) none.
    sign = jnp.sign(w)[None] * (1 - 2 * y[:, None]).astype(w.dtype)
    moved = jnp.any(x_adv != x, axis=1)
    assert moved.any()
    agree = jnp.mean((jnp.sign(x_adv - x) == sign)[moved])
    assert agree > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": None}, "needs a random key"),
        ({"eps": -1.0}, "eps must be >= 0"),
        ({"step_size": 0.0}, "step_size must be > 0"),
        ({"delta": 0.0}, "delta must be > 0"),
        ({"n": 0}, "n must be >= 1"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"max_queries": -1}, "max_queries must be >= 0"),
        ({"x": jnp.full((6, 20), 1.5)}, "must lie within bounds"),
        ({"y": jnp.full(6, 2)}, r"labels must lie in \[0, 2\)"),
    ],
)
def test_bad_settings_raise(model, arguments, message):
    w, x, y = model
    settings = {"key": KEY, "eps": 0.1, **arguments}
    x, y = settings.pop("x", x), settings.pop("y", y)
    with pytest.raises(ValueError, match=message):
        spsa_attack(functools.partial(logits, w, quantum=1e-6), x, y, **settings)
