"""What the clipping engine needs to take a traced function apart, and put it together again."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
from jax.extend import core
from jax.extend.core import primitives

from spax.typing import Array

__all__ = [
    "as_closed",
    "bind",
    "evaluate",
    "inlined",
    "read",
    "shaped",
    "trace",
]

# Calls that only name a piece of code; what they hold may be put in their place.
_CALLS = frozenset({primitives.jit_p, primitives.closed_call_p, primitives.call_p})


def trace(fn: Callable[..., Any], *avals: Any) -> core.ClosedJaxpr:
    """The jaxpr of a function of flat arguments, without any call in it that is just a name."""
    return inlined(jax.make_jaxpr(fn)(*avals))


def inlined(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same function with the bodies of ``jit`` in the place of their calls, at this level."""
    if not any(eqn.primitive in _CALLS for eqn in closed.jaxpr.eqns):
        return closed

    def fn(*args: Array) -> list[Array]:
        return evaluate(closed, args)

    return jax.make_jaxpr(fn)(*closed.in_avals)


def evaluate(closed: core.ClosedJaxpr, args: Sequence[Array]) -> list[Array]:
    """The values of a jaxpr; bodies of ``jit`` are run as if they stood here."""
    env: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(closed.jaxpr.invars, args, strict=True))
    for eqn in closed.jaxpr.eqns:
        values = [read(env, v) for v in eqn.invars]
        if eqn.primitive in _CALLS:
            outs = evaluate(as_closed(_body(eqn)), values)
        else:
            outs = bind(eqn, values)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(env, v) for v in closed.jaxpr.outvars]


def read(env: dict[Any, Any], atom: Any) -> Any:
    """The value of a variable or a literal."""
    return atom.val if isinstance(atom, core.Literal) else env[atom]


def bind(eqn: core.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """What one equation makes of these values."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def shaped(atom: Any) -> jax.core.ShapedArray:
    """Shape and type of a variable."""
    return cast(jax.core.ShapedArray, atom.aval)


def as_closed(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
    """A jaxpr without constants of its own, closed."""
    return jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, [])


def _body(eqn: core.JaxprEqn) -> Any:
    return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
