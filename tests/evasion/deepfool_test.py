import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import norms
from spax.evaluation import judge
from spax.evasion import deepfool, fab
from spax.evasion.deepfool import nearest_plane
from spax.losses import misclassified
from spax.typing import Stochastic
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.usefixtures("strict")

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


@pytest.fixture(scope="module")
def affine():
    """Five classes, an interior batch that is near the boundaries: (f, weights, x, y)."""
    rng = np.random.default_rng(2)
    w = rng.normal(size=(12, 5)).astype(np.float32)
    x = rng.uniform(0.4, 0.6, size=(6, 12)).astype(np.float32)

    def f(x):
        return (x - 0.5) @ w.astype(x.dtype)

    return f, w, jnp.asarray(x), jnp.argmax(f(jnp.asarray(x)), axis=1).astype(jnp.int32)


def distances(f, w, x, y, norm):
    """The distance of each boundary from each x, by hand; that to the label itself is inf."""
    logits, y = np.asarray(f(x), np.float64), np.asarray(y)
    rows = np.arange(len(y))
    steps = np.abs(logits - logits[rows, y][:, None])
    normals = w.T[None] - w.T[y][:, None]
    order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    size = np.linalg.norm(normals.astype(np.float64), ord=order, axis=2)
    return np.where(np.arange(5) == y[:, None], np.inf, steps / np.where(size > 0, size, 1))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_affine_model_takes_one_step_of_the_exact_distance(affine, norm, each):
    f, w, x, y = affine
    run = jax.jit(
        lambda x, y: deepfool(f, x, y, norm=norm, steps=1, overshoot_each_step=each),
        compiler_options=QUICK,
    )
    x_adv = run(x, y)
    wanted = 1.02 * distances(f, w, x, y, norm).min(axis=1)
    assert misclassified(f(x_adv), y).all()
    assert ((x_adv > 0) & (x_adv < 1)).all()  # the box does not take part
    np.testing.assert_allclose(norms.norm(x_adv - x, norm), wanted, rtol=1e-4)


@pytest.mark.parametrize("each", [False, True])
def test_a_curved_model_is_linearised_where_it_should_be(each):
    """The margin x^2 - 1/4 in one dimension: Newton's method, by hand."""

    def f(x):
        return jnp.concatenate([x**2 - 0.25, 0 * x], axis=1)

    r, z, steps = 0.0, 0.9, 0
    while z**2 > 0.25:
        at = z if each else 0.9 + r
        r -= (at**2 - 0.25) / (2 * at) + 1e-4 * abs(r)
        z, steps = 0.9 + 1.1 * r, steps + 1
    x, y = jnp.array([[0.9]]), jnp.array([0])
    assert steps > 1
    found = deepfool(f, x, y, overshoot=0.1, overshoot_each_step=each)
    np.testing.assert_allclose(found, [[z]], rtol=1e-5)
    # A step less is a failure, and a failure is the input.
    failed = deepfool(f, x, y, overshoot=0.1, overshoot_each_step=each, steps=steps - 1)
    np.testing.assert_array_equal(failed, x)


def test_only_the_candidates_are_looked_at(affine):
    f, w, x, y = affine
    logits = np.asarray(f(x))
    second = np.argsort(logits, axis=1)[:, -2]
    wanted = distances(f, w, x, y, "l2")
    x_adv = deepfool(f, x, y, steps=1, candidates=2)
    rows = np.arange(len(x))
    np.testing.assert_allclose(norms.norm(x_adv - x, "l2"), 1.02 * wanted[rows, second], rtol=1e-4)
    assert (wanted.min(axis=1) < wanted[rows, second] * 0.999).any()


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_nearest_of_many_planes_is_found_in_turns(norm):
    rng = np.random.default_rng(4)
    w = rng.normal(size=(7, 40)).astype(np.float32)
    z = jnp.asarray(rng.uniform(size=(3, 7)), jnp.float32)
    y = jnp.array([3, 0, 39])
    classes = (y[:, None] + 1 + jnp.arange(39)[None]) % 40
    plane = nearest_plane(lambda z: z @ w, z, y, classes, norm)
    logits = np.asarray(z @ w)
    for row, label in enumerate(np.asarray(y)):
        steps = logits[row] - logits[row, label]
        normals = w - w[:, [label]]
        size = np.asarray(norms.norm(jnp.asarray(normals.T), DUAL[norm]))
        far = np.where(np.arange(40) == label, np.inf, np.abs(steps) / np.where(size, size, 1))
        best = far.argmin()
        np.testing.assert_allclose(plane.distance[row], far[best], rtol=1e-5)
        np.testing.assert_allclose(plane.f[row], steps[best], atol=1e-5)
        np.testing.assert_allclose(plane.w[row], normals[:, best], atol=1e-6)


