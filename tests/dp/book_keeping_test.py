"""Norms and clipped sums without per-example gradients are those of per-example gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

from spax import dp
from spax.dp import Batch, clipped_grad, explain_clipping, per_example_norms

ROWS = 4


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def reference(loss, params, data):
    """Per-example gradients in 64 bits, with their norms."""
    grads = jax.jit(jax.vmap(jax.grad(lambda p, e: loss(p, e, None)[0]), (None, 0)))(params, data)
    grads = jax.tree.map(lambda g: np.asarray(g.astype(jnp.float32), np.float64), grads)
    squares = [(g.reshape(ROWS, -1) ** 2).sum(1) for g in jax.tree.leaves(grads)]
    return grads, np.sqrt(np.sum(squares, axis=0))


def check(loss, params, data, tolerance=1e-4):
    """The norms and the sum at the median norm, in one compilation; returns the explanation."""
    grads, norms = reference(loss, params, data)
    batch = Batch(data, jnp.ones(ROWS, bool))
    bound = float(np.median(norms))

    @jax.jit
    def run(params, batch):
        total, info = clipped_grad(loss, l2_clip_norm=bound)(params, batch)
        return per_example_norms(loss, params, batch), total, info

    found, total, info = run(params, batch)
    np.testing.assert_allclose(found, norms, rtol=tolerance)
    scales = np.minimum(1, bound / norms)
    for name, leaf in jax.tree_util.tree_leaves_with_path(grads):
        expected = np.tensordot(scales, leaf, 1)
        ours = dict(jax.tree_util.tree_leaves_with_path(total))[name]
        atol = 10 * tolerance * np.abs(expected).max() + 1e-12
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol, err_msg=str(name))
    assert float(info.clipped) == pytest.approx(np.mean(norms > bound), abs=0.3)
    return explain_clipping(loss, params, batch)


def rule_of(table, name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"['{name}'")]
    return line


def dense(positions):
    params = {"w": draw(0, 6, 8), "b": draw(1, 1, 8), "v": draw(2, 8, 3)}

    def loss(p, example, key):
        x, y = example
        return jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]).mean(0) * y), None

    return loss, params, (draw(3, ROWS, positions, 6), draw(4, ROWS, 3))


@pytest.mark.parametrize(("positions", "rule"), [(1, "Gram"), (3, "Gram"), (30, "gradient")])
def test_dense_layers(positions, rule):
    """By the Gram matrix where that is cheaper, by the gradient where not."""
    table = check(*dense(positions))
    assert rule in table
    assert "vmap" in rule_of(table, "b")


def conv(strides, padding, lhs_dilation, rhs_dilation, groups, layout, kernel):
    def loss(p, example, key):
        x, y = example
        numbers = (layout, "HWIO" if layout == "NHWC" else "OIHW", layout)
        h = lax.conv_general_dilated(
            x[None], p["k"], strides, padding, lhs_dilation, rhs_dilation, numbers, groups
        )
        return jnp.sum(jnp.tanh(h)) * y, None

    image = (9, 8, 4) if layout == "NHWC" else (4, 9, 8)
    return loss, {"k": draw(5, *kernel)}, (draw(6, ROWS, *image), draw(7, ROWS))


CONVOLUTIONS = {
    "plain": ((1, 1), "SAME", None, None, 1, "NHWC", (3, 2, 4, 6)),
    "strided": ((2, 3), "VALID", None, None, 1, "NHWC", (3, 2, 4, 6)),
    "grouped and dilated": ((1, 2), ((2, 1), (0, 3)), None, (2, 1), 2, "NHWC", (3, 2, 2, 6)),
    "transposed": ((1, 1), ((1, 2), (2, 2)), (2, 1), None, 1, "NHWC", (3, 2, 4, 6)),
    "depthwise": ((1, 1), "SAME", None, None, 4, "NHWC", (3, 2, 1, 8)),
    "channels first": ((2, 1), "SAME", None, None, 2, "NCHW", (6, 2, 3, 2)),
    "negative padding": ((1, 1), ((-1, 2), (0, -1)), None, None, 1, "NHWC", (3, 2, 4, 6)),
    "few positions": ((5, 5), "VALID", None, None, 2, "NHWC", (4, 3, 2, 64)),
}


@pytest.mark.parametrize(
    "name",
    [
        "grouped and dilated",
        "few positions",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in CONVOLUTIONS
            if name not in ("grouped and dilated", "few positions")
        ),
    ],
)
def test_convolutions_of_every_kind(name):
    table = check(*conv(*CONVOLUTIONS[name]))
    assert ("Gram" if name == "few positions" else "gradient") in rule_of(table, "k").split(
        "positions"
    )[0]


def test_rows_of_a_table_that_are_looked_up_twice_add_up():
    def loss(p, example, key):
        ids, y = example
        return jnp.sum(jnp.tanh(p["t"][ids] @ p["w"]).mean(0) * y), None

    ids = jnp.array([[0, 0, 0, 1], [1, 2, 3, 4], [-1, 6, 6, 2], [5, 5, 4, 4]])
    table = check(loss, {"t": draw(0, 7, 5), "w": draw(1, 5, 3)}, (ids, draw(2, ROWS, 3)))
    assert "lookup" in rule_of(table, "t")


def test_ids_outside_a_table_have_no_gradient():
    def loss(p, example, key):
        ids, y = example
        rows = jnp.take(p["t"], ids, axis=0, mode="fill", fill_value=0.5)
        near = jnp.take(p["u"], ids, axis=1, mode="clip")
        return jnp.sum(jnp.tanh(rows.T * y) @ near.T), None

    ids = jnp.array([[0, 9], [8, 9], [2, 2], [8, 8]])
    check(loss, {"t": draw(0, 7, 5), "u": draw(1, 3, 7)}, (ids, draw(2, ROWS)))


def test_tied_weights_are_added_before_they_are_measured():
    def loss(p, example, key):
        ids, y = example
        return jnp.sum(jax.nn.logsumexp(jnp.tanh(p["t"][ids]) @ p["t"].T, axis=-1) * y), None

    ids = jnp.array([[0, 1], [2, 2], [3, 4], [5, 6]])
    table = check(loss, {"t": draw(0, 7, 5)}, (ids, draw(1, ROWS)))
    assert "used 2 times" in table


def recurrent(p, example, key):
    x, y = example

    def step(h, v):
        h = jnp.tanh(v @ p["w"] + h @ p["u"] + p["b"])
        return h, h @ p["o"]

    h, out = lax.scan(step, jnp.tanh(p["h"]), x, reverse=True)
    return jnp.sum(h * y) + jnp.sum(out**2), None


def test_recurrent_steps():
    """Weights that every step of a scan shares: steps are positions."""
    params = {"w": draw(0, 6, 8), "u": draw(1, 8, 8) / 3, "b": draw(2, 8), "o": draw(3, 8, 2)}
    params |= {"h": draw(4, 8)}
    table = check(recurrent, params, (draw(5, ROWS, 7, 6), draw(6, ROWS, 8)))
    assert "7 positions" in rule_of(table, "u")
    assert "carried by scan" not in rule_of(table, "u")


def test_layers_that_are_scanned_over_and_checkpointed():
    """Each iteration has weights of its own; a checkpoint keeps what enters the layers."""

    def loss(p, example, key):
        x, y = example

        @jax.checkpoint
        def layer(h, q):
            return h + jnp.tanh(h @ q["w"] + q["b"]) @ q["v"].T * q["s"]

        h, _ = lax.scan(lambda h, q: (layer(h, q), None), x, p)
        return jnp.sum(h.mean(0) * y), None

    params = {"w": draw(0, 3, 6, 8), "b": draw(1, 3, 1, 8), "v": draw(2, 3, 6, 8), "s": draw(3, 3)}
    table = check(loss, params, (draw(4, ROWS, 2, 6), draw(5, ROWS, 6)))
    assert "dot" in rule_of(table, "w")


def test_what_has_no_rule_is_done_by_vmap_exactly():
    """Broadcast weights, functions of weights, regularisers, branches, custom derivatives."""

    @jax.custom_vjp
    def doubled(w, x):
        return w * x

    doubled.defvjp(lambda w, x: (w * x, (w, x)), lambda r, g: (2 * g * r[1], g * r[0]))

    def loss(p, example, key):
        x, y = example
        h = jnp.einsum("htk,hkn->htn", x, jnp.broadcast_to(p["shared"], (3, 6, 4)))
        h = jnp.einsum("htn,hnm->htm", h, p["heads"])
        g = jnp.einsum("htm,amb->htab", h, p["reshaped"].reshape(2, 5, 2))
        g = g + lax.stop_gradient(p["square"]).sum()
        branch = lax.cond(y > 0, lambda w: jnp.sum(w**2), lambda w: jnp.sum(w), p["branch"])
        value = jnp.sum(jnp.tanh(g)) + jnp.sum(h @ jnp.exp(p["exp"])) + branch
        return value + jnp.sum(doubled(p["custom"], x[0, 0])) + jnp.sum(p["square"] ** 2), None

    params = {
        "shared": draw(0, 6, 4), "heads": draw(1, 3, 4, 5), "reshaped": draw(2, 2, 10),
        "square": draw(3, 3), "branch": draw(4, 4), "exp": draw(5, 5), "custom": draw(6, 6),
        "unused": draw(7, 2),
    }  # fmt: skip
    table = check(loss, params, (draw(8, ROWS, 3, 2, 6), draw(9, ROWS)))
    assert "does not depend" in rule_of(table, "unused")
    assert "vmap" in rule_of(table, "shared")
    assert "dot" in rule_of(table, "reshaped")


def test_norms_are_in_float32_under_bfloat16():
    """65,536 squares of 1 add up to 2^16; in bfloat16 they would stop at 256."""

    def loss(p, x, key):
        return jnp.sum(x @ p, dtype=jnp.bfloat16), None

    params = jnp.ones((256, 256), jnp.bfloat16)
    batch = Batch(jnp.ones((2, 1, 256), jnp.bfloat16), jnp.ones(2, bool))
    found = jax.jit(lambda p, b: per_example_norms(loss, p, b))(params, batch)
    np.testing.assert_allclose(found, 256.0, rtol=1e-3)


def test_an_overflowing_example_is_dropped_and_its_neighbours_are_not():
    loss, params, (x, y) = dense(3)
    mask = jnp.ones(ROWS, bool)
    run = jax.jit(lambda batch: clipped_grad(loss, l2_clip_norm=0.1)(params, batch))
    without, _ = run(Batch((x, y), mask.at[1].set(False)))
    for bad in (jnp.inf, jnp.nan):
        found, info = run(Batch((x, y.at[1].set(bad)), mask))
        assert int(info.nonfinite) == 1
        for a, b in zip(*map(jax.tree.leaves, (found, without)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_positions_that_cancel_do_not_hide_a_long_gradient():
    """What a length is a difference of is measured too: it errs to the long side."""
    a = jnp.ones((1, 200, 50)) + 1e-4 * draw(0, 1, 200, 50)
    d = jnp.where(jnp.arange(200) % 2 > 0, 1.0, -1.0)[:, None] * jnp.ones((200, 900))

    def loss(w, x, key):
        return jnp.sum((x @ w) * d), None

    params = jnp.zeros((50, 900))
    fn = jax.jit(lambda w, b: clipped_grad(loss, l2_clip_norm=1e-3)(w, b)[0])
    total = np.asarray(fn(params, Batch(a, jnp.ones(1, bool))), np.float64)
    assert np.linalg.norm(total) <= 1e-3


@pytest.mark.parametrize(("rows", "chunk_size"), [(1000, None), (1000, 600), (3000, 1024)])
def test_large_batches_are_added_in_blocks(rows, chunk_size):
    loss, params, _ = dense(1)
    data = (draw(0, rows, 1, 6), draw(1, rows, 3))
    grads = jax.jit(jax.vmap(jax.grad(lambda p, e: loss(p, e, None)[0]), (None, 0)))(params, data)
    fn = clipped_grad(loss, l2_clip_norm=1e6, chunk_size=chunk_size)
    total, _ = jax.jit(fn)(params, Batch(data, jnp.ones(rows, bool)))
    for a, b in zip(*map(jax.tree.leaves, (total, grads)), strict=True):
        np.testing.assert_allclose(a, np.asarray(b, np.float64).sum(0), rtol=1e-4, atol=1e-3)


LAYERS = ("dense", "tied", "norm", "conv", "scan", "loop", "broadcast")


def assembled(layers, length, width):
    """A loss of ``[length, width]`` examples through these layers."""
    params = {}
    for i, layer in enumerate(layers):
        square = (width, width)
        shapes = {
            "dense": {"w": square, "b": (1, width)},
            "tied": {"w": square},
            "norm": {"g": (1, width), "b": (1, width)},
            "conv": {"w": (3, width, width)},
            "scan": {"w": square, "u": square},
            "loop": {"w": (2, *square), "b": (2, 1, width)},
            "broadcast": {"w": square},
        }[layer]
        params[f"{i} {layer}"] = {k: draw(i, *s) / 2 for k, s in shapes.items()}

    def one(layer, p, h):
        if layer == "dense":
            return jnp.tanh(h @ p["w"] + p["b"])
        if layer == "tied":
            return jax.nn.silu(h @ p["w"]) @ p["w"].T
        if layer == "norm":
            h = h - h.mean(-1, keepdims=True)
            return h * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 0.1) * p["g"] + p["b"]
        if layer == "conv":
            numbers = ("NWC", "WIO", "NWC")
            out = lax.conv_general_dilated(h[None], p["w"], (1,), "SAME", None, None, numbers)
            return jax.nn.gelu(out[0])
        if layer == "scan":
            step = jax.checkpoint(lambda c, x: (jnp.tanh(c @ p["u"] + x @ p["w"]),) * 2)
            return lax.scan(step, jnp.zeros(width), h)[1]
        if layer == "loop":
            return lax.scan(lambda h, q: (jnp.sin(h @ q["w"] + q["b"]), None), h, p)[0]
        return jnp.einsum("tk,tkn->tn", h, jnp.broadcast_to(p["w"], (length, width, width)))

    def loss(p, example, key):
        h = example
        for layer, name in zip(layers, params, strict=True):
            h = one(layer, p[name], h)
        return jnp.sum(jnp.log1p(h**2)), None

    return loss, params, draw(99, ROWS, length, width)


@pytest.mark.parametrize(
    "layers", [("dense", "conv", "norm"), ("scan", "tied"), ("loop", "broadcast", "dense")]
)
def test_assembled_networks(layers):
    check(*assembled(layers, 3, 5), tolerance=3e-4)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    layers=st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4),
    length=st.integers(1, 24),
    width=st.integers(1, 12),
)
def test_any_network(layers, length, width):
    check(*assembled(layers, length, width), tolerance=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_flax_models_need_no_change(kind):
    from flax import nnx

    from spax import nets

    x, y = draw(0, ROWS, 8, 8, 1), jnp.arange(ROWS) % 3
    if kind == "linen":
        net = nets.CNN(num_classes=3)
        params = net.init(jax.random.key(0), x)

        def logits(params, x):
            return net.apply(params, x)
    else:

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
                self.norm = nnx.GroupNorm(4, 2, rngs=rngs)
                self.head = nnx.Linear(4, 3, rngs=rngs)

            def __call__(self, x):
                return self.head(jax.nn.relu(self.norm(self.conv(x))).mean((1, 2)))

        graph, params = nnx.split(Net(nnx.Rngs(0)))

        def logits(params, x):
            return nnx.merge(graph, params)(x)

    def loss(params, example, key):
        x, y = example
        return -jax.nn.log_softmax(logits(params, x[None])[0])[y], None

    table = check(loss, params, (x, y), tolerance=3e-4)
    assert "conv" in table


def test_a_million_rows_are_in_blocks_of_one():
    """However many rows, what float32 rounds is taken off the bound."""
    from spax.dp.clipping import _block_and_margin

    for rows in (1, 64, 256, 400, 600, 4096, 20_000, 2**20):
        block, margin = _block_and_margin(rows, rows)
        additions = sum(range(1, block + 1)) / block * rows
        assert 0 < margin <= 1 - 2 * 2.0**-24 * (additions + 2 * rows + rows) * 0.99
        if rows <= 20_000:
            assert margin >= 0.99 - 1e-9
    assert [b for b, _ in itertools.starmap(_block_and_margin, [(256, 256), (50, 256)])] == [
        256,
        50,
    ]


@pytest.mark.parametrize("rule", [dp.flat, dp.per_layer(), dp.normalised])
@pytest.mark.parametrize(
    ("entry", "residual", "bound"), [(1e-19, 1e19, 1.0), (1e17, 1e-19, 1e-3), (1e-23, 1e19, 1e-6)]
)
def test_squares_that_vanish_do_not_hide_a_long_gradient(entry, residual, bound, rule):
    """A length is a product of two lengths, either of which may be 0 in float32 where it is not."""

    def loss_fn(w, example, key):
        x, y = example
        return 0.5 * (x @ w - y) ** 2, None

    x = jnp.stack([jnp.full(784, entry), jnp.full(784, 0.1)])
    data = x, jnp.array([-residual, 1.0])
    fn = jax.jit(
        lambda mask: dp.clipped_grad(loss_fn, l2_clip_norm=bound, rule=rule)(
            jnp.zeros(784), dp.Batch(data, mask)
        )[0]
    )
    both, one = (fn(jnp.array([first, True])) for first in (True, False))
    moved = np.linalg.norm(np.asarray(both, np.float64) - np.asarray(one, np.float64))
    assert moved <= bound


def test_a_layer_that_the_loss_leaves_out_has_no_gradient():
    params = {"used": jnp.ones(2), "not": jnp.ones(3)}
    fn = dp.clipped_grad(
        lambda p, x, key: (p["used"] @ x, None), l2_clip_norm=1.0, rule=dp.per_layer()
    )
    total, _ = fn(params, dp.Batch(jnp.ones((4, 2)), jnp.ones(4, bool)))
    np.testing.assert_array_equal(total["not"], 0)
    assert float(jnp.linalg.norm(total["used"])) > 2.8
