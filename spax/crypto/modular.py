"""Arithmetic modulo primes below 2^30, in uint32 alone.

Residues are uint32 arrays ``[..., L, N]``, one row of N for each of L primes (a residue number
system), always reduced: ``0 <= x < q``. The primes are static. Products take the high half of a
32x32-bit product from four 16-bit ones, so that nothing here needs 64-bit types, and the same code
runs on CPU, GPU and TPU; all of it is free of branches and look-ups that depend on the data.

References:
  P. Barrett, Implementing the Rivest Shamir and Adleman public key encryption algorithm on a
  standard digital signal processor, CRYPTO 1986.
  D. Harvey, Faster arithmetic for number-theoretic transforms, 2014, arXiv:1205.2926, section 2
  (Shoup's multiplication by a constant).
"""

import functools
import math
from collections.abc import Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from spax.typing import Array

__all__ = [
    "add_mod",
    "check_primes",
    "column",
    "is_prime",
    "lift",
    "log2_product",
    "mul_mod",
    "mul_shoup",
    "neg_mod",
    "ntt_primes",
    "once",
    "ranked",
    "reduce_int",
    "rows_like",
    "shoup",
    "sub_mod",
]

Words = Array | np.ndarray
W = TypeVar("W", bound=Words)
LIMIT = 2**30  # four times a prime fits a word


