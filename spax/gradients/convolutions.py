"""Convolutions that stay fast inside loops."""

import functools
import math
from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from spax.typing import Array

__all__ = ["canonical_convolutions"]

# What is looked into for convolutions: each of these runs the jaxprs in its parameters as ordinary
# code. Whatever else holds a jaxpr (a Pallas kernel, somebody's own primitive) is left as it is.
_HIGHER_ORDER = frozenset(
    {
        primitives.call_p,
        primitives.closed_call_p,
        primitives.cond_p,
        primitives.custom_jvp_call_p,
        primitives.custom_vjp_call_p,
        primitives.jit_p,
        primitives.remat_p,
        primitives.scan_p,
        primitives.while_p,
    }
)

_DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)

# jaxpr -> its rewritten form, or None where there was nothing to rewrite (as its own value a jaxpr
# would never be freed). What was shared stays shared, so that an inner jitted function is lowered
# once however often it is called, and keeps its compiled code from call to call.
_rewritten: WeakKeyDictionary[core.Jaxpr, core.Jaxpr | None] = WeakKeyDictionary()


def canonical_convolutions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the convolutions of a function as fast inside loops as outside, on the CPU.

    XLA's CPU compiler has fast code for convolutions in one layout only (channels last, kernels
    ``[..., in, out]``). It brings others into that layout in the entry computation but not in the
    body of a ``while`` (jax-ml/jax issue 12868), so inside `jax.lax.scan` or
    `jax.lax.fori_loop` the *gradients* of convolutions, whose layouts are never that one, run on
    plain nested loops: several times to fifty times slower. So do forward convolutions with
    channels first. Here each such convolution of the traced function gets transposed operands, and
    its result is transposed back.

    Apply it outermost, to the function that already takes the gradient (a convolution that
    ``grad`` or ``vmap`` makes afterwards is not seen): to the step in the loop's body, or to the
    function that holds the loop, since bodies of ``scan``, ``while`` and ``cond``, nested
    ``jit``, custom derivatives and `jax.checkpoint` are looked into. It traces ``fn`` at every
    call, as `jax.make_jaxpr` does: call it from code that is jitted.

    Args:
      fn: any function JAX can trace. Arrays anywhere in its arguments and results are traced; all
        else (Python numbers, strings, functions, None) reaches it, and comes back, as it is.

    Returns:
      A function of the same signature.

    Guarantees:
      Values and derivatives are those of ``fn``, up to rounding: a convolution may sum in another
      order. ``jit``, ``grad``, ``jvp`` and ``vmap`` apply to it. Only what gains is changed: where
      the code is compiled for another platform (decided when it is lowered), and for integers,
      explicitly sharded operands, grouped convolutions with small windows, and dilated ones in
      three dimensions, the convolution stays as it was. ``benchmarks/convolutions_in_loops.py``
      tells what it gains, and whether a newer jaxlib still needs it.

    Raises:
      Exception: at a call, whatever tracing ``fn`` raises.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def loss(w, x):
      ...     return jnp.sum(jax.lax.conv(x, w, (1, 1), "SAME") ** 2)
      >>> @jax.jit
      ... def descend(w, x):
      ...     slope = canonical_convolutions(jax.grad(loss))
      ...     return jax.lax.fori_loop(0, 3, lambda _, w: w - 0.001 * slope(w, x), w)
      >>> x = jnp.ones((2, 1, 5, 5))
      >>> descend(jnp.ones((4, 1, 3, 3)), x).shape
      (4, 1, 3, 3)
    """

    @functools.wraps(fn)
    def rewritten(*args: Any, **kwargs: Any) -> Any:
        leaves, treedef = jax.tree.flatten((args, kwargs))
        out_leaves: list[Any] = []
        out_tree: Any = None

        def from_arrays(arrays: list[Array]) -> list[Array]:
            nonlocal out_leaves, out_tree
            args, kwargs = jax.tree.unflatten(treedef, _merge(leaves, arrays))
            out_leaves, out_tree = jax.tree.flatten(fn(*args, **kwargs))
            arrays, out_leaves = _split(out_leaves)
            return arrays

        arrays, leaves = _split(leaves)
        closed = jax.make_jaxpr(from_arrays)(arrays)
        values = core.jaxpr_as_fun(closed.replace(jaxpr=_rewrite(closed.jaxpr)))(*arrays)
        return jax.tree.unflatten(out_tree, _merge(out_leaves, values))

    return rewritten


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and core.valid_jaxtype(leaf)


def _split(leaves: list[Any]) -> tuple[list[Array], list[Any]]:
    """The arrays, and the leaves with a marker in the place of each array."""
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    return arrays, [_is_array if _is_array(leaf) else leaf for leaf in leaves]


def _merge(leaves: list[Any], arrays: list[Array]) -> list[Any]:
    rest = iter(arrays)
    return [next(rest) if leaf is _is_array else leaf for leaf in leaves]


def _rewrite(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """The jaxpr with its convolutions rewritten; itself if there are none to rewrite."""
    if jaxpr not in _rewritten:
        eqns = [_rewrite_eqn(eqn) for eqn in jaxpr.eqns]
        same = all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True))
        _rewritten[jaxpr] = None if same else jaxpr.replace(eqns=eqns)
    new = _rewritten[jaxpr]
    return jaxpr if new is None else new


def _rewrite_eqn(eqn: core.JaxprEqn) -> core.JaxprEqn:
    if eqn.primitive is primitives.conv_general_dilated_p and _gains(eqn):
        call = _canonical_call(
            *(v.aval for v in eqn.invars), tuple(sorted(eqn.params.items())), eqn.ctx
        )
        return eqn.replace(primitive=call.primitive, params=call.params)
    # A choice by platform stays, be it ours (rewriting twice is rewriting once) or the caller's.
    if eqn.primitive in _HIGHER_ORDER and not eqn.params.get("branches_platforms"):
        params = {name: _rewrite_param(value) for name, value in eqn.params.items()}
        if any(params[name] is not value for name, value in eqn.params.items()):
            return eqn.replace(params=params)
    return eqn


def _rewrite_param(value: Any) -> Any:
    if isinstance(value, core.Jaxpr):
        return _rewrite(value)
    if isinstance(value, core.ClosedJaxpr):
        jaxpr = _rewrite(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if isinstance(value, tuple):  # the branches of a cond
        branches = tuple(_rewrite_param(v) for v in value)
        return value if all(a is b for a, b in zip(branches, value, strict=True)) else branches
    return value


def _canonical_dimensions(rank: int) -> lax.ConvDimensionNumbers:
    channels_last = (0, rank - 1, *range(1, rank - 1))
    kernel = (rank - 1, rank - 2, *range(rank - 2))
    return lax.ConvDimensionNumbers(channels_last, kernel, channels_last)


def _gains(eqn: core.JaxprEqn) -> bool:
    """Whether the CPU runs the canonical form faster; the exceptions were measured one by one."""
    lhs, rhs, out = (cast(jax.core.ShapedArray, v.aval) for v in (*eqn.invars, *eqn.outvars))
    params = eqn.params
    numbers = params["dimension_numbers"]
    spatial = lhs.ndim - 2
    if lhs.dtype not in _DTYPES or not 1 <= spatial <= 3:
        return False
    if numbers == _canonical_dimensions(lhs.ndim) or 0 in (lhs.size, rhs.size, out.size):
        return False
    if any(axis is not None for aval in (lhs, rhs, out) for axis in aval.sharding.spec):
        return False  # explicitly sharded
    if spatial == 3 and any(d > 1 for d in (*params["lhs_dilation"], *params["rhs_dilation"])):
        return False  # no fast code for these: canonical ones run up to 18 times slower
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        # The fast code takes one group after the other. That pays for the gradients of kernels
        # (their "window" is an image, their result the size of a kernel), not for the others.
        window = math.prod(rhs.shape[d] for d in numbers.rhs_spec[2:])
        return window > math.prod(out.shape[d] for d in numbers.out_spec[2:])
    return True


# Few different convolutions, each met at every trace of the function around it.
@functools.lru_cache(maxsize=1024)
def _canonical_call(
    lhs: Any, rhs: Any, params: tuple[tuple[str, Any], ...], context: Any
) -> core.JaxprEqn:
    """One convolution as a jitted function of its own, which is what can be put in its place."""
    plain = functools.partial(primitives.conv_general_dilated_p.bind, **dict(params))
    canonical = functools.partial(_canonical, **dict(params))

    @jax.jit
    def canonical_convolution(lhs: Array, rhs: Array) -> Array:
        return lax.platform_dependent(lhs, rhs, cpu=canonical, default=plain)

    with context.manager:  # the mesh and metadata of the convolution, not of who asks first
        return jax.make_jaxpr(canonical_convolution)(lhs, rhs).eqns[0]


def _canonical(
    lhs: Array, rhs: Array, *, dimension_numbers: lax.ConvDimensionNumbers, **params: Any
) -> Array:
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    out = primitives.conv_general_dilated_p.bind(
        lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])),
        lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])),
        dimension_numbers=_canonical_dimensions(lhs.ndim),
        **params,
    )
    return lax.transpose(out, np.argsort((out_spec[0], *out_spec[2:], out_spec[1])))
