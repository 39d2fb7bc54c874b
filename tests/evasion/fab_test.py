import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from spax import norms
from spax.evasion import fab
from spax.evasion.fab import project_on_plane
from spax.losses import misclassified
from spax.typing import Stochastic
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


def shortest(w, c, low, high, norm):
    """The least norm of a d with w . d = c in the box, by SciPy's linear and quadratic solvers."""
    size = len(w)
    if norm == "l2":
        solved = scipy.optimize.minimize(
            lambda d: d @ d,
            np.zeros(size),
            jac=lambda d: 2 * d,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda d: w @ d - c, "jac": lambda d: w},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return np.sqrt(solved.fun)
    eye, one = np.eye(size), np.ones((size, 1))
    if norm == "linf":  # the least t with -t <= d <= t
        cost = np.r_[np.zeros(size), 1]
        less = {"A_ub": np.block([[eye, -one], [-eye, -one]]), "b_ub": np.zeros(2 * size)}
        equal = {"A_eq": np.r_[w, 0][None], "b_eq": [c]}
        bounds = [*zip(low, high, strict=True), (0, None)]
    else:  # d is the difference of two parts that are not negative
        cost, less = np.ones(2 * size), {}
        equal = {"A_eq": np.r_[w, -w][None], "b_eq": [c]}
        bounds = [(0, h) for h in high] + [(0, -v) for v in low]
    return scipy.optimize.linprog(cost, **less, **equal, bounds=bounds).fun


