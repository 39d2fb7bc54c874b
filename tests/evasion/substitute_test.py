import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from spax.evasion import fgsm, jacobian_augment, reservoir_sample, substitute
from spax.losses import misclassified

pytestmark = pytest.mark.slow  # compiles for long

KEY = jax.random.key(0)


def apply_fn(params, x, *, train, key):
    return x.reshape(x.shape[0], -1) @ params


@pytest.mark.usefixtures("strict")
def test_the_augmentation_steps_along_the_sign_of_the_oracles_class():
    w = jnp.array([[1.0, -1.0], [-2.0, 0.0], [3.0, 0.5]])
    x = jnp.array([[0.5, 0.5, 0.95], [0.05, 0.5, 0.5]])
    new = jacobian_augment(lambda x: x @ w, x, jnp.array([0, 1]), lam=0.1)
    np.testing.assert_allclose(new, [[0.6, 0.4, 1.0], [0.0, 0.5, 0.6]], atol=1e-6)
    back = jacobian_augment(lambda x: x @ w, x, jnp.array([0, 1]), lam=-jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(back, [[0.4, 0.6, 0.85], [0.25, 0.5, 0.3]], atol=1e-6)


@pytest.mark.usefixtures("strict")
def test_every_set_is_as_likely_in_the_reservoir():
    keys = jax.random.split(KEY, 2000)
    x = jnp.arange(5.0)
    rows, idx = jax.jit(jax.vmap(lambda k: reservoir_sample(x, 2, key=k)))(keys)
    np.testing.assert_array_equal(rows, idx)
    sets = list(itertools.combinations(range(5), 2))
    drawn = [tuple(sorted(row)) for row in np.asarray(idx).tolist()]
    counts = [drawn.count(s) for s in sets]
    assert sum(counts) == 2000  # two different rows each time
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.usefixtures("strict")
def test_rounds_double_then_draw_and_the_step_changes_its_sign():
    w = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    copy = substitute(
        lambda x: x @ w, apply_fn, optax.sgd(0.0), lam=0.1, tau=2, rounds=5,
        reservoir_after=2, reservoir_size=3, epochs=1,
    )  # fmt: skip
    state = copy.init(w, jnp.array([[0.6, 0.5], [0.4, 0.5]]))
    update, counts, points = jax.jit(copy.update), [], []
    for i in range(6):
        _, state = update(state, jax.random.fold_in(KEY, i))
        counts.append(int(state.queries))
        points.append(np.asarray(state.x))
    # n0 2^r, then three at a time, and no more than there is room for
    assert counts == [2, 4, 8, 11, 14, 14]
    assert state.valid.all()
    assert int(state.rounds) == 6
    np.testing.assert_allclose(points[1][2:4], [[0.7, 0.4], [0.3, 0.6]], atol=1e-6)  # up
    first = points[1][:4]
    np.testing.assert_allclose(  # and from the second augmentation on down
        points[2][4:8], first + [[-0.1, 0.1], [0.1, -0.1]] * 2, atol=1e-6
    )
    # The reservoir's points are augmented ones, at a step from points that there were.
    for new in points[3][8:11]:
        assert np.isclose(np.abs(points[2][:8] - new), 0.1, atol=1e-6).all(axis=1).any()


def test_a_substitute_of_digits_agrees_with_its_oracle_and_its_attacks_transfer(digits):
    rows = len(digits.x_train)
    flat = np.c_[digits.x_train.reshape(rows, -1), np.ones(rows)]
    w = jnp.asarray(np.linalg.lstsq(flat, np.eye(10)[digits.y_train], rcond=None)[0], jnp.float32)

    def oracle(x):
        return x.reshape(x.shape[0], -1) @ w[:-1] + w[None, -1]

    x_test, y_test = jnp.asarray(digits.x_test), jnp.asarray(digits.y_test)
    assert (jnp.argmax(oracle(x_test), axis=1) == y_test).mean() > 0.9
    start, rest = x_test[:100], x_test[100:]
    copy = substitute(oracle, apply_fn, optax.adam(1e-2), rounds=4, epochs=10)
    state, update = copy.init(jnp.zeros((64, 10)), start), jax.jit(copy.update)
    for i in range(4):
        params, state = update(state, jax.random.fold_in(KEY, i))
    assert int(state.queries) == 800

    def learnt(x):
        return apply_fn(params, x, train=False, key=None)

    labels = jnp.argmax(oracle(rest), axis=1)
    assert (jnp.argmax(learnt(rest), axis=1) == labels).mean() > 0.8
    x_adv = fgsm(learnt, rest, labels, eps=0.3)
    fooled = misclassified(oracle(x_adv), labels).mean()
    noise = rest + 0.3 * jax.random.rademacher(KEY, rest.shape, rest.dtype)
    at_random = misclassified(oracle(jnp.clip(noise, 0, 1)), labels).mean()
    assert fooled > 0.9
    assert fooled > at_random + 0.1


def test_bad_settings_raise():
    x = jnp.full((2, 3), 0.5)
    y = jnp.array([0, 1])
    for lam, labels, model, message in (
        (float("nan"), y, lambda x: x, "lam must be a number"),
        (0.1, y + 2, lambda x: x, r"labels must lie in \[0, 3\)"),
        (0.1, y, lambda x: x[:, 0], r"logits must have shape \[B, K\]"),
    ):
        with pytest.raises(ValueError, match=message):
            jacobian_augment(model, x, labels, lam=lam)
    with pytest.raises(ValueError, match="at most the number of rows"):
        reservoir_sample(x, 3, key=KEY)
    with pytest.raises(ValueError, match="k must be >= 1"):
        reservoir_sample(x, 0, key=KEY)
    with pytest.raises(ValueError, match="needs a random key"):
        reservoir_sample(x, 1, key=None)
    for name in ("tau", "rounds", "epochs", "reservoir_size", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1"):
            substitute(lambda x: x, apply_fn, optax.sgd(0.1), **{name: 0})
    with pytest.raises(ValueError, match="reservoir_after must be >= 0"):
        substitute(lambda x: x, apply_fn, optax.sgd(0.1), reservoir_after=-1)
    copy = substitute(lambda x: x, apply_fn, optax.sgd(0.1))
    with pytest.raises(ValueError, match="must lie within bounds"):
        copy.init(jnp.zeros((3, 3)), 2 * x + 1)
    with pytest.raises(ValueError, match="needs a random key"):
        copy.update(copy.init(jnp.zeros((3, 3)), x), None)
