"""Per-example clipping: the sum is that of a loop, and no example moves it by more than C."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from spax.dp import Batch, clipped_grad

C = 0.7


def loss_fn(params, example, key):
    x, y = example
    hidden = jnp.tanh(x @ params["w"])
    return jnp.sum((hidden @ params["v"] - y) ** 2), None


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {"w": draw(4, 3), "v": draw(3)}
    mask = jnp.asarray(rng.uniform(size=11) < 0.7)
    return params, Batch((draw(11, 4), draw(11)), mask)


def by_a_loop(params, batch, bound):
    """One gradient at a time, in 64 bits after it."""
    total = jax.tree.map(lambda p: np.zeros(p.shape), params)
    for i in np.flatnonzero(batch.mask):
        example = jax.tree.map(lambda v, i=i: v[i], batch.data)
        grad = jax.grad(lambda p, e=example: loss_fn(p, e, None)[0])(params)
        grad = jax.tree.map(lambda g: np.asarray(g, np.float64), grad)
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grad)))
        scale = min(1.0, bound / norm)
        total = jax.tree.map(lambda t, g, scale=scale: t + scale * g, total, grad)
    return total


@pytest.mark.parametrize("bound", [0.05, C, 100.0])
def test_it_is_the_sum_of_a_loop(problem, bound):
    params, batch = problem
    found, info = jax.jit(clipped_grad(loss_fn, l2_clip_norm=bound))(params, batch)
    for a, b in zip(*map(jax.tree.leaves, (found, by_a_loop(params, batch, bound))), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-5, atol=1e-6)
    assert int(info.size) == int(batch.mask.sum())
    assert int(info.nonfinite) == 0
    assert float(info.clipped) == {0.05: 1.0, 100.0: 0.0}.get(bound, float(info.clipped))


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 10, 11, 50])
def test_chunks_do_not_change_the_sum(problem, chunk_size):
    params, batch = problem
    whole, whole_info = jax.jit(clipped_grad(loss_fn, l2_clip_norm=C))(params, batch)
    cutting = clipped_grad(loss_fn, l2_clip_norm=C, chunk_size=chunk_size)
    cut, cut_info = jax.jit(cutting)(params, batch)
    for a, b in zip(*map(jax.tree.leaves, ((cut, cut_info), (whole, whole_info))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_every_shard_clips_its_own_rows(chunk_size, check_vma):
    """Row i of one shard must not be added to row i of another before it is clipped."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.zeros((12, 3)).at[0].set(jnp.array([1.0, 0, 0])).at[3].set(jnp.array([-2.0, 0, 0]))
    fn = clipped_grad(lambda w, x, key: (w @ x, None), l2_clip_norm=1.0, chunk_size=chunk_size)
    local = jax.shard_map(
        lambda w, batch: fn(w, batch)[0][None],
        mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=check_vma,
    )  # fmt: skip
    sums = jax.jit(local)(jnp.zeros(3), Batch(x, jnp.ones(12, bool)))
    np.testing.assert_allclose(sums[:, 0], [1, -1, 0, 0], rtol=1e-4)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_an_examples_draws_do_not_depend_on_chunks_or_neighbours(chunk_size):
    def drawn(w, x, key):
        return w * x * jax.random.normal(key), None

    clipped = clipped_grad(drawn, l2_clip_norm=100.0, chunk_size=chunk_size)
    fn = jax.jit(lambda w, batch, key: clipped(w, batch, key=key))
    key, x = jax.random.key(3), jnp.ones(7)
    total = 0.0
    for i in range(7):
        alone, _ = fn(jnp.float32(1), Batch(x, jnp.arange(7) == i), key)
        total += float(alone)
    together, _ = fn(jnp.float32(1), Batch(x, jnp.ones(7, bool)), key)
    assert float(together) == pytest.approx(total, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    scales=st.lists(st.floats(-30, 30), min_size=3, max_size=3),
    bound=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_one_example_never_moves_the_sum_by_more_than_the_bound(scales, bound, seed):
    """At any scale, several thousand parameters, measured in 64 bits."""
    g = np.random.default_rng(seed).normal(size=(3, 2000)).astype(np.float32)
    g *= (10.0 ** np.array(scales)).astype(np.float32)[:, None]
    for i in range(3):
        total, _ = _linear(jnp.asarray(g), jnp.arange(3) == i, jnp.float32(bound))
        moved = np.sqrt((np.asarray(total, np.float64) ** 2).sum())
        assert moved <= float(np.float32(bound))
        norm = np.sqrt((g[i].astype(np.float64) ** 2).sum())
        assert moved >= min(norm, bound) * (1 - 1e-4) - 1e-37  # and is not needlessly short


@pytest.mark.parametrize("top", [1e-36, 1e-20, 1.0, 5e37, 1e38, 1.7e38, 3.4e38])
@pytest.mark.parametrize("bound", [1.0, 1e-10, 1e-35, 1e10])
def test_gradients_at_the_ends_of_float32_are_clipped(top, bound):
    """Where a reciprocal or a norm leaves the range of normal numbers."""
    g = np.array([[1.0, -0.5, 0.25, 1.0]], np.float32) * np.float32(top)
    total, info = _linear(jnp.asarray(g), jnp.ones(1, bool), jnp.float32(bound))
    norm = np.linalg.norm(g.astype(np.float64))
    moved = np.linalg.norm(np.asarray(total, np.float64))
    assert moved <= bound
    if bound > 1e-30:
        assert moved >= min(norm, bound) * (1 - 1e-4)
    assert (int(info.nonfinite), bool(info.clipped)) == (0, norm > bound)


@pytest.mark.parametrize("chunk_size", [None, 2, 2048])
def test_rounding_a_long_sum_does_not_break_the_bound(chunk_size):
    """A float32 sum of 4096 rows of length 1.001 moves by steps of 2^-11."""
    rows, bound = 4096, 1.001
    fn = clipped_grad(lambda w, x, key: (w * x, None), l2_clip_norm=bound, chunk_size=chunk_size)
    x = jnp.asarray(np.random.default_rng(0).uniform(2, 3, rows), jnp.float32)
    mask = jnp.ones(rows, bool)
    run = jax.jit(lambda mask: fn(jnp.float32(0), Batch(x, mask))[0])
    whole = float(run(mask))
    moved = [whole - float(run(mask.at[i].set(False))) for i in range(0, rows, 97)]
    assert 0.99 < min(moved) <= max(moved) <= float(np.float32(bound))


@jax.jit
def _linear(g, mask, bound):
    fn = clipped_grad(lambda w, x, key: (w @ x, None), l2_clip_norm=bound)
    return fn(jnp.zeros(g.shape[1]), Batch(g, mask))


def test_low_precision_parameters_keep_the_bound():
    g = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5000)), jnp.bfloat16)
    fn = clipped_grad(lambda w, x, key: (w @ x, None), l2_clip_norm=C)
    total, _ = fn(jnp.zeros(5000, jnp.bfloat16), Batch(g, jnp.ones(1, bool)))
    assert total.dtype == jnp.float32
    assert np.sqrt((np.asarray(total, np.float64) ** 2).sum()) <= C


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_what_is_masked_or_not_finite_counts_for_nothing(problem, bad, chunk_size):
    params, batch = problem
    fn = jax.jit(clipped_grad(loss_fn, l2_clip_norm=C, chunk_size=chunk_size))
    clean, _ = fn(params, batch)
    masked = jnp.where(batch.mask[:, None], batch.data[0], bad)
    found, info = fn(params, Batch((masked, batch.data[1]), batch.mask))
    jax.tree.map(np.testing.assert_array_equal, found, clean)
    assert np.isfinite(info.loss)

    first = int(np.flatnonzero(batch.mask)[0])
    poisoned = Batch((batch.data[0].at[first].set(bad), batch.data[1]), batch.mask)
    without, _ = fn(params, Batch(batch.data, batch.mask.at[first].set(False)))
    found, info = fn(params, poisoned)
    if info.nonfinite:  # tanh of an infinite input is finite, and so may its gradient be
        jax.tree.map(np.testing.assert_array_equal, found, without)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    if np.isnan(bad):
        assert int(info.nonfinite) == 1


