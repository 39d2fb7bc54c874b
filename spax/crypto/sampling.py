"""Secret polynomials and errors for lattice cryptography, from ChaCha20.

All samplers take the same number of random bits and the same steps whatever they draw. Use a key
for one draw: two samplers on one key would read the same stream (`spax.crypto.split` it).

References:
  M. Albrecht et al., Homomorphic Encryption Security Standard, 2018 (error of standard deviation
  3.2, ternary secrets).
"""

import decimal
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spax.crypto.chacha import ChaChaKey, bits
from spax.crypto.modular import (
    add_mod,
    check_primes,
    column,
    mul_shoup,
    once,
    ranked,
    rows_like,
    shoup,
)
from spax.typing import Array

__all__ = ["discrete_gaussian", "residues", "ternary", "uniform_mod"]

SIGMA = 3.2
_TAIL = 10  # standard deviations at which the distribution is cut off


def uniform_mod(key: ChaChaKey, shape: Sequence[int], q: Sequence[int]) -> Array:
    """Uniform residues: 96 random bits modulo each prime, within 2^-66 of uniform.

    Args:
      key: a single ChaChaKey, consumed.
      shape: ``[..., L, N]``.
      q: the L primes, static, below 2^30.

    Returns:
      uint32 of that shape.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey.
      ValueError: if the shape's rows are not as many as the primes.

    Example:
      >>> from spax.crypto import fresh_key
      >>> uniform_mod(fresh_key(), (1, 1000), (97,)).max() < 97
      Array(True, dtype=bool)
    """
    check_primes(q)
    words = bits(key, (3, *shape))
    q = rows_like(q, words)
    p = column(q)
    value = jnp.zeros(tuple(shape), jnp.uint32)
    radix = np.array([[2**32 % m] for m in q], np.uint32)
    one = np.ones_like(radix)
    for word in words:  # value * 2^32 + word
        high = once(mul_shoup(value, radix, shoup(radix, p), p), p)
        value = add_mod(high, once(mul_shoup(word, one, shoup(one, p), p), p), q)
    return value


def ternary(key: ChaChaKey, shape: Sequence[int]) -> Array:
    """Uniform on -1, 0 and 1, each from 64 random bits (within 2^-63 of uniform).

    Args:
      key: a single ChaChaKey, consumed.
      shape: of the result.

    Returns:
      int32 of that shape.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey.
    """
    high, low = bits(key, (2, *shape))
    three = np.uint32(3)  # and 2^32 is 1 modulo 3
    return ((high % three + low % three) % three).astype(jnp.int32) - 1


def discrete_gaussian(key: ChaChaKey, shape: Sequence[int], *, sigma: float = SIGMA) -> Array:
    """Integers with probability proportional to exp(-x^2 / 2 sigma^2), cut off at 10 sigma.

    By inversion: the magnitude is the number of thresholds that a 63-bit number surpasses; all
    thresholds are compared for every sample.

    Args:
      key: a single ChaChaKey, consumed.
      shape: of the result.
      sigma: the standard deviation's parameter, in (0, 50]; static.

    Returns:
      int32 of that shape.

    Guarantees:
      Within 2^-57 of the distribution in total variation: each threshold is rounded by 2^-63, and
      what is cut off weighs less than 1e-22.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey.
      ValueError: if sigma is out of range.
    """
    if not 0 < sigma <= 50:
        raise ValueError(f"sigma must be in (0, 50] (got sigma={sigma})")
    high, low = bits(key, (2, *shape))
    sign, high = high >> np.uint32(31), high & np.uint32(0x7FFFFFFF)

    def surpass(threshold: Array) -> Array:
        return (high > threshold[0]) | ((high == threshold[0]) & (low >= threshold[1]))

    def count(total: Array, threshold: Array) -> tuple[Array, None]:
        return total + surpass(threshold).astype(jnp.int32), None

    start = jnp.zeros_like(high, jnp.int32)
    magnitude, _ = jax.lax.scan(count, start, jnp.asarray(_thresholds(sigma)))
    return jnp.where(sign == 1, -magnitude, magnitude)


def residues(x: Array, q: Sequence[int]) -> Array:
    """Signed integers ``[..., N]``, smaller than each prime, as residues ``[..., L, N]``."""
    x = x[..., None, :]
    p = ranked(column(tuple(q)).astype(np.int32), x.ndim)
    return jnp.where(x < 0, x + p, x).astype(jnp.uint32)


@functools.cache
def _thresholds(sigma: float) -> np.ndarray:
    """``floor(2^63 P(|X| < k))`` for k = 1, 2, ...: uint32 ``[K, 2]``, high words first."""
    with decimal.localcontext(prec=50):
        variance = 2 * decimal.Decimal(sigma) ** 2
        weights = [(-(k**2) / variance).exp() for k in range(int(_TAIL * sigma) + 1)]
        weights = [weights[0], *(2 * w for w in weights[1:])]
        total, below, rows = sum(weights), decimal.Decimal(0), []
        for weight in weights[:-1]:
            below += weight
            rows.append(divmod(int(below / total * 2**63), 2**32))
    return np.array(rows, np.uint32)