def problems(rows=20, size=9):
    """Planes that the box reaches, at points inside and in the corners of [0, 1]."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(rows, size)) * 10.0 ** rng.integers(-12, 12, size=(rows, 1))
    w[0, :4] = 0
    w[1, 2:5] = w[1, 2]  # ties
    point = rng.uniform(size=(rows, size))
    point[2:6] = np.round(point[2:6])
    low, high = -point, 1 - point
    c = np.sum(w * rng.uniform(low, high), axis=1)
    return w, c, low, high


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projections_are_those_of_linear_and_quadratic_programs(norm):
    w, c, low, high = problems()
    given = (jnp.asarray(v, jnp.float32) for v in (w, c, low, high))
    d = np.asarray(project_on_plane(*given, norm), np.float64)
    scale = np.abs(w).max(axis=1)
    np.testing.assert_allclose(np.sum(w * d, axis=1) / scale, c / scale, atol=3e-6)
    assert ((d >= low - 1e-6) & (d <= high + 1e-6)).all()
    wanted = [
        shortest(row / top, value / top, *ends, norm)
        for row, value, top, *ends in zip(w, c, scale, low, high, strict=True)
    ]
    np.testing.assert_allclose(norms.norm(jnp.asarray(d, jnp.float32), norm), wanted, atol=2e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plane_out_of_reach_is_approached_as_far_as_the_box_goes(norm):
    w, c = jnp.array([[1.0, -2.0, 0.0]]), jnp.array([100.0])
    low, high = jnp.full((1, 3), -0.25), jnp.full((1, 3), 0.5)
    d = project_on_plane(w, c, low, high, norm)
    np.testing.assert_array_equal(d, [[0.5, -0.25, 0.0]])
    flat = project_on_plane(jnp.zeros((1, 3)), c, low, high, norm)
    np.testing.assert_array_equal(flat, jnp.zeros((1, 3)))


run = jax.jit(
    lambda w, x, y, **kw: fab(lambda x: (x - 0.5) @ w, x, y, **kw),
    static_argnames=("norm", "steps", "targets"),
    compiler_options=QUICK,
)
towards = jax.jit(
    lambda w, x, y, targets: fab(
        lambda x: (x - 0.5) @ w, x, y, norm="l2", steps=10, targets=targets
    ),
    compiler_options=QUICK,
)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_of_a_linear_model_are_the_least_possible(linear, norm):
    _, w, x, y = linear
    x_adv = run(w, x, y, norm=norm, steps=10)
    weights, points = np.asarray(w, np.float64), np.asarray(x, np.float64)
    wanted = []
    for point, label in zip(points, np.asarray(y), strict=True):
        reach = []
        for k in set(range(4)) - {int(label)}:
            normal = weights[:, k] - weights[:, label]
            best = np.where(normal > 0, 1 - point, -point)
            missing = -normal @ (point - 0.5)
            if normal @ best >= missing:  # a class that the box does not reach is no way out
                reach.append(shortest(normal, missing, -point, 1 - point, norm))
        wanted.append(min(reach))
    assert misclassified((x_adv - 0.5) @ w, y).all()
    distance = norms.norm(x_adv - x, norm)
    assert (distance >= np.array(wanted) - 1e-5).all()
    np.testing.assert_allclose(distance, wanted, rtol=1e-3)


def test_a_target_at_a_time_finds_what_all_at_once_find_on_a_linear_model(linear):
    _, w, x, y = linear
    together = norms.norm(run(w, x, y, norm="l2", steps=10) - x, "l2")
    each = run(w, x, y, norm="l2", steps=10, targets=3)
    np.testing.assert_allclose(norms.norm(each - x, "l2"), together, rtol=1e-3)
    likeliest = run(w, x, y, norm="l2", steps=10, targets=1)
    assert (norms.norm(likeliest - x, "l2") >= together * 0.999).all()
    second = jnp.argsort((x - 0.5) @ w, axis=1)[:, -2]
    named = towards(w, x, y, second)
    np.testing.assert_allclose(named, likeliest, atol=1e-5)
    # The label itself is no way to leave the label.
    np.testing.assert_array_equal(towards(w, x, y, y), x)


def test_an_example_does_not_see_its_neighbours(linear):
    _, w, x, y = linear
    together = run(w, x, y, norm="l1", steps=10)
    np.testing.assert_allclose(
        run(w, x[2:3], y[2:3], norm="l1", steps=10), together[2:3], atol=1e-5
    )


def test_no_radius_gives_back_the_input_and_a_small_one_only_what_is_within(linear):
    _, w, x, y = linear
    free = norms.norm(run(w, x, y, steps=10) - x, "linf")
    np.testing.assert_array_equal(run(w, x, y, steps=10, eps=jnp.float32(0)), x)
    radius = jnp.median(free)
    found = run(w, x, y, steps=10, eps=radius)
    moved = (found != x).any(axis=1)
    np.testing.assert_array_equal(moved, free <= radius)
    assert (norms.norm(found - x, "linf") <= radius).all()
    assert misclassified((found - 0.5) @ w, y)[moved].all()


def test_what_is_wrong_already_stays(linear):
    _, w, x, y = linear
    np.testing.assert_array_equal(run(w, x, (y + 1) % 4, steps=10), x)


def test_scaling_the_logits_changes_nothing(linear):
    _, w, x, y = linear
    once = run(w, x, y, norm="l2", steps=10)
    np.testing.assert_array_equal(run(w * 2.0**20, x, y, norm="l2", steps=10), once)
    np.testing.assert_array_equal(run(w * 2.0**-20, x, y, norm="l2", steps=10), once)


@pytest.fixture(scope="module")
def curved():
    """A network whose boundaries bend: (f, x, y)."""
    rng = np.random.default_rng(3)
    v, u = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 24), (24, 3)))
    x = jnp.asarray(rng.uniform(size=(12, 8)), jnp.float32)

    def f(x):
        return jnp.sin((x - 0.5) @ v) @ u

    return f, x, jnp.argmax(f(x), axis=1)


def test_the_closing_search_and_restarts_only_ever_get_nearer(curved):
    f, x, y = curved

    def attack(**settings):
        run = jax.jit(
            lambda x, y: fab(f, x, y, norm="l2", steps=5, **settings), compiler_options=QUICK
        )
        return run(x, y)

    open_end = norms.norm(attack(final_steps=0) - x, "l2")
    closed = norms.norm(attack() - x, "l2")
    assert (closed <= open_end).all()
    assert (closed < open_end).any()
    again = norms.norm(attack(restarts=3, key=KEY, final_steps=0) - x, "l2")
    assert (again <= open_end).all()
    assert (again < open_end).any()


def test_a_stochastic_model_needs_a_key_and_is_attacked(linear):
    _, w, x, y = linear
    noisy = Stochastic(
        lambda x, key: (x - 0.5) @ w + 1e-3 * jax.random.normal(key, (x.shape[0], 4))
    )
    with pytest.raises(ValueError, match="needs a random key"):
        fab(noisy, x, y)
    x_adv = fab(noisy, x, y, key=KEY, steps=10)
    assert (x_adv != x).any(axis=1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l0"}, r"norm must be one of \['l1', 'l2', 'linf'\]"),
        ({"eps": -1.0}, "eps must be >= 0"),
        ({"alpha_max": 1.5}, "alpha_max must be >= 0 and <= 1"),
        ({"eta": 0.9}, "eta must be >= 1"),
        ({"beta": 1.0}, "beta must be >= 0 and < 1"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"restarts": 0}, "restarts must be >= 1"),
        ({"restarts": 2}, "restarts=2 needs a random key"),
        ({"final_steps": -1}, "final_steps must be >= 0"),
        ({"targets": 0}, "targets must be >= 1"),
        ({"targets": 4}, "targets must be below the number of classes, 4"),
        ({"targets": jnp.full(8, 4)}, r"labels must lie in \[0, 4\)"),
        ({"targets": jnp.zeros(7, int)}, r"targets must be an int, or classes \[B\]"),
        ({"y": jnp.full(8, 9)}, r"labels must lie in \[0, 4\)"),
        ({"x": jnp.full((8, 6), jnp.nan)}, "x must be finite"),
    ],
)
def test_bad_settings_raise(linear, arguments, message):
    apply_fn, params, x, y = linear
    given = {"x": x, "y": y} | arguments
    with pytest.raises(ValueError, match=message):
        fab(functools.partial(apply_fn, params), given.pop("x"), given.pop("y"), **given)