def test_an_empty_batch_gives_zero(problem):
    params, batch = problem
    total, info = clipped_grad(loss_fn, l2_clip_norm=C)(
        params, Batch(batch.data, jnp.zeros(11, bool))
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(total))
    assert (float(info.loss), float(info.clipped), float(info.size)) == (0, 0, 0)


def test_the_diagnostics_are_those_of_the_batch():
    x = jnp.array([[3.0, 4.0], [0.3, 0.4], [6.0, 8.0], [9.0, 9.0]])
    mask = jnp.array([True, True, True, False])
    fn = clipped_grad(lambda w, x, key: (w @ x, None), l2_clip_norm=5.0)
    _, info = fn(jnp.ones(2), Batch(x, mask))
    assert float(info.loss) == pytest.approx((7 + 0.7 + 14) / 3)
    assert float(info.clipped) == pytest.approx(1 / 3)
    assert int(info.size) == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: clipped_grad(loss_fn, l2_clip_norm=0.0), ValueError, "l2_clip_norm"),
        (lambda b: clipped_grad(loss_fn, l2_clip_norm=1.0)({}, b), ValueError, "at least one"),
        (lambda b: clipped_grad(loss_fn, l2_clip_norm=-1.0), ValueError, "l2_clip_norm"),
        (lambda b: clipped_grad(loss_fn, l2_clip_norm=jnp.ones(2)), ValueError, "scalar"),
        (lambda b: clipped_grad(loss_fn, l2_clip_norm=1.0, chunk_size=0), ValueError, "chunk_size"),
        (
            lambda b: clipped_grad(lambda p, e, k: 1.0, l2_clip_norm=1.0)(jnp.ones(2), b),
            TypeError,
            "pair",
        ),
        (
            lambda b: clipped_grad(loss_fn, l2_clip_norm=1.0)(None, Batch(b.data, b.mask[:, None])),
            ValueError,
            "one bool a row",
        ),
        (
            lambda b: clipped_grad(loss_fn, l2_clip_norm=1.0)(None, Batch(b.data, b.mask * 1.0)),
            ValueError,
            "float32",
        ),
        (
            lambda b: clipped_grad(loss_fn, l2_clip_norm=1.0)(
                jnp.ones(2), Batch(b.data, b.mask[:5])
            ),
            ValueError,
            "5 rows",
        ),
    ],
)
def test_misuse_is_refused(problem, call, error, message):
    with pytest.raises(error, match=message):
        call(problem[1])
