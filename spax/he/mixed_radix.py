"""Integers of many words, from their residues: digits of a mixed radix, all in uint32.

With primes q_0, q_1, ... an integer below their product is ``d_0 + d_1 q_0 + d_2 q_0 q_1 + ...``
with digits ``0 <= d_i < q_i`` (Garner's algorithm). Digits compare like ordinary ones, those of
``Q - 1 - x`` are ``q_i - 1 - d_i``, and so signs, magnitudes and residues modulo anything else
follow without arithmetic on words wider than 32 bits.

References:
  H. L. Garner, The residue number system, 1959; D. E. Knuth, The Art of Computer Programming,
  volume 2, section 4.3.2.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spax.crypto.modular import add_mod, column, mul_mod, once, ranked, reduce_int, sub_mod
from spax.typing import Array

__all__ = ["centred_digits", "digits", "log2_magnitude", "to_float", "to_residues"]


def digits(x: Array, q: Sequence[int]) -> Array:
    """Digits from residues: uint32 ``[..., L, N]``, least significant first, for residues so."""
    q = tuple(q)
    rows: list[Array] = []
    for i, prime in enumerate(q):
        # (...((x - d_0) / q_0 - d_1) / q_1 ...) modulo q_i
        row = x[..., i : i + 1, :]
        for j, digit in enumerate(rows):
            inverse = np.array([[pow(q[j], -1, prime)]], np.uint32)
            row = mul_mod(sub_mod(row, digit % np.uint32(prime), (prime,)), inverse, (prime,))
        rows.append(row)
    return jnp.concatenate(rows, axis=-2)


def centred_digits(x: Array, q: Sequence[int]) -> tuple[Array, Array]:
    """The sign, and the digits of the magnitude, of the representative nearest to zero.

    Args:
      x: residues, uint32 ``[..., L, N]``.
      q: the L primes.

    Returns:
      ``negative``, bool ``[..., N]``; and digits, uint32 ``[..., L, N]``, of x, or of ``-x - 1``
      where x is negative.
    """
    q = tuple(q)
    d = digits(x, q)
    half, above = math.prod(q) // 2, jnp.zeros(d.shape[:-2] + d.shape[-1:], bool)
    for i, prime in enumerate(q):  # from the least significant: later digits overrule
        threshold = np.uint32(half % prime)
        half //= prime
        above = (d[..., i, :] > threshold) | ((d[..., i, :] == threshold) & above)
    p = ranked(column(q), d.ndim)
    return above, jnp.where(above[..., None, :], p - np.uint32(1) - d, d)


def to_residues(negative: Array, magnitude: Array, q: Sequence[int], p: Sequence[int]) -> Array:
    """Signed integers in digits modulo other primes: uint32 ``[..., len(p), N]``."""
    q, p = tuple(q), tuple(p)
    total = jnp.zeros((*negative.shape[:-1], len(p), negative.shape[-1]), jnp.uint32)
    moduli, radix = ranked(column(p), magnitude.ndim), 1
    for i, prime in enumerate(q):
        digit = magnitude[..., i : i + 1, :] % moduli
        total = add_mod(total, mul_mod(digit, reduce_int(radix, p), p), p)
        radix *= prime
    # -(x + 1) where the sign is negative
    flipped = moduli - np.uint32(1) - total
    return jnp.where(negative[..., None, :], once(flipped, moduli), total)


def log2_magnitude(magnitude: Array, q: Sequence[int]) -> Array:
    """An upper bound of ``log2 |x|`` from the digits of `centred_digits`: float32 ``[..., N]``."""
    result, radix = jnp.zeros(magnitude.shape[:-2] + magnitude.shape[-1:]), 1
    for i, prime in enumerate(q):
        digit = magnitude[..., i, :]
        # Digits below the leading one add less than one to it.
        here = jnp.log2(digit.astype(jnp.float32) + 1) + np.float32(math.log2(radix))
        result = jnp.where(digit > 0, here, result)
        radix *= prime
    return result


def to_float(negative: Array, magnitude: Array, q: Sequence[int], scale: float) -> Array:
    """Signed integers over a scale, as float64 ``[..., N]``, within a 64-bit island."""
    with jax.enable_x64(True):
        total, radix = jnp.zeros(negative.shape, jnp.float64), 1
        for i, prime in enumerate(q):
            total = total + magnitude[..., i, :].astype(jnp.float64) * float(radix / scale)
            radix *= prime
        return jnp.where(negative, -total - 1 / scale, total)
