import itertools
from fractions import Fraction

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from spax import norms

pytestmark = pytest.mark.usefixtures("strict")

SIZE = 6
ENTRIES = st.floats(-3, 3, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
project = jax.jit(norms.project, static_argnames="norm")


def _exact_l1(v, low, high, radius):
    """The projection by SciPy's root finder, in float64, from the optimality conditions."""
    size, room = np.abs(v), np.where(v >= 0, high, -low)

    def total(lam):
        return np.clip(size - lam, 0, room).sum()

    if total(0.0) <= radius:
        lam = 0.0
    else:
        lam = scipy.optimize.brentq(lambda lam: total(lam) - radius, 0, size.max(), xtol=1e-14)
    return np.sign(v) * np.clip(size - lam, 0, room)


def _exact_l1_by_pieces(v, room, radius):
    """The same from its breakpoints, in exact fractions: a root finder has no relative error."""
    size, room, radius = (
        [Fraction(float(e)) for e in np.atleast_1d(a)] for a in (np.abs(v), room, radius)
    )

    def kept(lam):
        return [min(max(s - lam, 0), r) for s, r in zip(size, room, strict=True)]

    points = sorted(
        {Fraction(0), *size, *(s - r for s, r in zip(size, room, strict=True) if s > r)}
    )
    lam = points[0]
    if sum(kept(lam)) > radius[0]:
        below, above = next(
            (a, b) for a, b in itertools.pairwise(points) if sum(kept(b)) <= radius[0]
        )
        high, low = sum(kept(below)), sum(kept(above))
        lam = below + (high - radius[0]) / (high - low) * (above - below)
    return np.sign(v) * np.array([float(k) for k in kept(lam)])


@hypothesis.given(
    v=hnp.arrays(np.float32, (3, SIZE), elements=ENTRIES),
    x=hnp.arrays(np.float32, (3, SIZE), elements=st.floats(0, 1, width=32)),
    eps=st.sampled_from([0.0, 0.03, 0.5, 1.0, 2.5, 30.0]),
    norm=st.sampled_from(["linf", "l2", "l1", "l0"]),
)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_projections_are_feasible_and_idempotent(v, x, eps, norm):
    once = project(v, x, eps, norm, (0.0, 1.0))
    assert (norms.norm(once, norm) <= eps * (1 + 1e-6)).all()
    z = norms.displace(jnp.asarray(x), once, (0.0, 1.0))
    assert ((z >= 0) & (z <= 1)).all()
    np.testing.assert_allclose(project(once, x, eps, norm, (0.0, 1.0)), once, atol=2e-6)


@hypothesis.given(
    v=hnp.arrays(np.float32, (1, SIZE), elements=ENTRIES),
    x=hnp.arrays(np.float32, (1, SIZE), elements=st.floats(0, 1, width=32)),
    eps=st.sampled_from([0.03, 0.5, 1.0, 2.5]),
)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_the_l1_projection_is_exact(v, x, eps):
    ours = project(v, x, eps, "l1", (0.0, 1.0))[0]
    wide, center = v[0].astype(np.float64), x[0].astype(np.float64)
    np.testing.assert_allclose(ours, _exact_l1(wide, -center, 1 - center, eps), atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "eps"),
    [(1e-6, 1.06e-4), (1.0, 1.06e-4), (1.0, 2.0), (1e3, 1.06e-4), (1e30, 1.06e-4)],
)
def test_the_l1_projection_is_exact_at_any_scale(scale, eps):
    rng = np.random.default_rng(2)
    v = rng.normal(size=(40, 8)) * 10 ** rng.uniform(-3, 1, size=(40, 8)) * scale
    v[::2, 1:3] = v[::2, :1] = 5 * scale  # ties at the top, among others
    v, x = v.astype(np.float32), rng.uniform(size=(40, 8)).astype(np.float32)
    ours = project(v, x, eps, "l1", (0.0, 1.0))
    for got, row, center in zip(np.asarray(ours), v.astype(np.float64), x, strict=True):
        room = np.where(row >= 0, np.float32(1) - center, center).astype(np.float64)
        wanted = _exact_l1_by_pieces(row, room, eps)
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5 * min(eps, scale))


def test_a_tie_far_beyond_the_radius_is_shared():
    v = jnp.array([[-1396.8, -1396.8, -1396.8, 300.0, 30.0]])
    got = project(v, jnp.full((1, 5), 0.5), 1.05e-4, "l1", (0.0, 1.0))
    np.testing.assert_allclose(got, [[-3.5e-5] * 3 + [0.0] * 2], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 4.5e37, 1.6e38])
def test_l2_survives_any_scale(scale, dtype):
    v = (jnp.array([[1.0, 2.0, -1.0]]) * scale).astype(dtype)
    unit = np.array([[1.0, 2.0, -1.0]]) / np.sqrt(6)
    rtol = 2 * float(jnp.finfo(dtype).eps) + 1e-5
    direction = jax.jit(norms.steepest, static_argnames="norm")(v, "l2")
    np.testing.assert_allclose(np.float64(direction), unit, rtol=rtol)
    got = project(v, jnp.full((1, 3), 0.5, dtype), min(0.1, scale), "l2", (0.0, 1.0))
    np.testing.assert_allclose(np.float64(got), min(0.1, scale) * unit, rtol=3 * rtol)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l1", 0.6)])
