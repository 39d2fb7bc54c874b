"""CKKS: approximate arithmetic on encrypted real numbers, n / 2 slots at a time.

Numbers are multiplied by a scale and rounded; products multiply scales, `spax.he.drop` divides by
a prime of about the scale. The error of encryption joins that of rounding.

A decryption contains the error. Whoever sees exact decryptions together with the ciphertexts can
solve for the key (Li and Micciancio 2021): results stay with the key's holder.

References:
  J. H. Cheon, A. Kim, M. Kim, Y. Song, Homomorphic Encryption for Arithmetic of Approximate
  Numbers, 2017, eprint 2016/421.
  B. Li, D. Micciancio, On the Security of Homomorphic Encryption on Approximate Numbers, 2021,
  eprint 2020/1533.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import is_concrete
from spax.crypto.modular import column, ntt_primes, ranked
from spax.crypto.ntt import ntt
from spax.he.decryption import Decrypted, open_up, raise_unless_ok
from spax.he.errors import PlaintextOverflow, SpecMismatch
from spax.he.keys import SecretKey
from spax.he.mixed_radix import to_float
from spax.he.parameters import RingSpec
from spax.he.rlwe import Ciphertext, Plaintext, check
from spax.typing import Array

__all__ = ["decrypt", "decrypt_or_raise", "encode", "ring"]


def ring(
    n: int = 8192,
    *,
    bits: Sequence[int] = (30, 26, 26, 26, 26, 26, 26),
    special: int | None = 30,
    insecure: bool = False,
) -> RingSpec:
    """Parameters with the largest primes of given widths.

    Args:
      n: the degree, twice the number of slots.
      bits: the widths of the chain's primes, the first dropped last: its width beyond the scale's
        is room for the integer part of results.
      special: the width of the special prime, at least the widest of ``bits``; None: no
        relinearisation and no rotation.
      insecure: see `RingSpec`.

    Returns:
      The parameters.

    Raises:
      InsecureParameters: see `RingSpec`.
      ValueError: if there are not that many primes.

    Example:
      >>> ring().bits, ring().slots
      (216, 4096)
    """
    taken: list[int] = []
    if special is not None:
        taken += ntt_primes(n, special, 1)
    for width in bits:
        taken += ntt_primes(n, width, 1, skip=taken)
    q = tuple(taken[special is not None :])
    return RingSpec(n, q, taken[0] if special is not None else None, insecure=insecure)


def encode(
    z: Array | np.ndarray,
    spec: RingSpec,
    *,
    scale: float,
    level: int | None = None,
    bound: float | None = None,
) -> Plaintext:
    """Puts numbers into slots.

    Args:
      z: real or complex ``[..., m]`` with m <= n / 2; missing slots are zero.
      spec: the parameters, without plaintext primes.
      scale: what they are multiplied by before rounding; static.
      level: how many moduli; None: all.
      bound: a bound of the magnitudes, static; None: theirs where they are concrete, else 1.

    Returns:
      A plaintext.

    Raises:
      ValueError: on too many slots, NaN, or a scale that is not positive.
      PlaintextOverflow: if a number times the scale is above 2^52, or a concrete one above bound.
      SpecMismatch: if the parameters are BGV's.
      LevelMismatch: if there are fewer moduli than ``level``.

    References:
      Cheon et al. 2017, section 2.2 and 3.2: the inverse of the canonical embedding, slot j at the
      root with exponent 5^j.
    """
    if spec.t:
        raise SpecMismatch(f"these are parameters of integers (got t={spec.t})")
    if np.ndim(z) < 1 or np.shape(z)[-1] > spec.slots:
        raise ValueError(f"z must be [..., m] with m <= {spec.slots} (got {np.shape(z)})")
    if not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise ValueError(f"scale must be a positive number (got scale={scale!r})")
    bound = _bound(z, bound)
    if bound * scale > 2.0**52:
        raise PlaintextOverflow(
            f"numbers times the scale must be below 2^52, where doubles are exact "
            f"(got {bound:g} times {scale:g})"
        )
    q, n = spec.moduli(level), spec.n
    with jax.enable_x64(True):
        z = jnp.asarray(z, jnp.complex128)
        index = _places(n)
        values = jnp.zeros((*z.shape[:-1], n), jnp.complex128)
        values = values.at[..., index[: z.shape[-1]]].set(z)
        values = values.at[..., n - 1 - index[: z.shape[-1]]].set(jnp.conj(z))
        coefficients = jnp.fft.fft(values) / n * ranked(np.conj(_twist(n)), values.ndim)
        rounded = jnp.round(jnp.real(coefficients) * scale).astype(jnp.int64)
        rounded = rounded[..., None, None, :]
        residues = (rounded % ranked(column(q).astype(np.int64), rounded.ndim)).astype(jnp.uint32)
    message = math.log2(max(bound * scale, 1.0))
    return Plaintext(ntt(residues, q), spec, len(q), float(scale), message)


@jax.jit
def decrypt(sk: SecretKey, ct: Ciphertext) -> Decrypted:
    """The real numbers that a ciphertext hides, if they can still be known.

    Args:
      sk: the secret key.
      ct: a ciphertext, or an array of them.

    Returns:
      ``(value, ok, budget_bits)``: value float32 ``[..., n / 2]``, the slots' real parts.

    Guarantees:
      ``ok`` is decided by the coefficients themselves, which must be below a quarter of the
      modulus. Under a wrong key, or altered at random, they are uniform: all n pass with
      probability 2^-n. Then value is NaN. Noise that drowns the message without reaching the
      modulus cannot be told from a message: ``ct.noise_log2 - log2(ct.scale)`` bounds the error of
      each slot, in bits.

    Raises:
      SpecMismatch: if key and ciphertext are of different parameters, or not CKKS's.

    References:
      Cheon et al. 2017, section 3.4.
    """
    n = check(ct, scheme="ckks").spec.n
    negative, magnitude, ok, budget = open_up(sk, ct)
    coefficients = to_float(negative, magnitude, ct.q, ct.scale)[..., 0, :]
    with jax.enable_x64(True):
        values = jnp.fft.ifft(coefficients * ranked(_twist(n), coefficients.ndim)) * n
        real = jnp.real(values[..., _places(n)]).astype(jnp.float32)
    return Decrypted(jnp.where(ok[..., None], real, jnp.nan), ok, budget)


def decrypt_or_raise(sk: SecretKey, ct: Ciphertext) -> np.ndarray:
    """`decrypt` on the host; raises where it is not ok.

    Returns:
      float32 ``[..., n / 2]``.

    Raises:
      WrongKey: if the ciphertext is named after another key.
      NoiseExhausted: if the coefficients are too large, or the ciphertext was altered.
    """
    found = decrypt(sk, ct)
    raise_unless_ok(sk, ct, found)
    return np.asarray(found.value)


def _bound(z: Array | np.ndarray, bound: float | None) -> float:
    if not is_concrete(z):
        return 1.0 if bound is None else float(bound)
    largest = float(np.max(np.abs(np.asarray(z)), initial=0.0))
    if not math.isfinite(largest):
        raise ValueError("z must be finite (got NaN or infinite values)")
    if bound is not None and largest > bound:
        raise PlaintextOverflow(f"numbers must be within bound (got {largest:g} > {bound:g})")
    return largest if bound is None else float(bound)


@functools.cache
def _twist(n: int) -> np.ndarray:
    """``exp(i pi k / n)``: with it an FFT of length n evaluates at the odd powers of the root."""
    return np.exp(1j * np.pi * np.arange(n) / n)


@functools.cache
def _places(n: int) -> np.ndarray:
    """Value j of that FFT is at exponent 2j + 1: where the slots' exponents 5^j stand."""
    powers = np.array([pow(5, j, 2 * n) for j in range(n // 2)])
    return (powers - 1) // 2
