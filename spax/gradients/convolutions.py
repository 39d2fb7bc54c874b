"""Convolutions that stay fast inside loops."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from spax.typing import Array, PyTree

__all__ = ["canonical_convolutions"]

# The only primitives whose inner jaxprs are rewritten: each runs them as ordinary code. Anything
# else that holds a jaxpr (a Pallas kernel, a user's own primitive) is passed on as it is.
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

# XLA's CPU compiler has fast code for these alone.
_FAST_DTYPES = (jnp.float32, jnp.float16, jnp.bfloat16)

# jaxpr -> rewritten jaxpr, or None where nothing is to be rewritten (the jaxpr itself as a value
# would keep its own key alive). Inner functions that are shared stay shared, and a jitted inner
# function keeps its compiled code between calls.
_rewritten: WeakKeyDictionary[core.Jaxpr, core.Jaxpr | None] = WeakKeyDictionary()


def canonical_convolutions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """TODO."""

    def rewritten(*args: Any, **kwargs: Any) -> Any:
        leaves, treedef = jax.tree.flatten((args, kwargs))
        traced = [leaf for leaf in leaves if _is_array(leaf)]
        out_leaves: list[Any] = []
        out_tree: Any = None

        def arrays_to_arrays(*arrays: Array) -> list[Array]:
            nonlocal out_leaves, out_tree
            fresh = iter(arrays)
            args, kwargs = treedef.unflatten(
                [next(fresh) if _is_array(leaf) else leaf for leaf in leaves]
            )
            out_leaves, out_tree = jax.tree.flatten(fn(*args, **kwargs))
            arrays_out = [leaf for leaf in out_leaves if _is_array(leaf)]
            out_leaves = [_HOLE if _is_array(leaf) else leaf for leaf in out_leaves]
            return arrays_out

        closed = jax.make_jaxpr(arrays_to_arrays)(*traced)
        results = iter(core.jaxpr_as_fun(closed.replace(jaxpr=_rewrite(closed.jaxpr)))(*traced))
        return out_tree.unflatten([next(results) if v is _HOLE else v for v in out_leaves])

    return rewritten


_HOLE = object()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def _rewrite(jaxpr: core.Jaxpr) -> core.Jaxpr:
    if jaxpr not in _rewritten:
        eqns = [_rewrite_eqn(eqn) for eqn in jaxpr.eqns]
        changed = any(new is not old for new, old in zip(eqns, jaxpr.eqns, strict=True))
        _rewritten[jaxpr] = jaxpr.replace(eqns=eqns) if changed else None
    return _rewritten[jaxpr] or jaxpr


def _rewrite_eqn(eqn: core.JaxprEqn) -> core.JaxprEqn:
    if eqn.primitive is primitives.conv_general_dilated_p:
        return _rewrite_convolution(eqn)
    if eqn.primitive in _HIGHER_ORDER:
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
    if isinstance(value, tuple) and any(isinstance(v, core.ClosedJaxpr) for v in value):
        new = tuple(_rewrite_param(v) for v in value)
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new
    return value


def _rewrite_convolution(eqn: core.JaxprEqn) -> core.JaxprEqn:
    lhs, rhs = (v.aval for v in eqn.invars)
    if lhs.dtype not in _FAST_DTYPES:
        return eqn
    call = _call(lhs, rhs, tuple(sorted(eqn.params.items())))
    return eqn.replace(primitive=call.primitive, params=call.params)


@lru_cache(maxsize=256)
def _call(lhs: Any, rhs: Any, params: tuple[tuple[str, Any], ...]) -> core.JaxprEqn:
    plain = partial(primitives.conv_general_dilated_p.bind, **dict(params))
    canonical = partial(_canonical, **dict(params))

    @jax.jit
    def convolution(lhs: Array, rhs: Array) -> Array:
        return lax.platform_dependent(lhs, rhs, cpu=canonical, default=plain)

    return jax.make_jaxpr(convolution)(lhs, rhs).eqns[0]


def _canonical(lhs: Array, rhs: Array, *, dimension_numbers: Any, **params: Any) -> Array:
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    n = lhs.ndim
    channels_last = (0, n - 1, *range(1, n - 1))
    canonical = lax.ConvDimensionNumbers(
        channels_last, (n - 1, n - 2, *range(n - 2)), channels_last
    )
    out = primitives.conv_general_dilated_p.bind(
        lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])),
        lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])),
        dimension_numbers=canonical,
        **params,
    )
    return lax.transpose(out, tuple(np.argsort((out_spec[0], *out_spec[2:], out_spec[1]))))