def test_without_labels_the_predictions_are_left(affine):
    f, _, x, y = affine
    np.testing.assert_array_equal(deepfool(f, x), deepfool(f, x, y))
    np.testing.assert_array_equal(deepfool(f, x, (y + 1) % 5), x)  # wrong already


@pytest.mark.parametrize("attack", [deepfool, fab])
def test_models_without_a_usable_gradient_leave_the_input_as_it_is(attack):
    x, y = jnp.array([[0.0, 0.3]]), jnp.array([0])

    def constant(x):
        return jnp.array([[1.0, 0.0]]) + 0 * x

    def steep(x):
        # The slope of the root at 0 is infinite, and 0 times that is NaN.
        return jnp.stack([0.5 + 0 * x[:, 0], 0 * jnp.sqrt(x[:, 0])], axis=1)

    for f in (constant, steep):
        np.testing.assert_array_equal(attack(f, x, y, steps=3), x)


def test_a_stochastic_model_needs_a_key_and_is_attacked(affine):
    f, _, x, y = affine
    noisy = Stochastic(lambda x, key: f(x) + 1e-4 * jax.random.normal(key, (x.shape[0], 5)))
    with pytest.raises(ValueError, match="needs a random key"):
        deepfool(noisy, x, y)
    x_adv = deepfool(noisy, x, y, key=jax.random.key(0), overshoot=0.1)
    assert misclassified(f(x_adv), y).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, r"norm must be one of \['l2', 'linf'\]"),
        ({"overshoot": -0.1}, "overshoot must be >= 0"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"candidates": 1}, "candidates must be >= 2"),
        ({"y": jnp.full(6, 5)}, r"labels must lie in \[0, 5\)"),
        ({"y": jnp.zeros(5, int)}, "y must have one entry per example"),
        ({"logits_fn": lambda x: x[:, 0]}, r"logits must have shape \[B, K\]"),
        ({"x": jnp.full((6, 12), jnp.nan)}, "x must be finite"),
        ({"x": jnp.full((6, 12), 2.0)}, "x must lie within bounds"),
    ],
)
def test_bad_settings_raise(affine, arguments, message):
    f, _, x, y = affine
    given = {"logits_fn": f, "x": x, "y": y} | arguments
    with pytest.raises(ValueError, match=message):
        deepfool(given.pop("logits_fn"), given.pop("x"), given.pop("y"), **given)


@functools.cache
def mnist(count):
    from benchmarks import victim

    params, x, y = victim.load(victim.prepare(quick=False), count)
    return victim.apply_fn, params, jnp.asarray(x), jnp.asarray(y, jnp.int32)


def median(attack, norm, count=100, **settings):
    """(share of success, median distance) on MNIST."""
    apply_fn, params, x, y = mnist(count)
    run = jax.jit(
        lambda params, x, y: attack(lambda x: apply_fn(params, x), x, y, norm=norm, **settings)
    )
    found = judge(lambda x: apply_fn(params, x), x, run(params, x, y), y, norm=norm)
    return float(found.success.mean()), float(jnp.median(found.distance))


@pytest.mark.slow
def test_on_mnist_deepfool_succeeds_and_fab_gets_nearer(spax_data):
    for norm, low, high in (("l2", 0.8, 1.8), ("linf", 0.05, 0.15)):
        success, near = median(deepfool, norm)
        assert success == 1
        assert low < near < high
        success, nearer = median(fab, norm, steps=20)
        assert success == 1
        assert nearer < 0.95 * near
