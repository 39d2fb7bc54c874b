import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from spax import norms
from spax.evaluation import judge
from spax.evasion import carlini_wagner, lbfgs, minimize_lbfgs_box
from spax.losses import hits
from spax.typing import Stochastic
from tests.contracts.cases import QUICK
from tests.evasion.fab_test import shortest

pytestmark = pytest.mark.usefixtures("strict")


def quadratics(rows=6, size=50):
    """Convex quadratics of differing condition: (hessians, slopes), float64."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(rows, size, size))
    curvature = 10.0 ** np.linspace(-3, 0, rows)
    h = a @ a.transpose(0, 2, 1) / size + curvature[:, None, None] * np.eye(size)[None]
    return h, rng.normal(size=(rows, size))


@functools.partial(jax.jit, compiler_options=QUICK)
def solve(h, b, z0, low, high):
    def fun(z):
        return jnp.einsum("bi,bij,bj->b", z, h, z) / 2 - jnp.sum(z * b, axis=1)

    return minimize_lbfgs_box(fun, z0, low, high, steps=100)


def test_quadratics_in_a_box_are_solved_as_by_scipy():
    h, b = quadratics()
    rng = np.random.default_rng(1)
    low, high = -rng.uniform(0, 0.5, b.shape), rng.uniform(0, 0.5, b.shape)
    z0 = rng.uniform(-1, 1, b.shape)  # some of it outside
    given = [jnp.asarray(v, jnp.float32) for v in (h, b, z0, low, high)]
    z, f = solve(*given)
    assert ((z >= given[3]) & (z <= given[4])).all()
    for row in range(len(b)):
        wanted = scipy.optimize.minimize(
            lambda v, row=row: (v @ h[row] @ v / 2 - b[row] @ v, h[row] @ v - b[row]),
            np.zeros(b.shape[1]),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low[row], high[row], strict=True)),
            options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10},
        )
        np.testing.assert_allclose(f[row], wanted.fun, atol=1e-5)
        np.testing.assert_allclose(z[row], wanted.x, atol=5e-3)


def test_a_row_does_not_see_its_neighbours():
    h, b = quadratics(rows=3, size=8)
    h, b = jnp.asarray(h, jnp.float32), jnp.asarray(b, jnp.float32)
    zero, low, high = jnp.zeros_like(b), jnp.full_like(b, -0.2), jnp.full_like(b, 0.3)
    z, f = solve(h, b, zero, low, high)
    alone, value = solve(h[1:2], b[1:2], zero[1:2], low[1:2], high[1:2])
    np.testing.assert_allclose(z[1:2], alone, atol=1e-5)
    np.testing.assert_allclose(f[1:2], value, atol=1e-6)


def test_without_bounds_the_valley_of_rosenbrock_is_followed_to_its_end():
    def rosenbrock(z):
        return (1 - z[:, 0]) ** 2 + 100 * (z[:, 1] - z[:, 0] ** 2) ** 2

    starts = jnp.array([[-1.2, 1.0], [1.0, 1.0], [0.0, 0.0]])
    z, f = minimize_lbfgs_box(rosenbrock, starts, -jnp.inf, jnp.inf, steps=200)
    np.testing.assert_allclose(z, jnp.ones((3, 2)), atol=1e-2)
    assert (f < 1e-5).all()
    # With x1 <= 1/2 the least is at (1/2, 1/4), with value 1/4.
    z, f = minimize_lbfgs_box(rosenbrock, starts, -2.0, jnp.array([0.5, 2.0]), steps=200)
    np.testing.assert_allclose(z, jnp.full((3, 2), jnp.array([0.5, 0.25])), atol=2e-3)
    np.testing.assert_allclose(f, jnp.full(3, 0.25), rtol=1e-4)


def test_values_never_rise_and_nan_is_never_accepted():
    def fun(z):  # NaN to the left of 0, where its slope points
        return jnp.sum(jnp.sqrt(z - 0.1), axis=1)

    z0 = jnp.array([[0.5, 0.5]])
    z, f = minimize_lbfgs_box(fun, z0, -1.0, 1.0, steps=20)
    assert jnp.isfinite(z).all()
    assert f[0] < fun(z0)[0]


run = jax.jit(
    lambda w, x, y, **kw: lbfgs(lambda x: (x - 0.5) @ w, x, y, return_info=True, **kw),
    static_argnames=("steps", "search_steps"),
    compiler_options=QUICK,
)


def test_distances_of_a_linear_model_are_the_least_possible(linear):
    _, w, x, _ = linear
    w, label = w[:, :2], jnp.argmax((x - 0.5) @ w[:, :2], axis=1)
    wanted = 1 - label
    x_adv, info = run(w, x, wanted, steps=60)
    normal = np.asarray(w[:, 1] - w[:, 0], np.float64)
    least = np.array(
        [
            shortest(normal, -normal @ (point - 0.5), -point, 1 - point, "l2")
            for point in np.asarray(x, np.float64)
        ]
    )
    distance = norms.norm(x_adv - x, "l2")
    assert hits((x_adv - 0.5) @ w, wanted).all()
    assert (distance >= least * (1 - 1e-4)).all()
    np.testing.assert_allclose(distance, least, rtol=0.03, atol=2e-3)
    assert ((info.const > 0) & jnp.isfinite(info.const)).all()


def test_the_weight_grows_tenfold_and_is_then_bisected(linear):
    _, w, x, y = linear
    wanted = (y + 1) % 4
    reached = []
    for rounds in (1, 2, 3, 6):
        x_adv, info = run(w, x, wanted, steps=30, search_steps=rounds, initial_weight=0.1)
        hit = hits((x_adv - 0.5) @ w, wanted)
        np.testing.assert_array_equal(hit, jnp.isfinite(info.const))
        np.testing.assert_array_equal((x_adv != x).any(axis=1), hit)  # a failure is the input
        if rounds <= 3:
            powers = np.log10(np.asarray(info.const)[np.asarray(hit)] / 0.1)
            assert (powers <= rounds - 1 + 1e-4).all()
        reached.append(np.where(hit, norms.norm(x_adv - x, "l2"), np.inf))
    assert (reached[3] <= reached[2]).all()
    assert (reached[3] < reached[2]).any()
    assert np.isinf(reached[0]).sum() > np.isinf(reached[3]).sum()


def test_what_hits_already_and_what_cannot_be_hit_are_given_back(linear):
    _, w, x, y = linear
    x_adv, info = run(w, x, y, steps=5, search_steps=2)
    np.testing.assert_array_equal(x_adv, x)
    assert (info.const == 0).all()
    never = w.at[:, 1].set(0).at[:, 0].set(0)
    # Class 0 and 1 tie, and the first of them is the prediction.
    x_adv, info = run(never[:, :2], x, jnp.ones_like(y), steps=5, search_steps=2)
    np.testing.assert_array_equal(x_adv, x)
    assert jnp.isinf(info.const).all()


def test_a_stochastic_model_needs_a_key_and_is_attacked(linear):
    _, w, x, y = linear
    noisy = Stochastic(
        lambda x, key: (x - 0.5) @ w + 1e-3 * jax.random.normal(key, (x.shape[0], 4))
    )
    wanted = (y + 1) % 4
    with pytest.raises(ValueError, match="needs a random key"):
        lbfgs(noisy, x, wanted)
    x_adv = lbfgs(noisy, x, wanted, key=jax.random.key(0), steps=20, search_steps=6)
    assert (x_adv != x).any(axis=1).mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targeted": False}, "lbfgs has a targeted form only"),
        ({"initial_weight": 0.0}, "initial_weight must be > 0"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"history": 0}, "history must be >= 1"),
        ({"search_steps": 0}, "search_steps must be >= 1"),
        ({"y": jnp.full(8, 9)}, r"labels must lie in \[0, 4\)"),
        ({"x": jnp.full((8, 6), 3.0)}, "x must lie within bounds"),
    ],
)
def test_bad_settings_of_the_attack_raise(linear, arguments, message):
    apply_fn, params, x, y = linear
    given = {"x": x, "y": y} | arguments
    with pytest.raises(ValueError, match=message):
        lbfgs(functools.partial(apply_fn, params), given.pop("x"), given.pop("y"), **given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z0": jnp.zeros(3)}, r"z0 must have shape \[B, D\]"),
        ({"low": 2.0}, "high - low must be >= 0"),
        ({"high": jnp.ones(4)}, "high must be a scalar, or of shape"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"history": 0}, "history must be >= 1"),
        ({"fun": lambda z: z}, "fun must give one value a row"),
    ],
)
def test_bad_settings_of_the_minimiser_raise(arguments, message):
    given = {"fun": lambda z: z.sum(1), "z0": jnp.zeros((2, 3)), "low": 0.0, "high": 1.0}
    given |= arguments
    with pytest.raises(ValueError, match=message):
        minimize_lbfgs_box(**given)


@pytest.mark.slow
def test_on_mnist_it_hits_its_targets_as_near_as_carlini_and_wagner(spax_data):
    from benchmarks import victim

    params, x, y = victim.load(victim.prepare(quick=False), 30)
    x, wanted = jnp.asarray(x), jnp.asarray((y + 1) % 10, jnp.int32)
    distances = {}
    for attack, steps in ((lbfgs, 100), (carlini_wagner, 300)):
        run = jax.jit(
            lambda p, x, y, attack=attack, steps=steps: attack(
                lambda x: victim.apply_fn(p, x), x, y, steps=steps, targeted=True
            )
        )
        x_adv = run(params, x, wanted)
        found = judge(
            lambda x: victim.apply_fn(params, x), x, x_adv, wanted, norm="l2", targeted=True
        )
        assert found.success.all()
        distances[attack] = float(found.distance.mean())
    assert distances[lbfgs] <= 1.15 * distances[carlini_wagner]
