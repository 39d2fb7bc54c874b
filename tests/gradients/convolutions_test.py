"""Rewritten convolutions compute what plain ones do, wherever they stand.

All operands are small integers, so that sums are exact in any order and results must agree bit for
bit, whatever order a layout sums in.
"""

import gc
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from spax.gradients import canonical_convolutions
from spax.gradients import convolutions as module

CANONICAL = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"


pytestmark = pytest.mark.usefixtures("strict")


def integers(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).integers(-2, 3, shape), dtype)


def layouts(fn, *args, platform="cpu"):
    """The layouts of all convolutions that ``fn`` is lowered to."""
    text = jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)


def assert_same(fn, *args):
    """Rewritten equals plain, bit for bit, structure and dtypes included."""
    got, want = jax.jit(lambda *a: (canonical_convolutions(fn)(*a), fn(*a)))(*args)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, want)


@st.composite
def convolutions(draw):
    """``(lhs, rhs, parameters)`` of `lax.conv_general_dilated`, in any layout."""
    spatial = draw(st.integers(1, 3))
    per_dimension = partial(st.lists, min_size=spatial, max_size=spatial)
    sizes = draw(per_dimension(st.integers(1, 5 if spatial < 3 else 3)))
    kernel = draw(per_dimension(st.integers(1, 3)))
    group, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2, 3]))
    kind = draw(st.sampled_from(["feature", "batch"]))
    batch = draw(st.integers(1, 2)) * (groups if kind == "batch" else 1)
    out = draw(st.integers(1, 2)) * groups
    specs = [draw(st.permutations(range(spatial + 2))) for _ in range(3)]
    padding = st.sampled_from(["SAME", "VALID"]) | per_dimension(
        st.tuples(st.integers(-1, 2), st.integers(0, 2))
    )
    params = {
        "window_strides": draw(per_dimension(st.integers(1, 2))),
        "padding": draw(padding),
        "rhs_dilation": draw(per_dimension(st.integers(1, 2))),
        "dimension_numbers": lax.ConvDimensionNumbers(*map(tuple, specs)),
        "feature_group_count": groups if kind == "feature" else 1,
        "batch_group_count": groups if kind == "batch" else 1,
        "precision": draw(st.sampled_from([None, lax.Precision.HIGHEST])),
    }
    if not isinstance(params["padding"], str):
        params["lhs_dilation"] = draw(per_dimension(st.integers(1, 2)))
    lhs, rhs = np.zeros(spatial + 2, int), np.zeros(spatial + 2, int)
    lhs[list(specs[0])] = [batch, group * (groups if kind == "feature" else 1), *sizes]
    rhs[list(specs[1])] = [out, group, *kernel]
    dtype = draw(st.sampled_from([jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16]))
    return jax.ShapeDtypeStruct(tuple(lhs), dtype), jax.ShapeDtypeStruct(tuple(rhs), dtype), params


def value_and_gradients(convolve, lhs, rhs):
    out, pull = jax.vjp(convolve, lhs, rhs)
    return out, pull(integers(2, out.shape, out.dtype))


@pytest.mark.slow
@settings(max_examples=25, derandomize=True, deadline=None, database=None)
@given(convolutions())
def test_any_convolution_and_its_gradients(case):
    lhs, rhs, params = case
    convolve = partial(lax.conv_general_dilated, **params)
    try:
        out = jax.eval_shape(convolve, lhs, rhs)
    except ValueError:  # padding and sizes that don't go together
        assume(False)
    assume(0 not in out.shape)
    operands = integers(0, lhs.shape, lhs.dtype), integers(1, rhs.shape, rhs.dtype)
    assert_same(partial(value_and_gradients, convolve), *operands)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")])
def test_transposed_convolutions(layout, padding):
    shapes = {"N": 2, "H": 4, "W": 5, "C": 3, "I": 3, "O": 2}
    lhs = integers(0, [shapes[d] for d in layout[0]])
    rhs = integers(1, [{**shapes, "H": 3, "W": 2}[d] for d in layout[1]])
    convolve = partial(
        lax.conv_transpose, strides=(2, 1), padding=padding, dimension_numbers=layout
    )
    assert_same(partial(value_and_gradients, convolve), lhs, rhs)


# A two-layer net with channels first, its integer input and its kernels.
X = integers(3, (2, 1, 6, 6))
W = {"a": integers(4, (2, 1, 3, 3)), "b": integers(5, (3, 2, 2, 2))}


def net(w, x, activation=jax.nn.relu, wrap=lambda layer: layer):
    x = activation(wrap(lambda w, x: lax.conv(x, w, (1, 1), "SAME"))(w["a"], x))
    return wrap(lambda w, x: lax.conv(x, w, (2, 2), "VALID"))(w["b"], x)


def loss(w, x, **kwargs):
    return jnp.sum(net(w, x, **kwargs) ** 2) / 2


def descend(slope, w, x):
    # Signs keep the numbers small, so exact.
    return jax.tree.map(lambda w, g: w - jnp.sign(g), w, slope(w, x))


