import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import norms
from spax.evasion import jsma
from spax.losses import hits
from spax.typing import Stochastic
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.usefixtures("strict")


def _quadratic(params, x):
    """A model whose derivatives change from point to point."""
    w, v = params
    return x @ w + (x * x) @ v


run = jax.jit(
    lambda params, x, y, **kw: jsma(lambda x: _quadratic(params, x), x, y, **kw),
    static_argnames=("theta", "gamma", "candidates", "use_logits"),
    compiler_options=QUICK,
)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(2)
    params = tuple(jnp.asarray(rng.normal(size=(10, 4)), jnp.float32) for _ in range(2))
    x = jnp.asarray(rng.choice([0, 0.2, 0.5, 1], size=(12, 10)), jnp.float32)
    y = (jnp.argmax(_quadratic(params, x), axis=1) + 1 + jnp.arange(12) % 3) % 4
    return params, x, y


def _by_hand(params, x, target, theta, steps, *, use_logits=True):
    """Algorithm 2 of the paper, one example, the Jacobian row by row and the pairs one by one."""
    w, v = (np.asarray(p, np.float64) for p in params)
    x = np.asarray(x, np.float64)
    z, end, sign = x.copy(), float(theta > 0), np.sign(theta)
    for _ in range(steps):
        logits = z @ w + (z * z) @ v
        if np.argmax(logits) == target:
            return z
        jacobian = (w + 2 * z[:, None] * v).T
        if not use_logits:
            p = np.exp(logits - logits.max())
            p /= p.sum()
            jacobian = p[:, None] * (jacobian - p @ jacobian)
        a = jacobian[target]
        b = jacobian.sum(0) - a
        best, pair = 0.0, None
        for p, q in itertools.combinations(np.flatnonzero(z != end), 2):
            total_a, total_b = sign * (a[p] + a[q]), sign * (b[p] + b[q])
            if total_a > 0 and total_b < 0 and -total_a * total_b > best:
                best, pair = -total_a * total_b, [p, q]
        if pair is None:
            return x
        z[pair] = np.clip(z[pair] + theta, 0, 1)
    return z if np.argmax(z @ w + (z * z) @ v) == target else x


@pytest.mark.parametrize(
    ("theta", "gamma", "settings"),
    [
        (1.0, 0.6, {}),
        (-1.0, 0.6, {}),
        (0.3, 1.0, {"use_logits": False}),
        (0.3, 1.0, {"candidates": 10}),
    ],
)
def test_it_is_the_papers_algorithm_pair_by_pair(model, theta, gamma, settings):
    params, x, y = model
    got = run(params, x, y, theta=theta, gamma=gamma, **settings)
    by_logits = settings.get("use_logits", True)
    wanted = [
        _by_hand(params, row, label, theta, round(gamma * 5), use_logits=by_logits)
        for row, label in zip(x, np.asarray(y), strict=True)
    ]
    np.testing.assert_allclose(got, np.stack(wanted), atol=1e-6)
    hit = hits(_quadratic(params, got), y)
    assert hit.any()
    np.testing.assert_array_equal(hit, (got != x).any(axis=1))  # failed: the input
    changed = np.asarray(got - x)
    assert (changed * theta >= 0).all()
    assert ((changed != 0).sum(1) <= gamma * 10).all()


def test_four_features_by_hand():
    # a = (1, 3, 2, -1) and b = (4, 1, -2, -9). Features 1 and 3 have -A B = 2 * 8, the two with
    # the largest a, 1 and 2, have 5 * 1, and 2 with 3 has 1 * 11. Afterwards 0 and 2 are left:
    # A = 3, but B = 2.
    w = jnp.array([[4.0, 1.0], [1.0, 3.0], [-2.0, 2.0], [-9.0, -1.0]])
    x, y = jnp.zeros((1, 4)), jnp.array([1])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def attack(x, shift):
        return jsma(lambda x: x @ w + shift, x, y, gamma=1.0)

    # The first pair raises the margin by 10; moving the other, inadmissible one would add 1.
    np.testing.assert_array_equal(attack(x, jnp.array([[9.5, 0.0]])), [[0, 1, 0, 1]])
    np.testing.assert_array_equal(attack(x, jnp.array([[10.5, 0.0]])), x)


