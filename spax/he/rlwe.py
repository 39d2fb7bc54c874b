"""Ring ciphertexts and the arithmetic that BGV and CKKS share.

A ciphertext is a few polynomials ``c_0, c_1, ...`` over ``Z_Q[X] / (X^n + 1)`` that hide a message
under a secret ternary polynomial s: ``c_0 + c_1 s + c_2 s^2 + ... = m + t e`` with a small error e
(t is 1 in CKKS, a plaintext prime in BGV). Polynomials are held as their values at the roots of
unity (see `spax.crypto.ntt`), so that sums and products are taken point by point.

An array of ciphertexts is one `Ciphertext` whose leaves have leading batch axes: it goes through
``jit``, ``vmap`` and ``lax.map``, and is indexed like an array. Its static fields say what it is;
operations compare them and raise while tracing. Its bound of the error, ``noise_log2``, plans
computations; decryption does not rely on it, but looks at the error itself.

What is protected: the message, from whoever lacks the secret key, under the hardness of ring
learning with errors at 128 bits (`RingSpec`). Not protected: plaintexts that are multiplied by; the
integrity of a ciphertext, which whoever holds it can alter (authenticate the transport); the key of
one who publishes decryptions of CKKS ciphertexts, which carry the error.

References:
  V. Lyubashevsky, C. Peikert, O. Regev, On Ideal Lattices and Learning with Errors over Rings,
  2010, eprint 2012/230.
  Z. Brakerski, C. Gentry, V. Vaikuntanathan, (Leveled) fully homomorphic encryption without
  bootstrapping, 2012, eprint 2011/277 (BGV).
  J. H. Cheon, A. Kim, M. Kim, Y. Song, Homomorphic Encryption for Arithmetic of Approximate
  Numbers, 2017, eprint 2016/421 (CKKS).
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import is_concrete
from spax.crypto.modular import add_mod, mul_mod, neg_mod, ranked, reduce_int
from spax.he.errors import LevelMismatch, ScaleMismatch, SpecMismatch, WrongKey
from spax.he.parameters import RingSpec
from spax.typing import Array

__all__ = [
    "Ciphertext",
    "Plaintext",
    "add",
    "add_plain",
    "check",
    "mul",
    "mul_plain",
    "mul_scalar",
    "neg",
    "square",
    "sub",
    "truncate",
]

_STATIC = {"static": True}
# Scales that differ by less do not matter beside the error.
_SCALES_APART = 2.0**-20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Ciphertext:
    """Encrypted polynomials, or an array of them.

    Attributes:
      c: uint32 ``[..., T, k, L, n]``: T channels (1 in CKKS), k components (2 when fresh, 3 after a
        product), L moduli left, n values.
      key_id: uint32 ``[..., 4]``: the name of the key, which is not secret.
      spec: the parameters.
      level: the number of moduli left, L.
      scale: in CKKS, what the numbers were multiplied by; 1 in BGV.
      factor: in BGV, what the numbers were multiplied by, modulo each plaintext prime.
      noise_log2: a bound of the error, in bits. BGV: of the coefficients of ``m + t e``. CKKS: of
        what is added to a slot, times the scale.
      message_log2: in CKKS, a bound of the slots times the scale, in bits; 0 in BGV.

    Example:
      >>> import jax.numpy as jnp
      >>> from spax import crypto, he
      >>> spec = he.bgv.ring(4096, limbs=3, channels=1)
      >>> first, second = crypto.split(crypto.fresh_key())
      >>> keys = he.keygen(key=first, spec=spec)
      >>> ct = he.encrypt_symmetric(keys.secret, he.bgv.encode(jnp.arange(5), spec), key=second)
      >>> he.bgv.decrypt(keys.secret, he.add(ct, ct)).value[0, :5]
      Array([0, 2, 4, 6, 8], dtype=int32)
    """

    c: Array
    key_id: Array
    spec: RingSpec = dataclasses.field(metadata=_STATIC)
    level: int = dataclasses.field(metadata=_STATIC)
    scale: float = dataclasses.field(default=1.0, metadata=_STATIC)
    factor: tuple[int, ...] = dataclasses.field(default=(1,), metadata=_STATIC)
    noise_log2: float = dataclasses.field(default=0.0, metadata=_STATIC)
    message_log2: float = dataclasses.field(default=0.0, metadata=_STATIC)

    @property
    def q(self) -> tuple[int, ...]:
        """The moduli left."""
        return self.spec.q[: self.level]

    @property
    def components(self) -> int:
        """How many polynomials it has; 2 when fresh."""
        return int(self.c.shape[-3])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array of ciphertexts; ``()`` for one."""
        return tuple(self.c.shape[:-4])

    @property
    def secure(self) -> bool:
        """Whether the parameters give 128 bits of security."""
        return not self.spec.insecure

    def __getitem__(self, index: Any) -> "Ciphertext":
        if not self.shape:
            raise TypeError("a single ciphertext cannot be indexed")
        return jax.tree.map(lambda leaf: leaf[index], self)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single ciphertext has no length")
        return self.shape[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Plaintext:
    """Encoded numbers, not encrypted: made by `spax.he.bgv.encode` or `spax.he.ckks.encode`.

    Attributes:
      p: uint32 ``[..., T, L, n]``, values at the roots of unity.
      spec: the parameters.
      level: the number of moduli, L.
      scale: in CKKS, what the numbers were multiplied by; 1 in BGV.
      message_log2: a bound of the slots (BGV: of the coefficients), in bits.
    """

    p: Array
    spec: RingSpec = dataclasses.field(metadata=_STATIC)
    level: int = dataclasses.field(metadata=_STATIC)
    scale: float = dataclasses.field(default=1.0, metadata=_STATIC)
    message_log2: float = dataclasses.field(default=0.0, metadata=_STATIC)


def check(ct: Any, *, scheme: str | None = None, components: int | None = None) -> Ciphertext:
    """Returns the ciphertext; raises unless its array is of the shape that its labels say.

    Raises:
      TypeError: if it is not a Ciphertext.
      ValueError: if its array's shape or type is another.
      SpecMismatch: if it is not of ``scheme``.
    """
    if not isinstance(ct, Ciphertext):
        raise TypeError(f"a Ciphertext is wanted (got {type(ct).__name__})")
    spec, shape = ct.spec, np.shape(ct.c)
    wanted = (len(spec.channels), components or shape[-3:-2], ct.level, spec.n)
    if (
        ct.c.dtype != np.uint32
        or len(shape) < 4
        or not 1 <= ct.level <= len(spec.q)
        or (shape[-4], *shape[-2:]) != (wanted[0], *wanted[2:])
        or shape[-3] < 2
        or np.shape(ct.key_id) != (*shape[:-4], 4)
    ):
        raise ValueError(
            f"a ciphertext of these parameters is uint32 [..., {wanted[0]}, k, {ct.level}, "
            f"{spec.n}] (got {ct.c.dtype} {shape}, key_id {np.shape(ct.key_id)})"
        )
    if components is not None and shape[-3] != components:
        raise ValueError(f"a ciphertext of {components} components is wanted (got {shape[-3]})")
    if scheme is not None and spec.scheme != scheme:
        raise SpecMismatch(f"a {scheme} ciphertext is wanted (got {spec.scheme})")
    return ct


def add(x: Ciphertext, y: Ciphertext) -> Ciphertext:
    """The sum of what two ciphertexts hide, slot by slot.

    Args:
      x: a ciphertext, or an array of them.
      y: another, of the same parameters, level, scale and key; batch axes broadcast.

    Returns:
      A ciphertext with as many components as the longer one.

    Raises:
      SpecMismatch, LevelMismatch, ScaleMismatch: if those differ.
      WrongKey: if the keys differ and are concrete. Traced ones give a ciphertext that no key
        decrypts.
    """
    key_id = _check_pair(x, y)
    c, d = _padded(x, y)
    return dataclasses.replace(
        x,
        c=add_mod(c, d, x.q),
        key_id=key_id,
        noise_log2=log_sum(x.noise_log2, y.noise_log2),
        message_log2=log_sum(x.message_log2, y.message_log2) if x.spec.scheme == "ckks" else 0.0,
    )


def sub(x: Ciphertext, y: Ciphertext) -> Ciphertext:
    """The difference of what two ciphertexts hide; see `add`."""
    return add(x, neg(y))


def neg(x: Ciphertext) -> Ciphertext:
    """The negative of what a ciphertext hides."""
    return dataclasses.replace(x, c=neg_mod(check(x).c, x.q))


def add_plain(x: Ciphertext, y: Plaintext) -> Ciphertext:
    """Adds encoded numbers.

    Args:
      x: a ciphertext, or an array of them, whose ``factor`` is 1.
      y: a plaintext of the same parameters, level and scale; batch axes broadcast.

    Returns:
      A ciphertext.

    Raises:
      SpecMismatch, LevelMismatch, ScaleMismatch: if those differ.
    """
    _check_plain(check(x), y)
    if abs(x.scale / y.scale - 1) > _SCALES_APART or set(x.factor) != {1}:
        raise ScaleMismatch(
            f"ciphertext and plaintext must have equal scales, and factor 1 (got {x.scale} and "
            f"{y.scale}, factor {x.factor})"
        )
    ckks = x.spec.scheme == "ckks"
    message = log_sum(x.message_log2, y.message_log2) if ckks else 0.0
    noise = log_sum(x.noise_log2, rounding_log2(x.spec) if ckks else y.message_log2)
    first = add_mod(x.c[..., 0, :, :], y.p, x.q)
    rest = jnp.broadcast_to(
        x.c[..., 1:, :, :], (*first.shape[:-2], x.components - 1, *first.shape[-2:])
    )
    c = jnp.concatenate([first[..., None, :, :], rest], axis=-3)
    key_id = jnp.broadcast_to(x.key_id, (*c.shape[:-4], 4))
    return dataclasses.replace(x, c=c, key_id=key_id, noise_log2=noise, message_log2=message)


def mul_plain(x: Ciphertext, y: Plaintext) -> Ciphertext:
    """Multiplies by encoded numbers, slot by slot; CKKS scales multiply.

    Args:
      x: a ciphertext, or an array of them.
      y: a plaintext of the same parameters and level; batch axes broadcast.

    Returns:
      A ciphertext.

    Raises:
      SpecMismatch, LevelMismatch: if those differ.
    """
    _check_plain(check(x), y)
    c = mul_mod(x.c, y.p[..., None, :, :], x.q)
    key_id = jnp.broadcast_to(x.key_id, (*c.shape[:-4], 4))
    if x.spec.scheme == "bgv":
        noise = x.noise_log2 + y.message_log2 + convolution_log2(x.spec)
        return dataclasses.replace(x, c=c, key_id=key_id, noise_log2=noise)
    noise, message = _product_ckks(
        (x.noise_log2, x.message_log2), (rounding_log2(x.spec), y.message_log2)
    )
    scale = x.scale * y.scale
    return dataclasses.replace(
        x, c=c, key_id=key_id, scale=scale, noise_log2=noise, message_log2=message
    )


def mul_scalar(x: Ciphertext, w: int) -> Ciphertext:
    """Multiplies all slots by one integer, at the cost of its size in noise and of no scale."""
    if isinstance(w, bool) or not isinstance(w, int | np.integer):
        raise TypeError(f"w must be a Python integer (got {w!r})")
    grown = math.log2(max(1, abs(int(w))))
    return dataclasses.replace(
        x,
        c=mul_mod(check(x).c, reduce_int(int(w), x.q), x.q),
        noise_log2=x.noise_log2 + grown,
        message_log2=x.message_log2 + grown if x.spec.scheme == "ckks" else 0.0,
    )


def mul(x: Ciphertext, y: Ciphertext) -> Ciphertext:
    """The product of what two ciphertexts hide, slot by slot.

    Args:
      x: a ciphertext of k components.
      y: one of k' components, of the same parameters, level and key; batch axes broadcast.

    Returns:
      A ciphertext of k + k' - 1 components (`spax.he.relinearise` brings it back to 2), whose
      scale (CKKS) or factor (BGV) is the product of theirs.

    Raises:
      SpecMismatch, LevelMismatch: if those differ.
      WrongKey: as `add`.
    """
    key_id = _check_pair(x, y, scales=False)
    terms = (
        (i + j, mul_mod(x.c[..., i, :, :], y.c[..., j, :, :], x.q))
        for i in range(x.components)
        for j in range(y.components)
    )
    return _product(x, y, _by_power(terms, x.q), key_id)


def square(x: Ciphertext) -> Ciphertext:
    """``mul(x, x)``, with each cross product taken once."""
    k = check(x).components
    twice = add_mod(x.c, x.c, x.q)
    terms = (
        (i + j, mul_mod(x.c[..., i, :, :], (x.c if i == j else twice)[..., j, :, :], x.q))
        for i in range(k)
        for j in range(i, k)
    )
    return _product(x, x, _by_power(terms, x.q), x.key_id)


def _by_power(terms: Iterable[tuple[int, Array]], q: tuple[int, ...]) -> Array:
    """Components from products of components, each with its power of s."""
    rows: dict[int, Array] = {}
    for power, term in terms:
        rows[power] = add_mod(rows[power], term, q) if power in rows else term
    return jnp.stack([rows[power] for power in sorted(rows)], axis=-3)


def truncate(x: Ciphertext, level: int) -> Ciphertext:
    """Forgets moduli, which changes neither message nor error, so that levels meet.

    Args:
      x: a ciphertext.
      level: the number of moduli to keep, at most its own.

    Raises:
      LevelMismatch: if it has fewer.
    """
    if not 1 <= level <= check(x).level:
        raise LevelMismatch(f"level must be in [1, {x.level}] (got level={level})")
    return dataclasses.replace(x, c=x.c[..., :level, :], level=level)


# Bounds of errors, in bits.

SPREAD = 8.0  # standard deviations that bound a coefficient or slot: 2^-45 lie outside


def log_sum(*bits: float) -> float:
    """``log2(2^a + 2^b + ...)``."""
    top = max(bits)
    return top + math.log2(math.fsum(2 ** (b - top) for b in bits))


def convolution_log2(spec: RingSpec) -> float:
    """What a product of polynomials adds to the bits of their coefficients: sqrt(n), and slack."""
    return 0.5 * math.log2(spec.n) + 2


def rounding_log2(spec: RingSpec) -> float:
    """What rounding an encoded polynomial's coefficients adds to a slot (CKKS)."""
    return math.log2(SPREAD) + 0.5 * math.log2(spec.n / 12)


def _product_ckks(x: tuple[float, float], y: tuple[float, float]) -> tuple[float, float]:
    (noise_x, message_x), (noise_y, message_y) = x, y
    return (
        log_sum(noise_x + message_y, noise_y + message_x, noise_x + noise_y),
        message_x + message_y,
    )


def _product(x: Ciphertext, y: Ciphertext, c: Array, key_id: Array) -> Ciphertext:
    if x.spec.scheme == "ckks":
        noise, message = _product_ckks(
            (x.noise_log2, x.message_log2), (y.noise_log2, y.message_log2)
        )
    else:
        noise, message = x.noise_log2 + y.noise_log2 + convolution_log2(x.spec), 0.0
    both = zip(x.factor, y.factor, x.spec.channels, strict=True)
    return dataclasses.replace(
        x,
        c=c,
        key_id=key_id,
        scale=x.scale * y.scale,
        factor=tuple(f * g % t for f, g, t in both) if x.spec.t else (1,),
        noise_log2=noise,
        message_log2=message,
    )


def _padded(x: Ciphertext, y: Ciphertext) -> tuple[Array, Array]:
    k = max(x.components, y.components)

    def pad(z: Ciphertext) -> Array:
        extra = [(0, 0)] * z.c.ndim
        extra[-3] = (0, k - z.components)
        return jnp.pad(z.c, extra)

    return pad(x), pad(y)


def _check_pair(x: Any, y: Any, *, scales: bool = True) -> Array:
    """The common key's name; raises unless the two fit."""
    check(x)
    check(y)
    if x.spec != y.spec:
        raise SpecMismatch(f"ciphertexts of different parameters (got {x.spec} and {y.spec})")
    if x.level != y.level:
        raise LevelMismatch(
            f"ciphertexts at different levels; truncate or rescale one (got {x.level}, {y.level})"
        )
    if scales and (abs(x.scale / y.scale - 1) > _SCALES_APART or x.factor != y.factor):
        raise ScaleMismatch(
            f"ciphertexts of different scales (got {x.scale} and {y.scale}, factors {x.factor} "
            f"and {y.factor})"
        )
    return same_key(x.key_id, y.key_id)


def same_key(x: Array, y: Array) -> Array:
    """The name of the key where two agree; zeros, which name no key, where traced ones do not."""
    ndim = max(x.ndim, y.ndim)
    x, y = ranked(x, ndim), ranked(y, ndim)
    if is_concrete((x, y)) and not bool(jnp.all(x == y)):
        raise WrongKey("ciphertexts of different keys cannot be combined")
    return jnp.where(jnp.all(x == y, axis=-1, keepdims=True), x, jnp.uint32(0))


def _check_plain(x: Ciphertext, y: Any) -> None:
    if not isinstance(y, Plaintext):
        raise TypeError(f"a Plaintext is wanted (got {type(y).__name__})")
    if x.spec != y.spec:
        raise SpecMismatch(f"parameters differ (got {x.spec} and {y.spec})")
    if x.level != y.level:
        raise LevelMismatch(f"levels differ; encode at level={x.level} (got {y.level})")