LOOPS = {
    "scan": lambda step, w, x: lax.scan(lambda w, x: (step(w, x), None), w, jnp.stack([x, -x]))[0],
    "fori_loop": lambda step, w, x: lax.fori_loop(0, 2, lambda _, w: step(w, x), w),
    "while": lambda step, w, x: lax.while_loop(
        lambda state: (state[0] < 2) & (loss(state[1], x) >= 0),
        lambda state: (state[0] + 1, step(state[1], x)),
        (0, w),
    )[1],
    "cond": lambda step, w, x: lax.cond(x[0, 0, 0, 0] > 9, step, lambda w, x: step(w, -x), w, x),
    "map": lambda step, w, x: lax.map(lambda x: step(w, x), jnp.stack([x, -x])),
}


@pytest.mark.parametrize("name", LOOPS)
def test_inside_loops_and_loops_inside(name):
    loop, slope = LOOPS[name], jax.grad(loss)
    plain = partial(loop, partial(descend, slope))
    inside = partial(loop, partial(descend, canonical_convolutions(slope)))
    around = canonical_convolutions(plain)
    want, *got = jax.jit(lambda w, x: (plain(w, x), inside(w, x), around(w, x)))(W, X)
    for each in got:
        jax.tree.map(np.testing.assert_array_equal, each, want)
    assert {*layouts(inside, W, X)} - {*layouts(plain, W, X)} == {CANONICAL}
    assert {*layouts(around, W, X)} == {CANONICAL}


def test_the_compiler_keeps_the_layout_inside_a_loop():
    def train(w, x):
        return lax.fori_loop(0, 3, lambda _, w: descend(jax.grad(loss), w, x), w)

    text = jax.jit(canonical_convolutions(train)).lower(W, X).compile().as_text()
    assert {*re.findall(r"convolution\(.*dim_labels=([^,]+)", text)} == {"b01f_01io->b01f"}


def test_other_platforms_keep_the_original():
    slope = jax.grad(loss)
    want = layouts(slope, W, X, platform="cuda")
    assert layouts(canonical_convolutions(slope), W, X, platform="cuda") == want
    assert CANONICAL not in want


def test_twice_is_once():
    once = canonical_convolutions(jax.grad(loss))
    twice = canonical_convolutions(once)
    assert str(jax.make_jaxpr(twice)(W, X)) == str(jax.make_jaxpr(once)(W, X))


@jax.custom_vjp
def negated_gradient(w, x):
    return lax.conv(x, w, (1, 1), "SAME")


def _negated_gradient_bwd(saved, ct):
    return jax.vjp(lambda w, x: lax.conv(x, w, (1, 1), "SAME"), *saved)[1](-ct)


negated_gradient.defvjp(lambda w, x: (negated_gradient(w, x), (w, x)), _negated_gradient_bwd)


@jax.custom_jvp
def doubled_gradient(w, x):
    return lax.conv(x, w, (1, 1), "SAME")


@doubled_gradient.defjvp
def _doubled_gradient_jvp(primals, tangents):
    out, tangent = jax.jvp(lambda w, x: lax.conv(x, w, (1, 1), "SAME"), primals, tangents)
    return out, 2 * tangent


WRAPPERS = {
    "jit": jax.jit,
    "nested jit": lambda layer: jax.jit(lambda w, x: jax.jit(layer)(w, x)),
    "checkpoint": jax.checkpoint,
    "named_call": lambda layer: jax.named_call(layer, name="layer"),
    "custom_vjp": lambda layer: negated_gradient,
    "custom_jvp": lambda layer: doubled_gradient,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_inside_other_functions(name):
    def wrapped_loss(w, x):
        return jnp.sum(WRAPPERS[name](lambda w, x: lax.conv(x, w, (1, 1), "SAME"))(w, x) ** 2) / 2

    # The value runs the function itself, the gradient what differentiation made of it.
    both = jax.value_and_grad(wrapped_loss, argnums=(0, 1))
    assert_same(lambda w, x: (wrapped_loss(w, x), both(w, x)), W["a"], X)
    assert {*layouts(canonical_convolutions(both), W["a"], X)} == {CANONICAL}


def test_smooth_activations_agree_to_rounding():
    slope = jax.grad(partial(loss, activation=jax.nn.gelu))
    got, want = jax.jit(lambda w, x: (canonical_convolutions(slope)(w, x), slope(w, x)))(W, X)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)


def test_per_example_gradients():
    # vmap makes grouped convolutions of the gradients of kernels; these are rewritten too.
    slopes = jax.vmap(lambda w, x: jax.grad(loss)(w, x[None]), in_axes=(None, 0))
    assert_same(slopes, W, X)
    assert {*layouts(canonical_convolutions(slopes), W, X)} == {CANONICAL}