def test_few_candidates_keep_the_rules(model):
    params, x, y = model
    few = run(params, x, y, gamma=0.6, candidates=2)
    moved = (few != x).any(axis=1)
    np.testing.assert_array_equal(hits(_quadratic(params, few), y), moved)
    assert (norms.norm(few - x, "l0") <= 6).all()
    assert moved.any()


def test_no_example_sees_its_neighbours_and_one_that_is_hit_stays(model):
    params, x, y = model
    together = run(params, x, y, gamma=0.6)
    others = run(params, jnp.concatenate([x[:1], 1 - x[1:]]), y, gamma=0.6)
    np.testing.assert_array_equal(together[0], others[0])
    already = jnp.argmax(_quadratic(params, x), axis=1)
    np.testing.assert_array_equal(run(params, x, already, gamma=0.6), x)


def test_large_inputs_take_candidates():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(1100, 3)), jnp.float32)
    x, y = jnp.full((1, 1100), 0.5), jnp.array([1])
    shift = jnp.array([[0.0, -40.0, 0.0]])
    attack = jax.jit(
        lambda x, y: jsma(lambda x: x @ w + shift, x, y, gamma=0.1), compiler_options=QUICK
    )
    x_adv = attack(x, y)
    assert hits(x_adv @ w + shift, y).all()
    assert 2 <= norms.norm(x_adv - x, "l0")[0] <= 110


def test_a_stochastic_model_needs_a_key(model):
    params, x, y = model
    noisy = Stochastic(
        lambda x, key: _quadratic(params, x) + 1e-4 * jax.random.normal(key, (x.shape[0], 4))
    )
    with pytest.raises(ValueError, match="needs a random key"):
        jsma(noisy, x, y, gamma=0.6)
    attack = jax.jit(lambda x, key: jsma(noisy, x, y, key=key, gamma=0.6), compiler_options=QUICK)
    got = attack(x, jax.random.key(0))
    assert (got != x).any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"targeted": False}, ValueError, "in targeted form only"),
        ({"theta": 0}, ValueError, "theta must be a number other than 0"),
        ({"theta": float("nan")}, ValueError, "theta must be a number other than 0"),
        ({"theta": jnp.ones(12)}, TypeError, "theta must be a Python number"),
        ({"gamma": "all"}, TypeError, "gamma must be a Python number"),
        ({"gamma": 0.0}, ValueError, "gamma must be > 0"),
        ({"gamma": 1.5}, ValueError, "gamma must be > 0 and <= 1"),
        ({"gamma": 0.1}, ValueError, r"gamma \* D must be >= 2"),
        ({"candidates": 0}, ValueError, "candidates must be >= 1"),
        ({"candidates": 1.5}, TypeError, "candidates must be a static int"),
        ({"y": jnp.full(12, 4)}, ValueError, r"labels must lie in \[0, 4\)"),
        ({"y": jnp.zeros(12)}, ValueError, "labels must be integers"),
        ({"x": jnp.full((12, 10), 2.0)}, ValueError, "x must lie within bounds"),
        ({"x": jnp.full((12, 10), jnp.nan)}, ValueError, "x must be finite"),
        ({"x": jnp.zeros((3, 10))}, ValueError, "y must have one entry per example"),
    ],
)
def test_bad_settings_raise(model, arguments, error, message):
    params, x, y = model
    arguments = {"x": x, "y": y, "gamma": 0.6} | arguments
    with pytest.raises(error, match=message):
        jsma(lambda x: _quadratic(params, x), **arguments)
