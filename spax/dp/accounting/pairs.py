"""Sums kept as pairs of float32, exact to 48 bits, and rounding to the safe side.

Call all but `two_sum` within a 64-bit island.
"""

import jax.numpy as jnp
import numpy as np

from spax.typing import Array

__all__ = ["joined", "rounded_up", "split", "sum_of_pairs", "two_sum"]


def split(value: Array) -> tuple[Array, Array]:
    """A 64-bit number >= 0 as two of 32 bits whose sum is not below it."""
    tiny = float(np.finfo(np.float32).tiny)
    value = jnp.where(value > 0, jnp.maximum(value, 2 * tiny), value)
    high = value.astype(jnp.float32)
    low = jnp.where(jnp.isfinite(high), value - high.astype(jnp.float64), 0.0)
    low = low.astype(jnp.float32)
    return high, jnp.where(low != 0, jnp.nextafter(low, jnp.float32(np.inf)), low)


def joined(high: Array, low: Array) -> Array:
    """A pair as one number of 64 bits."""
    return high.astype(jnp.float64) + low.astype(jnp.float64)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Knuth's: the rounded sum, and what rounding it lost; together they hold 48 bits."""
    total = a + b
    shadow = total - a
    error = (a - (total - shadow)) + (b - shadow)
    return total, jnp.where(jnp.isfinite(total), error, 0.0)


def sum_of_pairs(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The sum of two pairs, as a pair."""
    total, error = two_sum(first[0], second[0])
    # Once more, so that the carry stays below the last bit of the total and is rounded there.
    return two_sum(total, first[1] + second[1] + error)


def rounded_up(value: Array) -> Array:
    """A 64-bit number >= 0 in 32 bits, not below it."""
    rounded = value.astype(jnp.float32)
    above = jnp.nextafter(rounded, jnp.float32(np.inf))
    # Never a subnormal number, which the next operation may take for 0.
    above = jnp.maximum(above, jnp.finfo(jnp.float32).tiny)
    return jnp.where(value > 0, above, rounded)


def place_of_least(values: Array) -> Array:
    """The first index of the smallest of ``[n]`` values, int32; the last one where one is NaN.

    (`jnp.argmin` is lowered with the precision of whoever compiles, who may be outside of the
    64-bit island that it was traced in.)
    """
    places = jnp.arange(values.shape[0], dtype=jnp.int32)
    return jnp.min(jnp.where(values == jnp.min(values), places, places[-1]))
