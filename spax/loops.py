"""The loops of `jax.lax`, for carries that begin as constants: inside ``shard_map`` too.

There a value's type says over which axes of the mesh it varies, and a loop wants its carry to have
one type. What begins as a constant (no point seen, a sum of zero) and goes on as something computed
from the shard's own rows has two, unless it is marked from the start.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from spax.typing import PyTree

__all__ = ["fori_loop", "scan", "varying", "while_loop"]


def varying(tree: PyTree, like: PyTree = None) -> PyTree:
    """The same values, each marked as varying over all axes that any of them, or ``like``, does.

    Args:
      tree: a pytree of arrays and numbers.
      like: another.

    Returns:
      ``tree``; outside of ``shard_map``, and where it does not keep track, as it was.

    Raises:
      TypeError: if a leaf is no array and no number.

    Example:
      >>> varying((1.0, 2.0))
      (1.0, 2.0)
    """
    axes = frozenset[str]().union(*map(_axes, jax.tree.leaves((tree, like))))

    def mark(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _axes(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree) if axes else tree


def _axes(leaf: Any) -> frozenset[str]:
    return frozenset(jax.typeof(leaf).manual_axis_type.varying)


def fori_loop(lower: Any, upper: Any, body: Callable[..., Any], init: Any) -> Any:
    """`jax.lax.fori_loop` with a carry that is `varying` as a whole.

    Example:
      >>> fori_loop(0, 3, lambda i, total: total + i, 0).item()
      3
    """
    return lax.fori_loop(lower, upper, body, varying(init))


def while_loop(go_on: Callable[..., Any], body: Callable[..., Any], init: Any) -> Any:
    """`jax.lax.while_loop` with a carry that is `varying` as a whole.

    Example:
      >>> while_loop(lambda i: i < 3, lambda i: i + 1, 0).item()
      3
    """
    return lax.while_loop(go_on, body, varying(init))


def scan(body: Callable[..., Any], init: Any, xs: Any, *, reverse: bool = False) -> Any:
    """`jax.lax.scan` with a carry that is `varying` as a whole, and as ``xs`` is.

    Example:
      >>> total, _ = scan(lambda c, x: (c + x, None), 0, jax.numpy.arange(3))
      >>> total.item()
      3
    """
    return lax.scan(body, varying(init, xs), xs, reverse=reverse)