@pytest.mark.parametrize(
    ("transform", "args"),
    [
        (lambda f: jax.grad(lambda w, x: jnp.sum(f(w, x)["a"])), (W, X)),
        (lambda f: lambda w, x: jax.jvp(f, (w, x), (w, -x)), (W, X)),
        (lambda f: jax.vmap(f, in_axes=(None, 0)), (W, jnp.stack([X, -X]))),
        (lambda f: jax.vmap(f), (jax.tree.map(lambda v: jnp.stack([v, -v]), W), jnp.stack([X, X]))),
        (lambda f: jax.jit(f), (W, X)),
    ],
    ids=["grad", "jvp", "vmap over x", "vmap over both", "jit"],
)
def test_transforms_of_the_rewritten_function(transform, args):
    slope = jax.grad(loss)
    got, want = jax.jit(
        lambda *args: (transform(canonical_convolutions(slope))(*args), transform(slope)(*args))
    )(*args)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_dtypes():
    kernel = integers(0, (3, 1, 2, 2), jnp.bfloat16)
    x = X.astype(jnp.bfloat16)
    convolve = partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        preferred_element_type=jnp.float32,
    )
    assert_same(convolve, x, kernel)
    assert {*layouts(canonical_convolutions(convolve), x, kernel)} == {CANONICAL}
    whole = partial(lax.conv, window_strides=(1, 1), padding="SAME")
    for dtype in (jnp.int32, jnp.int8, jnp.complex64):  # not rewritten
        operands = X.astype(dtype), kernel.astype(dtype)
        assert_same(whole, *operands)
        assert layouts(canonical_convolutions(whole), *operands) == layouts(whole, *operands)


def test_a_64_bit_island():
    def in_64_bits(w, x):
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda v: lax.convert_element_type(v, np.float64), (w, x))
            slope = jax.grad(loss)(*wide)
            return jax.tree.map(lambda v: lax.convert_element_type(v, np.float32), slope)

    assert_same(in_64_bits, W, X)


def test_what_would_lose_stays():
    depthwise = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    x, kernel = integers(0, (1, 4, 6, 6)), integers(1, (4, 1, 3, 3))
    grouped = partial(depthwise, feature_group_count=4)
    assert CANONICAL not in layouts(canonical_convolutions(grouped), x, kernel)
    nothing = canonical_convolutions(lambda x: lax.conv(x[:0], X[:1, :, :3, :3], (1, 1), "SAME"))
    assert nothing(X).shape == (0, 1, 6, 6)


def test_arguments_and_results_of_any_kind():
    def draw(key, scale, shape, *, extra, name):
        assert isinstance(scale, int)
        assert isinstance(name, str)
        return {"noise": scale * jax.random.normal(key, shape), "name": name, "n": 3}, extra

    key = jax.random.key(0)
    got = canonical_convolutions(draw)(key, 2, (3,), extra=(None, key), name="x")
    want = draw(key, 2, (3,), extra=(None, key), name="x")
    assert jax.tree.structure(got) == jax.tree.structure(want)
    np.testing.assert_array_equal(got[0]["noise"], want[0]["noise"])
    assert (got[0]["name"], got[0]["n"], got[1][0]) == ("x", 3, None)
    assert got[1][1].dtype == key.dtype


def test_closed_over_tracers_and_constants():
    def through_closure(w):
        return canonical_convolutions(lambda x: net(w, x) + np.float32(1))(X)

    both = jax.jit(lambda w: (through_closure(w), jax.jvp(through_closure, (w,), (w,))[1]))
    got, tangent = both(W)
    np.testing.assert_array_equal(got, net(W, X) + 1)
    np.testing.assert_array_equal(tangent, 2 * net(W, X))  # homogeneous of degree 2 in W


def test_effects_happen_once():
    seen = []

    def fn(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0, 0, 0], ordered=True)
        return lax.conv(x, W["a"], (1, 1), "SAME")

    jax.block_until_ready(jax.jit(canonical_convolutions(fn))(X))
    jax.effects_barrier()
    assert seen == [float(X[0, 0, 0, 0])]


def test_inside_shard_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def summed_slope(slope, w, x):
        w = lax.pcast(w, "data", to="varying")
        return lax.psum(slope(w, x), "data")

    def sharded(slope):
        specs = {"mesh": mesh, "in_specs": (P(), P("data")), "out_specs": P()}
        return jax.shard_map(partial(summed_slope, slope), **specs)

    slope = jax.grad(loss)
    got = jax.jit(sharded(canonical_convolutions(slope)))(W, X)
    jax.tree.map(np.testing.assert_array_equal, got, slope(W, X))


def test_shared_functions_stay_shared_and_nothing_is_kept():
    layer = jax.jit(lambda w, x: lax.conv(x, w, (1, 1), "SAME"))
    kernel = integers(0, (1, 1, 3, 3))
    rewritten = canonical_convolutions(lambda w, x: layer(w, layer(w, x)))
    jaxpr = jax.make_jaxpr(jax.jit(rewritten))(kernel, X).jaxpr.eqns[0].params["jaxpr"]
    first, second = (eqn.params["jaxpr"].jaxpr for eqn in jaxpr.eqns)
    assert first is second
    gc.collect()
    before = len(module._rewritten)
    jax.make_jaxpr(canonical_convolutions(lambda x: lax.conv(x, kernel, (1, 1), "VALID")))(X)
    gc.collect()
    assert len(module._rewritten) == before
