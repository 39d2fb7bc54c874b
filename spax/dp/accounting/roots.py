"""One root of a falling function, for searches under jit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spax.typing import Array, PyTree

__all__ = ["falling_root"]


def falling_root(
    function: Callable[[Array], tuple[Array, PyTree]],
    low: Any,
    high: Any,
    *,
    tolerance: float,
    limit: float,
) -> tuple[Array, PyTree]:
    """A point at which a falling function is not positive, close above its root.

    Regula falsi with the Illinois rule; a step of bisection where that gets nowhere. The function
    stands once in the compiled loop. Call it within a 64-bit island.

    Args:
      function: a number to ``(value, found)``.
      low: where the value should be positive; if it is not, this is the point.
      high: where it should not be; if it is, steps of growing length are taken upwards.
      tolerance: how far above the root the point may be.
      limit: where to stop going upwards.

    Returns:
      ``(point, found)``, what the function found there. If the value is positive even beyond the
      limit, a point beyond the limit.
    """
    low, high = jnp.asarray(low, jnp.float64), jnp.asarray(high, jnp.float64)
    nothing = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, low)[1]
    )

    def step(carry: tuple) -> tuple:
        count, a, b, fa, fb, side, grow, kept = carry
        x = (a * fb - b * fa) / jnp.where(fb == fa, 1.0, fb - fa)
        x = jnp.where((x > a) & (x < b) & (count % 4 != 3), x, (a + b) / 2)
        # Not nearer to an end than the tolerance asks: then both ends move.
        x = jnp.clip(x, a + tolerance / 3, b - tolerance / 3)
        at_low, at_high = count == 0, (count > 0) & (fb > 0)
        x = jnp.where(at_low, a, jnp.where(at_high, b, x))
        value, found = function(x)
        fx = jnp.clip(jnp.nan_to_num(value, nan=jnp.inf), -1e3, 1e3)
        up = fx > 0
        # A low end that is no low end is the point; a high end that is none is the next low one.
        moved_a = jnp.where(up, x, a)
        moved_b = jnp.where(up, b, x)
        moved_b = jnp.where(at_high & up, x + grow, moved_b)
        kept_fb = jnp.where(up, jnp.where((side == 1) & ~at_high, fb / 2, fb), fx)
        kept_fa = jnp.where(up, fx, jnp.where((side == -1) & ~at_high, fa / 2, fa))
        side = jnp.where(up, 1, -1)
        kept = jax.tree.map(lambda new, old: jnp.where(up & (fb <= 0), old, new), found, kept)
        return (
            count + 1,
            moved_a,
            moved_b,
            kept_fa,
            jnp.where(at_high & up, fx, kept_fb),
            jnp.where(at_low | at_high, 0, side),
            jnp.where(at_high & up, 2 * grow, grow),
            kept,
        )

    def going(carry: tuple) -> Array:
        count, a, b, fa, fb = carry[:5]
        narrow = (b - a <= tolerance) & (fb <= 0)
        return (count < 200) & ~narrow & ~((count > 0) & (fa <= 0)) & ~((fb > 0) & (a >= limit))

    start = (jnp.asarray(0), low, high, 1.0, 1.0, jnp.asarray(0), high - low, nothing)
    start = jax.tree.map(jnp.asarray, start)
    carry = lax.while_loop(going, step, start)
    return carry[2], carry[-1]