def test_projections_solve_the_quadratic_program(norm, eps):
    rng = np.random.default_rng(1)
    v, x = rng.normal(size=(1, 20)), rng.uniform(size=(1, 20))
    # d = p - q with p, q >= 0 makes the l1 constraint linear.
    if norm == "l1":
        result = scipy.optimize.minimize(
            lambda pq: np.sum((pq[:20] - pq[20:] - v[0]) ** 2),
            np.zeros(40),
            jac=lambda pq: np.kron([2, -2], pq[:20] - pq[20:] - v[0]),
            bounds=[(0, h) for h in (1 - x[0])] + [(0, h) for h in x[0]],
            constraints={"type": "ineq", "fun": lambda pq: eps - pq.sum()},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        wanted = result.x[:20] - result.x[20:]
    else:
        wanted = np.clip(v[0], np.maximum(-eps, -x[0]), np.minimum(eps, 1 - x[0]))
    ours = norms.project(jnp.float32(v), jnp.float32(x), eps, norm, (0.0, 1.0))[0]
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_the_l0_projection_keeps_the_entries_that_cost_most():
    v = jnp.array([[0.9, -0.5, 0.1, 5.0]])
    x = jnp.array([[0.0, 0.6, 0.5, 0.9]])  # the last entry has little room
    kept = norms.project(v, x, 2, "l0", (0.0, 1.0))
    # gain: 0.81, 0.25, 0.01, 25 - 24.01 = 0.99
    np.testing.assert_allclose(kept, [[0.9, 0.0, 0.0, 0.1]], atol=1e-6)


def test_the_l2_projection_scales_then_clips():
    v, x = jnp.array([[3.0, 4.0]]), jnp.array([[0.5, 0.9]])
    np.testing.assert_allclose(norms.project(v, x, 0.5, "l2", (0.0, 1.0)), [[0.3, 0.1]], atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_rounding_leaves_the_ball(norm, dtype):
    key = jax.random.key(4)
    x = jax.random.uniform(key, (50, 30)).astype(dtype)
    delta = jax.random.normal(key, x.shape, dtype) * 3
    for eps in (8 / 255, 0.1, 0.3):
        z = norms.displace(x, norms.project(delta, x, eps, norm, (0.0, 1.0)), (0.0, 1.0))
        moved = norms.norm(z.astype(jnp.float32) - x.astype(jnp.float32), norm)
        assert (moved <= eps).all()
        assert z.dtype == dtype


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_radius_and_bounds_may_differ_by_example_and_by_entry(norm):
    x = jnp.full((2, 3), 0.5)
    bounds = (0.0, jnp.array([1.0, 0.6, 1.0]))
    delta = norms.project(jnp.full((2, 3), 9.0), x, jnp.array([0.0, 0.3]), norm, bounds)
    assert not delta[0].any()
    assert delta[1, 1] <= 0.1 + 1e-6
    assert norms.norm(delta, norm)[1] <= 0.3


def test_a_negative_radius_raises_or_means_zero():
    x = jnp.full((1, 3), 0.5)
    with pytest.raises(ValueError, match=r"eps must be >= 0 \(got eps=-1\)"):
        norms.project(x, x, -1, "l2", (0.0, 1.0))
    assert not project(x, x, -1.0, "l2", (0.0, 1.0)).any()


@pytest.mark.parametrize("call", [norms.norm, lambda x, n: norms.steepest(x, n)])
def test_unknown_norms_raise(call):
    with pytest.raises(ValueError, match=r"norm must be one of .* \(got norm='l3'\)"):
        call(jnp.ones((1, 2)), "l3")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steepest_attains_the_dual_norm(norm):
    g = jax.random.normal(jax.random.key(5), (10, 8))
    direction = norms.steepest(g, norm)
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    np.testing.assert_allclose(norms.norm(direction, norm), np.ones(10), rtol=1e-5)
    np.testing.assert_allclose((direction * g).sum(1), norms.norm(g, dual), rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [1e-36, 1.0, 1e36])
def test_steepest_survives_any_scale(norm, scale):
    g = jnp.array([[1.0, -2.0, 0.5]]) * jnp.float32(scale)
    np.testing.assert_allclose(
        norms.steepest(g, norm), norms.steepest(g / jnp.float32(scale), norm), rtol=1e-5
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steepest_of_zero_or_nan_is_zero(norm):
    g = jnp.array([[0.0, 0.0], [jnp.nan, jnp.inf]])
    assert not norms.steepest(g, norm).any()


def test_the_sparse_step_skips_blocked_entries():
    g = jnp.array([[5.0, -3.0, 2.0, 1.0]])
    blocked = jnp.array([[True, False, False, False]])
    out = norms.steepest(g, "l1", blocked=blocked, share=0.5)
    np.testing.assert_allclose(out, [[0.0, -0.5, 0.5, 0.0]])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_samples_are_uniform_in_the_ball(norm):
    # The radius of a uniform point in D dimensions has the distribution r^D.
    x = jnp.zeros((4000, 3))
    radius = norms.norm(norms.sample(jax.random.key(6), x, 0.5, norm), norm) / jnp.float32(0.5)
    assert scipy.stats.kstest(np.asarray(radius) ** 3, "uniform").pvalue > 1e-3
    signs = norms.sample(jax.random.key(6), x, 0.5, norm) > 0
    assert abs(signs.mean() - 0.5) < 0.02


def test_a_sample_ignores_the_size_of_the_batch():
    key = jax.random.key(7)
    few = norms.sample(key, jnp.zeros((2, 4)), 0.1, "l2")
    many = norms.sample(key, jnp.zeros((9, 4)), 0.1, "l2")
    np.testing.assert_allclose(few, many[:2], rtol=1e-6)


def test_norms_agree_with_numpy():
    v = np.random.default_rng(8).normal(size=(4, 3, 2)).astype(np.float32)
    flat = v.reshape(4, -1)
    for name, p in (("linf", np.inf), ("l2", 2), ("l1", 1), ("l0", 0)):
        np.testing.assert_allclose(
            norms.norm(jnp.asarray(v), name), np.linalg.norm(flat, p, axis=1), rtol=1e-5
        )
