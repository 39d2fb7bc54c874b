"""BGV: exact arithmetic on encrypted integers modulo a prime, n slots at a time.

Integers are centred residues modulo each of the spec's plaintext primes (channels): with several,
results are known modulo their product (`join`). Whether a computation stays below that cannot be
seen from a ciphertext; bound it first.

References:
  Z. Brakerski, C. Gentry, V. Vaikuntanathan, (Leveled) fully homomorphic encryption without
  bootstrapping, 2012, eprint 2011/277.
  N. P. Smart, F. Vercauteren, Fully homomorphic SIMD operations, 2014, eprint 2011/133 (slots).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import is_concrete
from spax.crypto.modular import column, lift, mul_mod, ntt_primes, ranked
from spax.crypto.ntt import exponents, intt, ntt
from spax.he.decryption import Decrypted, open_up, raise_unless_ok
from spax.he.errors import PlaintextOverflow, SpecMismatch
from spax.he.keys import SecretKey
from spax.he.mixed_radix import to_residues
from spax.he.parameters import RingSpec
from spax.he.rlwe import Ciphertext, Plaintext, check
from spax.typing import Array

__all__ = ["decrypt", "decrypt_or_raise", "encode", "join", "ring"]

POISON = np.iinfo(np.int32).min


def ring(
    n: int = 8192,
    *,
    limbs: int = 7,
    channels: int = 4,
    bits: int = 30,
    plain_bits: int = 20,
    special: bool = False,
    insecure: bool = False,
) -> RingSpec:
    """Parameters with the largest primes of a width.

    Args:
      n: the degree, and the number of slots.
      limbs: the number of ciphertext primes.
      channels: the number of plaintext primes.
      bits: the width of the ciphertext primes, at most 30.
      plain_bits: the width of the plaintext primes; of 20 bits there are five at n = 8192.
      special: whether there is a special prime, without which there is no relinearisation and no
        rotation.
      insecure: see `RingSpec`.

    Returns:
      The parameters.

    Raises:
      InsecureParameters: see `RingSpec`.
      ValueError: if there are not that many primes.

    Example:
      >>> ring().bits, ring().slots
      (210, 8192)
    """
    t = ntt_primes(n, plain_bits, channels)
    q = ntt_primes(n, bits, limbs + special, skip=t)
    return RingSpec(n, q[special:], q[0] if special else None, t, insecure=insecure)


def encode(v: Array | np.ndarray, spec: RingSpec, *, level: int | None = None) -> Plaintext:
    """Puts integers into slots.

    Args:
      v: of any integer type (NumPy's 64-bit ones on the host) ``[..., m]`` with m <= n; missing
        slots are zero. Taken modulo each plaintext prime: of the representatives, those nearest to
        zero are meant.
      spec: the parameters, with plaintext primes.
      level: how many moduli; None: all.

    Returns:
      A plaintext.

    Raises:
      ValueError: on another type or too many slots.
      PlaintextOverflow: if a concrete number is not below half the product of the primes.
      SpecMismatch: if the parameters are CKKS's.
      LevelMismatch: if there are fewer moduli than ``level``.

    Example:
      >>> encode(jnp.array([1, -2, 3]), ring(4096, limbs=3, channels=2)).p.shape
      (2, 3, 4096)
    """
    if not spec.t:
        raise SpecMismatch("these parameters have no plaintext primes (got t=())")
    q = spec.moduli(level)
    v = v if isinstance(v, jax.Array) else np.asarray(v)
    if not jnp.issubdtype(v.dtype, jnp.integer):
        raise ValueError(f"v must be of an integer type (got {v.dtype})")
    if v.ndim < 1 or v.shape[-1] > spec.n:
        raise ValueError(f"v must be [..., m] with m <= {spec.n} slots (got {v.shape})")
    half = math.prod(spec.t) // 2
    if is_concrete(v) and v.size and max(abs(int(v.max())), abs(int(v.min()))) > half:
        raise PlaintextOverflow(f"numbers must be within {half} (got {int(v.min())} to {v.max()})")
    residues = _modulo(v[..., None, :], spec.t)
    slots = jnp.zeros((*v.shape[:-1], len(spec.t), spec.n), jnp.uint32)
    slots = slots.at[..., _places(spec.n)[: v.shape[-1]]].set(residues)
    coefficients = intt(slots, spec.t)[..., None, :]
    lifted = lift(coefficients, ranked(column(spec.t)[..., None], coefficients.ndim), q)
    return Plaintext(ntt(lifted, q), spec, len(q), message_log2=math.log2(max(spec.t) / 2))


def _modulo(v: Array | np.ndarray, t: tuple[int, ...]) -> Array:
    """Integers ``[..., 1, m]`` modulo each prime: on the host, before JAX narrows wide ones."""
    if is_concrete(v):
        wide = np.asarray(v).astype(object if v.dtype == np.uint64 else np.int64)
        return jnp.asarray((wide % ranked(column(t).astype(np.int64), v.ndim)).astype(np.uint32))
    word = jnp.uint32 if v.dtype == jnp.uint32 else jnp.int32
    return (v.astype(word) % ranked(column(t), v.ndim).astype(word)).astype(jnp.uint32)


@jax.jit
def decrypt(sk: SecretKey, ct: Ciphertext) -> Decrypted:
    """The integers that a ciphertext hides, if they can still be known.

    Args:
      sk: the secret key.
      ct: a ciphertext, or an array of them.

    Returns:
      ``(value, ok, budget_bits)``: value int32 ``[..., T, n]``, centred modulo each plaintext
      prime (`join` makes integers of them); the rest ``[...]``.

    Guarantees:
      ``ok`` is decided by the size of ``m + t e`` itself, which must be below a quarter of the
      modulus in each coefficient. Under a wrong key, after too much noise, or where the ciphertext
      was altered at random, coefficients are uniform: all n pass with probability 2^-n. Then value
      is the most negative int32 everywhere, budget_bits is not positive.

    Raises:
      SpecMismatch: if key and ciphertext are of different parameters, or not BGV's.

    References:
      Brakerski, Gentry and Vaikuntanathan 2012, section 3; Smart and Vercauteren 2014.
    """
    spec = check(ct, scheme="bgv").spec
    negative, magnitude, ok, budget = open_up(sk, ct)
    row = ranked(column(spec.t), magnitude.ndim - 1)
    coefficients = jnp.stack(
        [
            to_residues(negative[..., i, :], magnitude[..., i, :, :], ct.q, (t,))[..., 0, :]
            for i, t in enumerate(spec.t)
        ],
        axis=-2,
    )
    undo = np.array([[pow(f, -1, t)] for f, t in zip(ct.factor, spec.t, strict=True)], np.uint32)
    slots = mul_mod(ntt(coefficients, spec.t), undo, spec.t)[..., _places(spec.n)]
    centred = jnp.where(
        slots > row // 2, slots.astype(jnp.int32) - row.astype(np.int32), slots.astype(jnp.int32)
    )
    return Decrypted(jnp.where(ok[..., None, None], centred, POISON), ok, budget)


def decrypt_or_raise(sk: SecretKey, ct: Ciphertext) -> np.ndarray:
    """`decrypt` on the host, joined to integers; raises where it is not ok.

    Returns:
      Integers ``[..., n]``, see `join`.

    Raises:
      WrongKey: if the ciphertext is named after another key.
      NoiseExhausted: if the error is too large, or the ciphertext was altered.
    """
    found = decrypt(sk, ct)
    raise_unless_ok(sk, ct, found)
    return join(found.value, ct.spec.t)


def join(value: Array, t: Sequence[int]) -> np.ndarray:
    """Integers from their centred residues modulo several primes, on the host.

    Args:
      value: int32 ``[..., T, n]``, as `decrypt` gives.
      t: the T primes.

    Returns:
      The representatives nearest to zero modulo their product, ``[..., n]``: int64 where the
      product is below 2^63, else Python integers (object).

    Raises:
      ValueError: if a residue is the mark of a failed decryption.
    """
    residues = np.asarray(value)
    if (residues == POISON).any():
        raise ValueError("value holds marks of a failed decryption (got ok=False)")
    product = math.prod(t)
    total = np.zeros(residues[..., 0, :].shape, object)
    for i, prime in enumerate(t):
        rest = product // prime
        weight = rest * pow(rest, -1, prime)
        total = total + residues[..., i, :].astype(object) * weight
    total = (total + product // 2) % product - product // 2
    return total.astype(np.int64) if product < 2**63 else total


@functools.cache
def _places(n: int) -> np.ndarray:
    """Where the slots stand among the values: 5^j for the first row, -5^j for the second."""
    place = np.empty(2 * n, np.int64)
    place[exponents(n)] = np.arange(n)
    powers = np.array([pow(5, j, 2 * n) for j in range(n // 2)])
    return np.concatenate([place[powers], place[2 * n - powers]])
