"""What mechanisms draw with: bits and tails from either kind of key, chosen by the key's type."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax import crypto
from spax.typing import Array

__all__ = ["bits", "exponential", "fold_in", "gumbel", "order", "tails"]


def fold_in(key: Any, data: int | Array) -> Any:
    """A key of the same kind from a key and a number.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`.
      data: a whole number >= 0, such as a step; may be traced.

    Returns:
      A key.

    Raises:
      TypeError: if the key is neither.

    Example:
      >>> fold_in(jax.random.key(0), 3).shape
      ()
    """
    if isinstance(key, crypto.ChaChaKey):
        return crypto.fold_in(key, data)
    return jax.random.fold_in(key, data)


def bits(key: Any, shape: tuple[int, ...]) -> Array:
    """Uniform uint32 words.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      shape: of the result.

    Returns:
      uint32 of that shape.

    Raises:
      TypeError: if the key is neither.

    Example:
      >>> bits(jax.random.key(0), (2, 3)).dtype
      dtype('uint32')
    """
    draw = crypto.bits if isinstance(key, crypto.ChaChaKey) else jax.random.bits
    return draw(key, shape, jnp.uint32)


def tails(key: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """A fair coin and a tail probability, uniform on (0, 1/2], of full relative precision.

    Numbers by inversion of a distribution function need both ends of the unit interval: there a
    float32 uniform has 2^24 values, so that what they give ends at 16.6 half-lives.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      shape: of the results.

    Returns:
      ``(upper, w)``: bool, and float32 ``w = (k + 1/2) / 2^64``, k a uniform number of 63 bits,
      rounded.

    Raises:
      TypeError: if the key is neither.

    Example:
      >>> upper, w = tails(jax.random.key(0), (1000,))
      >>> bool(((w > 0) & (w <= 0.5)).all())
      True
    """
    high, low = bits(key, (2, math.prod(shape)))
    upper, high = (high >> np.uint32(31)) == 1, high & np.uint32(0x7FFFFFFF)
    unit = np.float32(2.0**-32)
    w = high.astype(jnp.float32) * unit + (low.astype(jnp.float32) + np.float32(0.5)) * unit * unit
    return upper.reshape(shape), w.reshape(shape)


def exponential(key: Any, shape: tuple[int, ...]) -> Array:
    """Standard exponential numbers, both of whose tails are long (2^-65).

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      shape: of the result.

    Returns:
      float32 > 0 of that shape.

    Raises:
      TypeError: if the key is neither.

    Example:
      >>> bool((exponential(jax.random.key(0), (1000,)) > 0).all())
      True
    """
    upper, w = tails(key, shape)
    return jnp.where(upper, -jnp.log(w), -jnp.log1p(-w))


def gumbel(key: Any, shape: tuple[int, ...]) -> Array:
    """Standard Gumbel numbers, both of whose tails are long.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      shape: of the result.

    Returns:
      float32 of that shape.

    Raises:
      TypeError: if the key is neither.

    Example:
      >>> gumbel(jax.random.key(0), (3,)).shape
      (3,)
    """
    return -jnp.log(exponential(key, shape))


def order(key: Any, n: int) -> Array:
    """A uniform random order of n things, by sorting them by 64 random bits each.

    Two of them tie with probability below ``n^2 / 2^65``; then the first stays in front.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      n: how many.

    Returns:
      int32 ``[n]``.

    Raises:
      TypeError: if the key is neither.

    Example:
      >>> sorted(order(jax.random.key(0), 5).tolist())
      [0, 1, 2, 3, 4]
    """
    high, low = bits(key, (2, n))
    return jax.lax.sort((high, low, jnp.arange(n, dtype=jnp.int32)), num_keys=2)[2]
