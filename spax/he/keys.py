"""Keys of ring encryption, and encryption itself: what a client runs.

References:
  V. Lyubashevsky, C. Peikert, O. Regev, 2010, eprint 2012/230.
  Z. Brakerski, C. Gentry, V. Vaikuntanathan, 2012, eprint 2011/277.
  K. Han, D. Ki, Better Bootstrapping for Approximate Homomorphic Encryption, 2020, eprint 2019/688
  (switching keys with a digit for each prime and a special prime).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_count
from spax.crypto.chacha import ChaChaKey, bits, split
from spax.crypto.modular import add_mod, mul_mod, neg_mod, ranked, reduce_int
from spax.crypto.ntt import exponents, ntt
from spax.crypto.sampling import SIGMA, discrete_gaussian, residues, ternary, uniform_mod
from spax.he.errors import SpecMismatch
from spax.he.parameters import RingSpec
from spax.he.rlwe import SPREAD, Ciphertext, Plaintext, log_sum, rounding_log2
from spax.typing import Array

__all__ = [
    "EvaluationKey",
    "Keys",
    "PublicKey",
    "SecretKey",
    "Seeded",
    "encrypt",
    "encrypt_seeded",
    "encrypt_symmetric",
    "expand",
    "galois",
    "keygen",
    "phase",
]

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SecretKey:
    """The secret polynomial: decrypts. Printing never shows it, pickling and copying raise.

    Attributes:
      s: uint32 ``[L, n]``, values at the roots of unity, for the chain and the special prime.
      key_id: uint32 ``[4]``, the key's name, which is not secret.
      spec: the parameters.
    """

    s: Array
    key_id: Array
    spec: RingSpec = dataclasses.field(metadata=_STATIC)

    def __repr__(self) -> str:
        return f"SecretKey(<secret>, spec={self.spec})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretKey is secret and is never pickled or copied")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PublicKey:
    """Encrypts, and decrypts nothing.

    Attributes:
      b: uint32 ``[T, L, n]``: ``-a s + t e``.
      a: uint32 ``[T, L, n]``: uniform.
      key_id: uint32 ``[4]``, the key's name.
      spec: the parameters.
    """

    b: Array
    a: Array
    key_id: Array
    spec: RingSpec = dataclasses.field(metadata=_STATIC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationKey:
    """What a server needs to relinearise products and to rotate slots; decrypts nothing.

    Attributes:
      powers: uint32 ``[D, T, 2, L + 1, n]`` for each of s^2, s^3, ...: D digits, one a prime.
      rotations: the same, by Galois element g, for ``s(X^g)``.
      key_id: uint32 ``[4]``, the key's name.
      spec: the parameters.
    """

    powers: tuple[Array, ...]
    rotations: dict[int, Array]
    key_id: Array
    spec: RingSpec = dataclasses.field(metadata=_STATIC)


class Keys(NamedTuple):
    """What `keygen` makes: one part for each who needs it."""

    secret: SecretKey
    public: PublicKey
    evaluation: EvaluationKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Seeded:
    """A fresh ciphertext whose uniform half is a seed of 32 bytes: half as much to send.

    Attributes:
      c0: uint32 ``[..., T, L, n]``.
      seed: uint32 ``[8]``; public.
      key_id: uint32 ``[4]``, the key's name.
      spec, level, scale, noise_log2, message_log2: as of the `Ciphertext` that `expand` gives.
    """

    c0: Array
    seed: Array
    key_id: Array
    spec: RingSpec = dataclasses.field(metadata=_STATIC)
    level: int = dataclasses.field(metadata=_STATIC)
    scale: float = dataclasses.field(default=1.0, metadata=_STATIC)
    noise_log2: float = dataclasses.field(default=0.0, metadata=_STATIC)
    message_log2: float = dataclasses.field(default=0.0, metadata=_STATIC)


def galois(steps: int, spec: RingSpec) -> int:
    """The element g for which X -> X^g rotates slots by ``steps`` to the left."""
    return pow(5, steps % (spec.n // 2), 2 * spec.n)


@functools.partial(jax.jit, static_argnames=("spec", "components", "rotations", "conjugation"))
def keygen(
    *,
    key: ChaChaKey,
    spec: RingSpec,
    components: int = 3,
    rotations: tuple[int, ...] = (),
    conjugation: bool = False,
) -> Keys:
    """A secret key and what is published beside it.

    Args:
      key: a single ChaChaKey, consumed.
      spec: the parameters.
      components: products of up to this many components can be relinearised; 2: none. Without a
        special prime there is nothing to relinearise with, whatever is asked.
      rotations: a tuple of the steps by which slots can be rotated; needs a special prime.
      conjugation: whether CKKS slots can be conjugated (BGV: the two rows of slots exchanged).

    Returns:
      ``(secret, public, evaluation)``. The secret is uniform on -1, 0, 1; errors are discrete
      Gaussians of standard deviation 3.2.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey, such as a ``jax.random`` key.
      ValueError: if rotations are asked of parameters without a special prime.

    Example:
      >>> from spax import crypto, he
      >>> keys = he.keygen(key=crypto.fresh_key(), spec=he.ckks.ring(4096, bits=(30, 26)))
      >>> keys.secret  # doctest: +ELLIPSIS
      SecretKey(<secret>, spec=RingSpec(n=4096, ...

    References:
      Lyubashevsky, Peikert and Regev 2010; ``-a s + t e`` as in Brakerski, Gentry and
      Vaikuntanathan 2012; switching keys as in Han and Ki 2020, section 3.
    """
    check_count("components", components, 2)
    if spec.special is None and (rotations or conjugation):
        raise ValueError("rotations need a special prime (got spec.special=None)")
    secret_key, name_key, public_key, powers_key, rotations_key = split(key, 5)
    q, n, channels = spec.all_primes, spec.n, len(spec.channels)
    s = ntt(residues(ternary(secret_key, (n,)), q), q)
    secret = SecretKey(s, bits(name_key, (4,)), spec)
    noise_key, uniform_key = split(public_key)
    a = uniform_mod(uniform_key, (channels, len(spec.q), n), spec.q)
    b = _masked(a, s[: len(spec.q)], spec, spec.q, key=noise_key)
    public = PublicKey(b, a, secret.key_id, spec)
    powers: list[Array] = []
    elements = {galois(r, spec) for r in rotations} | ({2 * n - 1} if conjugation else set())
    if spec.special is not None:
        power = s
        for child in split(powers_key, max(1, components - 2))[: components - 2]:
            power = mul_mod(power, s, q)
            powers.append(_switching_key(child, power, s, spec))
    children = split(rotations_key, max(1, len(elements)))
    turned = {
        g: _switching_key(children[i], s[:, automorphism(g, n)], s, spec)
        for i, g in enumerate(sorted(elements))
    }
    return Keys(secret, public, EvaluationKey(tuple(powers), turned, secret.key_id, spec))


def automorphism(g: int, n: int) -> np.ndarray:
    """Where the values of a(X^g) stand among those of a(X), in the order of the transform."""
    e = exponents(n)
    place = np.empty(2 * n, np.int64)
    place[e] = np.arange(n)
    return place[e * g % (2 * n)]


def _switching_key(key: ChaChaKey, source: Array, s: Array, spec: RingSpec) -> Array:
    """Encryptions of ``P source``, in the i-th digit modulo the i-th prime only."""
    q, digits = spec.all_primes, len(spec.q)
    noise_key, uniform_key = split(key)
    a = uniform_mod(uniform_key, (digits, len(spec.channels), len(q), spec.n), q)
    b = _masked(a, s, spec, q, key=noise_key)
    assert spec.special is not None
    message = mul_mod(source, reduce_int(spec.special, q), q)
    chosen = np.eye(digits, len(q), dtype=np.uint32)[:, None, :, None]
    return jnp.stack([add_mod(b, ranked(message, 4) * chosen, q), a], axis=-3)


def _errors(key: ChaChaKey, shape: tuple[int, ...], spec: RingSpec, q: tuple[int, ...]) -> Array:
    """``t e`` in values, for each channel: ``[*shape, T, L, n]``."""
    e = discrete_gaussian(key, (*shape, len(spec.channels), spec.n))
    return mul_mod(ntt(residues(e, q), q), times(spec, q), q)


def _masked(a: Array, s: Array, spec: RingSpec, q: tuple[int, ...], *, key: ChaChaKey) -> Array:
    """``-a s + t e``: what the secret takes away again; uint32 ``[..., T, L, n]``."""
    return add_mod(neg_mod(mul_mod(a, s, q), q), _errors(key, a.shape[:-3], spec, q), q)


def times(spec: RingSpec, q: tuple[int, ...]) -> np.ndarray:
    """Each channel's t modulo each prime: uint32 ``[T, L, 1]``."""
    return reduce_int(spec.channels, q).T[:, :, None]


def encrypt(pk: PublicKey, m: Plaintext, *, key: ChaChaKey) -> Ciphertext:
    """Encrypts with the public key.

    Args:
      pk: the public key.
      m: what `spax.he.bgv.encode` or `spax.he.ckks.encode` gave; an array of plaintexts gives an
        array of ciphertexts.
      key: a single ChaChaKey, consumed: never use one for two encryptions.

    Returns:
      A ciphertext of two components, ``(b u + t e_0 + m, a u + t e_1)`` with a ternary u.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey.
      SpecMismatch: if key and plaintext are of different parameters.

    References:
      Lyubashevsky, Peikert and Regev 2010.
    """
    if not isinstance(pk, PublicKey):
        raise TypeError(f"pk must be a PublicKey (got {type(pk).__name__})")
    spec, q = _specs(pk.spec, m), m.spec.q[: m.level]
    u_key, e_key, f_key = split(key, 3)
    batch, level = m.p.shape[:-3], m.level
    u = ntt(residues(ternary(u_key, (*batch, len(spec.channels), spec.n)), q), q)
    c0 = add_mod(mul_mod(u, pk.b[:, :level], q), _errors(e_key, batch, spec, q), q)
    c1 = add_mod(mul_mod(u, pk.a[:, :level], q), _errors(f_key, batch, spec, q), q)
    c = jnp.stack([add_mod(c0, m.p, q), c1], axis=-3)
    error = math.log2(SPREAD * SIGMA) + 0.5 * math.log2(4 * spec.n / 3 + 1)
    factor = (1,) * len(spec.channels)
    labels = _labels(m, error)
    return Ciphertext(c, _named(pk.key_id, batch), spec, level, factor=factor, **labels)


def encrypt_symmetric(sk: SecretKey, m: Plaintext, *, key: ChaChaKey) -> Ciphertext:
    """Encrypts with the secret key: less noise than `encrypt`, by a factor sqrt(4n/3 + 1).

    Args:
      sk: the secret key.
      m: a plaintext, or an array of them.
      key: a single ChaChaKey, consumed: never use one for two encryptions.

    Returns:
      A ciphertext of two components, ``(-a s + t e + m, a)``.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey.
      SpecMismatch: if key and plaintext are of different parameters.
    """
    return _whole(*_symmetric(sk, m, key))


def encrypt_seeded(sk: SecretKey, m: Plaintext, *, key: ChaChaKey) -> Seeded:
    """`encrypt_symmetric` for sending: `expand` gives the ciphertext.

    The seed is public and tells nothing of the other draws of the key (see `spax.crypto.split`).
    """
    return _symmetric(sk, m, key)[0]


def _symmetric(sk: SecretKey, m: Plaintext, key: ChaChaKey) -> tuple[Seeded, Array]:
    """What is sent, and the uniform half that its seed stands for."""
    if not isinstance(sk, SecretKey):
        raise TypeError(f"sk must be a SecretKey (got {type(sk).__name__})")
    spec, q = _specs(sk.spec, m), m.spec.q[: m.level]
    seed, noise_key = split(key)
    a = uniform_mod(seed, m.p.shape, q)
    c0 = add_mod(_masked(a, sk.s[: m.level], spec, q, key=noise_key), m.p, q)
    labels = _labels(m, math.log2(SPREAD * SIGMA))
    return Seeded(c0, seed.words, sk.key_id, spec, m.level, **labels), a


def expand(ct: Seeded) -> Ciphertext:
    """The whole of a ciphertext that was sent with a seed; the server's side."""
    if not isinstance(ct, Seeded):
        raise TypeError(f"a Seeded is wanted (got {type(ct).__name__})")
    spec = ct.spec
    if ct.c0.dtype != np.uint32 or ct.c0.shape[-3:] != (len(spec.channels), ct.level, spec.n):
        raise ValueError(
            f"c0 must be uint32 [..., {len(spec.channels)}, {ct.level}, {spec.n}] "
            f"(got {ct.c0.dtype} {ct.c0.shape})"
        )
    return _whole(ct, uniform_mod(ChaChaKey(ct.seed), ct.c0.shape, spec.q[: ct.level]))


def _whole(ct: Seeded, a: Array) -> Ciphertext:
    return Ciphertext(
        jnp.stack([ct.c0, a], axis=-3),
        _named(ct.key_id, ct.c0.shape[:-3]),
        ct.spec,
        ct.level,
        ct.scale,
        (1,) * len(ct.spec.channels),
        ct.noise_log2,
        ct.message_log2,
    )


def phase(sk: SecretKey, ct: Ciphertext) -> Array:
    """``c_0 + c_1 s + c_2 s^2 + ...`` in values, uint32 ``[..., T, L, n]``: message and error."""
    if sk.spec != ct.spec:
        raise SpecMismatch(f"key and ciphertext differ (got {sk.spec} and {ct.spec})")
    s, q = sk.s[: ct.level], ct.q
    total = ct.c[..., -1, :, :]
    for i in reversed(range(ct.components - 1)):
        total = add_mod(mul_mod(total, s, q), ct.c[..., i, :, :], q)
    return total


def _named(key_id: Array, batch: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(key_id, (*batch, 4))


def _specs(spec: RingSpec, m: Any) -> RingSpec:
    if not isinstance(m, Plaintext):
        raise TypeError(f"m must be a Plaintext: encode it (got {type(m).__name__})")
    if spec != m.spec:
        raise SpecMismatch(f"key and plaintext differ (got {spec} and {m.spec})")
    return spec


def _labels(m: Plaintext, error_log2: float) -> dict[str, Any]:
    """The static fields of a fresh ciphertext, from the bits of its error's coefficients."""
    spec = m.spec
    if spec.scheme == "bgv":
        return {"noise_log2": log_sum(m.message_log2, math.log2(max(spec.t)) + error_log2)}
    noise = log_sum(error_log2 + 0.5 * math.log2(spec.n), rounding_log2(spec))
    return {"scale": m.scale, "noise_log2": noise, "message_log2": m.message_log2}
