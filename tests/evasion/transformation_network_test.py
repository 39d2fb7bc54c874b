import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from spax.evasion import aae, atn, atn_loss, p_atn, rerank
from spax.typing import Stochastic
from tests.evasion import ridge

pytestmark = pytest.mark.slow  # compiles for long

KEY = jax.random.key(0)
PROBS = jax.nn.softmax(jax.random.normal(KEY, (6, 5)), axis=1)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("target", [2, jnp.array([0, 1, 2, 3, 4, 0])])
def test_reranking_puts_the_target_first_and_keeps_the_order_of_the_rest(target):
    ranked = np.asarray(rerank(PROBS, target, alpha=1.5))
    np.testing.assert_allclose(ranked.sum(1), 1, rtol=1e-6)
    wanted = np.broadcast_to(np.asarray(target), 6)
    np.testing.assert_array_equal(ranked.argmax(1), wanted)
    for row, old, t in zip(ranked, np.asarray(PROBS), wanted, strict=True):
        rest = np.delete(np.arange(5), t)
        np.testing.assert_allclose(
            row[rest] / row[rest].sum(), old[rest] / old[rest].sum(), rtol=1e-5
        )
        np.testing.assert_allclose(
            row[t] / row[rest].max(), 1.5 * old.max() / old[rest].max(), rtol=1e-5
        )


@pytest.mark.usefixtures("strict")
def test_generators_stay_within_their_bounds():
    x = jax.random.uniform(KEY, (3, 4, 4, 1))
    wild = lambda scale, x: scale * jnp.sin(50 * x)  # noqa: E731
    moved = p_atn(wild, eps=0.2)(jnp.float32(100), x)
    assert (jnp.abs(moved - x) <= 0.2 + 1e-6).all()
    assert ((moved >= 0) & (moved <= 1)).all()
    drawn = aae(wild, bounds=(-1.0, 2.0))(jnp.float32(100), x)
    assert ((drawn >= -1) & (drawn <= 2)).all()
    assert drawn.min() < -0.9
    assert drawn.max() > 1.9
    for generator in (p_atn(wild, eps=0.2), aae(wild)):
        assert generator(jnp.bfloat16(1), x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.usefixtures("strict")
def test_the_objective_by_hand():
    w = jax.random.normal(KEY, (4, 3))
    x = jax.random.uniform(jax.random.key(1), (5, 4))
    shift = jnp.array([0.1, -0.2, 0.0, 0.3])
    loss_fn = atn_loss(lambda x: x @ w, lambda p, x: x + p[None], 2, alpha=2.0, beta=0.5)
    value, terms = loss_fn(shift, (x, None), None)
    softmax = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)  # noqa: E731
    clean, moved = (softmax(np.asarray(z @ w, np.float64)) for z in (x, x + shift[None]))
    wanted = clean.copy()
    wanted[:, 2] = 2.0 * clean.max(1)
    wanted /= wanted.sum(1, keepdims=True)
    output = ((moved - wanted) ** 2).sum(1).mean()
    np.testing.assert_allclose(terms.input, 0.14, rtol=1e-5)
    np.testing.assert_allclose(terms.output, output, rtol=1e-4)
    np.testing.assert_allclose(value, 0.5 * 0.14 + output, rtol=1e-4)
    np.testing.assert_allclose(terms.hit, (moved.argmax(1) == 2).mean())


def test_its_gradient_is_that_of_finite_differences():
    """The target's ranking is a constant: it does not follow x, nor the network."""
    w = jax.random.normal(KEY, (3, 4))
    x = jax.random.uniform(jax.random.key(1), (4, 3))
    loss_fn = atn_loss(lambda x: x @ w, p_atn(lambda p, x: x @ p, eps=0.1, bounds=(-9.0, 9.0)), 1)
    check_grads(lambda p: loss_fn(p, x, None)[0], (0.1 * w[:, :3],), order=1, modes=["rev"])


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: p_atn(lambda p, x: x, eps=-1.0), "eps must be >= 0"),
        (lambda: aae(lambda p, x: x, bounds=(1.0, 0.0)), "low < high"),
        (lambda: p_atn(lambda p, x: x[:1], eps=0.1)(None, jnp.zeros((2, 2))), "keep the shape"),
        (lambda: aae(lambda p, x: x[:1])(None, jnp.zeros((2, 2))), "keep the shape"),
        (lambda: rerank(PROBS[0], 1), r"probs must have shape \[B, K\]"),
        (lambda: rerank(PROBS, 5), "labels must lie"),
        (lambda: rerank(PROBS, 1, alpha=0.5), "alpha must be >= 1"),
        (lambda: atn_loss(lambda x: x, lambda p, x: x, 1, beta=-1.0), "beta must be >= 0"),
        (
            lambda: atn_loss(Stochastic(lambda x, k: x), lambda p, x: x, 1)(
                None, jnp.ones((1, 2)), None
            ),
            "needs a random key",
        ),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_network_drives_unseen_digits_to_its_target_as_the_penalty_allows(digits):
    """Baluja and Fischer: the smaller beta, the more succeed; P-ATN and AAE alike."""
    w = ridge.fit(digits.x_train, digits.y_train)
    target = 3
    x = jnp.asarray(digits.x_train[:1024])
    x_test = jnp.asarray(digits.x_test[digits.y_test != target])

    def net_fn(params, x):  # linear, which is enough against a linear model
        return (x.reshape(x.shape[0], -1) @ params).reshape(x.shape)

    def autoencoder(params, x):
        return net_fn(params, x - 0.5)

    @functools.partial(jax.jit, static_argnums=0)
    def fit(make, w, x, beta):
        generator = make()
        attack = atn(
            functools.partial(ridge.logits, w), generator, optax.adam(0.02), target, beta=beta
        )
        start = jnp.eye(64) * (4.0 if make is draw else 0.0)
        step = lambda state, x: (attack.update(state, x)[1], None)  # noqa: E731
        batches = jnp.tile(x.reshape(8, 128, 8, 8, 1), (12, 1, 1, 1, 1))
        params = jax.lax.scan(step, attack.init(start), batches)[0].params
        x_adv = generator(params, x_test)
        hit = jnp.argmax(ridge.logits(w, x_adv), 1) == target
        return hit.mean(), jnp.square(x_adv - x_test).sum((1, 2, 3)).mean()

    perturb = lambda: p_atn(net_fn, eps=1.0)  # noqa: E731
    draw = lambda: aae(autoencoder)  # noqa: E731
    strong, far = fit(perturb, w, x, 0.001)
    weak, near = fit(perturb, w, x, 0.1)
    assert strong >= 0.8
    assert weak <= strong
    assert near < far
    assert fit(draw, w, x, 0.001)[0] >= 0.6
