"""The number-theoretic transform: multiplication of polynomials modulo X^N + 1 and primes.

A polynomial modulo ``(X^N + 1, q)`` with ``q = 1 mod 2N`` is determined by its values at the N odd
powers of a primitive 2N-th root of unity; in values, multiplication is one product a point.

References:
  P. Longa, M. Naehrig, Speeding up the Number Theoretic Transform for Faster Ideal Lattice-Based
  Cryptography, 2016, eprint 2016/504, algorithms 1 and 2.
  D. Harvey, Faster arithmetic for number-theoretic transforms, 2014, arXiv:1205.2926.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax.crypto.modular import check_primes, column, mul_shoup, once, ranked, rows_like, shoup
from spax.typing import Array

__all__ = ["exponents", "intt", "ntt"]


@functools.partial(jax.jit, static_argnames="q")
def ntt(x: Array, q: Sequence[int]) -> Array:
    """The values of polynomials at the odd powers of a root of unity, in bit-reversed order.

    Args:
      x: coefficients, uint32 ``[..., L, N]`` below their primes; N a power of two.
      q: the L primes, static, each below 2^30 and 1 modulo 2N.

    Returns:
      uint32 ``[..., L, N]``: entry i is the value at ``psi^e[i]``, where psi is the 2N-th root
      fixed for the prime and e are the `exponents`.

    Raises:
      ValueError: on another dtype or shape, or moduli that do not allow the transform.

    Example:
      >>> from spax.crypto.modular import mul_mod
      >>> q = (12289,)
      >>> x = jnp.zeros((1, 8), jnp.uint32).at[0, 7].set(1)  # X^7, squared: X^14 = -X^6
      >>> intt(mul_mod(ntt(x, q), ntt(x, q), q), q)[0]
      Array([    0,     0,     0,     0,     0,     0, 12288,     0], dtype=uint32)

    References:
      Longa and Naehrig 2016, algorithm 1 (Cooley and Tukey's butterflies with the powers of psi
      folded in), with Harvey's lazy reduction: values stay below 4q between stages.
    """
    tables = _tables(rows_like(q, x), x.shape[-1])
    p = ranked(column(tuple(q))[..., None], x.ndim + 1)
    twice = np.uint32(2) * p
    for stage in range(x.shape[-1].bit_length() - 1):
        blocks = 1 << stage
        w, w_shoup = (t[:, blocks : 2 * blocks, None] for t in (tables.w, tables.w_shoup))
        y = x.reshape(*x.shape[:-1], blocks, 2, -1)
        even = once(y[..., 0, :], twice)
        odd = mul_shoup(y[..., 1, :], w, w_shoup, p)
        y = jnp.stack([even + odd, even - odd + twice], axis=-2)
        x = y.reshape(x.shape)
    return once(once(x, twice[..., 0]), p[..., 0])


@functools.partial(jax.jit, static_argnames="q")
def intt(x: Array, q: Sequence[int]) -> Array:
    """The coefficients of polynomials from their values: `ntt` undone.

    Args:
      x: values in the order of `ntt`, uint32 ``[..., L, N]`` below their primes.
      q: the L primes, static.

    Returns:
      Coefficients, uint32 ``[..., L, N]``.

    Raises:
      ValueError: as `ntt`.

    References:
      Longa and Naehrig 2016, algorithm 2 (Gentleman and Sande's butterflies).
    """
    tables = _tables(rows_like(q, x), x.shape[-1])
    p = ranked(column(tuple(q))[..., None], x.ndim + 1)
    twice = np.uint32(2) * p
    for stage in reversed(range(x.shape[-1].bit_length() - 1)):
        blocks = 1 << stage
        w, w_shoup = (t[:, blocks : 2 * blocks, None] for t in (tables.v, tables.v_shoup))
        y = x.reshape(*x.shape[:-1], blocks, 2, -1)
        even, odd = y[..., 0, :], y[..., 1, :]
        total = once(even + odd, twice)
        y = jnp.stack([total, mul_shoup(even - odd + twice, w, w_shoup, p)], axis=-2)
        x = y.reshape(x.shape)
    return once(mul_shoup(x, tables.n_inverse, tables.n_shoup, p[..., 0]), p[..., 0])


def exponents(n: int) -> np.ndarray:
    """The odd exponents e of the points at which `ntt` evaluates, in its order: int64 ``[N]``."""
    return 2 * _bit_reversed(n) + 1


class _Tables(NamedTuple):
    w: np.ndarray  # powers of psi, bit-reversed, [L, N]
    w_shoup: np.ndarray
    v: np.ndarray  # those of its inverse
    v_shoup: np.ndarray
    n_inverse: np.ndarray  # [L, 1]
    n_shoup: np.ndarray


@functools.cache
def _tables(q: tuple[int, ...], n: int) -> _Tables:
    if n < 2 or n & (n - 1):
        raise ValueError(f"N must be a power of two, at least 2 (got N={n})")
    check_primes(q, n)
    p = column(q)
    order = _bit_reversed(n)
    roots = [_root(m, n) for m in q]
    w = np.stack([_powers(r, n, m)[order] for r, m in zip(roots, q, strict=True)])
    v = np.stack([_powers(pow(r, -1, m), n, m)[order] for r, m in zip(roots, q, strict=True)])
    inverse = np.array([pow(n, -1, m) for m in q], np.uint32)[:, None]
    return _Tables(w, shoup(w, p), v, shoup(v, p), inverse, shoup(inverse, p))


def _root(q: int, n: int) -> int:
    """The 2n-th root of unity from the smallest base that gives a primitive one."""
    for base in range(2, q):
        root = pow(base, (q - 1) // (2 * n), q)
        if pow(root, n, q) == q - 1:
            return root
    raise AssertionError("a prime that is 1 modulo 2n has such a root")


def _powers(base: int, n: int, q: int) -> np.ndarray:
    powers = np.ones(n, np.uint64)
    for i in range(1, n):
        powers[i] = int(powers[i - 1]) * base % q
    return powers.astype(np.uint32)


def _bit_reversed(n: int) -> np.ndarray:
    order = np.zeros(n, np.int64)
    for i in range(n.bit_length() - 1):
        order = order | (np.arange(n) >> i & 1) << (n.bit_length() - 2 - i)
    return order