def is_prime(number: int) -> bool:
    """Whether a number below 2^64 is prime (Miller-Rabin with bases that leave no doubt there)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if number < 2 or any(number % p == 0 for p in bases):
        return number in bases
    twos = ((number - 1) & (1 - number)).bit_length() - 1
    odd = (number - 1) >> twos
    for base in bases:
        x = pow(base, odd, number)
        if x in (1, number - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True


def ntt_primes(n: int, bits: int, count: int, *, skip: Sequence[int] = ()) -> tuple[int, ...]:
    """The largest primes of a width that are 1 modulo 2n, so that rings of degree n split.

    Args:
      n: the degree, a power of two.
      bits: their width, at most 30.
      count: how many.
      skip: primes that are not to be used, such as those already taken.

    Returns:
      ``count`` primes in falling order.

    Raises:
      ValueError: if n is no power of two, or there are not that many.

    Example:
      >>> ntt_primes(8192, 30, 3)
      (1073692673, 1073643521, 1073479681)
    """
    if n < 1 or n & (n - 1):
        raise ValueError(f"n must be a power of two (got n={n})")
    if not 2 <= bits <= 30:
        raise ValueError(f"bits must be in [2, 30] (got bits={bits})")
    found: list[int] = []
    candidate = (2**bits - 1) // (2 * n) * (2 * n) + 1
    while len(found) < count:
        if candidate <= 2 ** (bits - 1):
            raise ValueError(
                f"there are only {len(found)} primes of {bits} bits that are 1 modulo {2 * n} "
                f"(got count={count})"
            )
        if candidate < 2**bits and candidate not in skip and is_prime(candidate):
            found.append(candidate)
        candidate -= 2 * n
    return tuple(found)


def check_primes(q: Sequence[int], n: int | None = None) -> None:
    """Raises unless ``q`` are different primes below 2^30 (and 1 modulo 2n where n is given)."""
    q = tuple(q)
    if not q or not all(isinstance(p, int) and 2 < p < LIMIT and is_prime(p) for p in q):
        raise ValueError(f"moduli must be odd primes below 2**30 (got {q})")
    if len(set(q)) != len(q):
        raise ValueError(f"moduli must be different (got {q})")
    if n is not None and any(p % (2 * n) != 1 for p in q):
        raise ValueError(f"moduli must be 1 modulo 2n (got n={n}, {q})")


@functools.cache
def column(q: tuple[int, ...]) -> np.ndarray:
    """The primes as ``[L, 1]``, against which residues broadcast."""
    return np.array(q, np.uint32)[:, None]


@functools.cache
def _barrett(q: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each prime of k bits: k - 1, and floor(2^(k + 31) / q), which is below 2^32."""
    widths = [p.bit_length() for p in q]
    ratios = [2 ** (k + 31) // p for k, p in zip(widths, q, strict=True)]
    return np.array(widths, np.uint32)[:, None] - np.uint32(1), np.array(ratios, np.uint32)[:, None]


def rows_like(q: Sequence[int], x: Words) -> tuple[int, ...]:
    """The moduli as a tuple; raises unless ``x`` is uint32 with a row for each."""
    q = tuple(q)
    if x.dtype != np.uint32 or x.ndim < 2 or x.shape[-2] != len(q):
        raise ValueError(
            f"residues must be uint32 [..., {len(q)}, N], a row for each modulus "
            f"(got {x.dtype} {x.shape})"
        )
    return q


def ranked(x: W, ndim: int) -> W:
    """``x`` with axes of length one in front, so that it has as many as another."""
    reshaped: W = x.reshape((1,) * (ndim - x.ndim) + x.shape)  # type: ignore[assignment]
    return reshaped


def _high(a: Array, b: Words) -> Array:
    """The high 32 bits of a product of two words."""
    low16, shift = np.uint32(0xFFFF), np.uint32(16)
    a0, a1, b0, b1 = a & low16, a >> shift, b & low16, b >> shift
    middle = a1 * b0 + (a0 * b0 >> shift)
    return a1 * b1 + (middle >> shift) + ((a0 * b1 + (middle & low16)) >> shift)


def once(x: Words, q: Words) -> Array:
    """``x`` modulo q for x below 2q: of x and x - q, the one that has not wrapped around."""
    return jnp.minimum(x, x - ranked(q, x.ndim))


def _paired(x: Array, y: Words) -> tuple[Array, Words]:
    ndim = max(x.ndim, y.ndim)
    return ranked(x, ndim), ranked(y, ndim)


def add_mod(x: Array, y: Words, q: Sequence[int]) -> Array:
    """``x + y`` modulo each prime; uint32 ``[..., L, N]``, broadcasting."""
    x, y = _paired(x, y)
    return once(x + y, column(rows_like(q, x)))


def sub_mod(x: Array, y: Words, q: Sequence[int]) -> Array:
    """``x - y`` modulo each prime; uint32 ``[..., L, N]``, broadcasting."""
    x, y = _paired(x, y)
    difference = x - y
    p = ranked(column(rows_like(q, x)), x.ndim)
    return jnp.minimum(difference, difference + p)


def neg_mod(x: Array, q: Sequence[int]) -> Array:
    """``-x`` modulo each prime; uint32 ``[..., L, N]``."""
    p = column(rows_like(q, x))
    return once(ranked(p, x.ndim) - x, p)


def mul_mod(x: Array, y: Words, q: Sequence[int]) -> Array:
    """``x * y`` modulo each prime, by Barrett's reduction.

    Args:
      x: residues, uint32 ``[..., L, N]``, below their primes.
      y: likewise; the two broadcast.
      q: the L primes, static.

    Returns:
      The products, reduced.

    Raises:
      ValueError: if the rows are not as many as the primes, or not uint32.

    Example:
      >>> x = jnp.full((1, 4), 1073692672, jnp.uint32)  # -1
      >>> mul_mod(x, x, (1073692673,))
      Array([[1, 1, 1, 1]], dtype=uint32)

    References:
      Barrett 1986. With q of k bits, the quotient's estimate
      ``floor(floor(x y / 2^(k-1)) floor(2^(k+31) / q) / 2^32)`` is at most 2 short, so that the
      remainder is below 3 q, which fits a word as q < 2^30.
    """
    q = rows_like(q, x)
    x, y = _paired(x, y)
    p, shift, ratio = (ranked(c, x.ndim) for c in (column(q), *_barrett(q)))
    high, low = _high(x, y), x * y
    quotient = _high((high << (np.uint32(32) - shift)) | (low >> shift), ratio)
    return once(once(low - quotient * p, np.uint32(2) * p), p)


def lift(x: Array, prime: Words | np.uint32, q: Sequence[int]) -> Array:
    """Residues modulo one prime, as the signed integers nearest to zero, modulo others.

    Args:
      x: uint32 ``[..., 1, N]``, below ``prime``.
      prime: uint32, a scalar or what broadcasts to ``x``.
      q: the L primes, static.

    Returns:
      uint32 ``[..., L, N]``.
    """
    p = ranked(column(tuple(q)), x.ndim)
    lifted = x % p
    return jnp.where(x > prime // np.uint32(2), sub_mod(lifted, prime % p, q), lifted)


def shoup(w: np.ndarray, q: np.ndarray) -> np.ndarray:
    """``floor(w 2^32 / q)`` on the host: what `mul_shoup` wants beside a constant."""
    return ((w.astype(np.uint64) << np.uint64(32)) // q.astype(np.uint64)).astype(np.uint32)


def mul_shoup(x: Array, w: Words, w_shoup: Words, q: Words) -> Array:
    """``x * w`` modulo q up to one q: below 2q, for any word x and a constant w < q.

    Args:
      x: uint32, any words.
      w: uint32, the constant, below q.
      w_shoup: uint32, ``floor(w 2^32 / q)``, see `shoup`.
      q: uint32, the modulus, below 2^31; all four broadcast.

    Returns:
      uint32, congruent to ``x w`` and below 2q.

    References:
      Harvey 2014, arXiv:1205.2926, section 2.
    """
    w, w_shoup, q = (ranked(c, x.ndim) for c in (w, w_shoup, q))
    return x * w - _high(x, w_shoup) * q


def reduce_int(value: int | Sequence[int], q: Sequence[int]) -> np.ndarray:
    """Python integers, of any size and sign, modulo each prime: uint32 ``[L, 1]`` or ``[L, K]``."""
    values = [value] if isinstance(value, int) else list(value)
    return np.array([[v % p for v in values] for p in q], np.uint32)


def log2_product(q: Sequence[int]) -> float:
    """The width of the product of the moduli, in bits."""
    return math.fsum(math.log2(p) for p in q)
