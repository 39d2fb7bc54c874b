"""Dropping moduli, and switching keys: relinearisation and rotation.

References:
  Z. Brakerski, C. Gentry, V. Vaikuntanathan, 2012, eprint 2011/277, section 4 (modulus switching).
  J. H. Cheon, A. Kim, M. Kim, Y. Song, 2017, eprint 2016/421 (rescaling).
  K. Han, D. Ki, 2020, eprint 2019/688, section 3 (switching with a digit for each prime).
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.crypto.modular import add_mod, lift, mul_mod
from spax.crypto.ntt import intt, ntt
from spax.crypto.sampling import SIGMA
from spax.he.errors import MissingRotation, NoLevelsLeft, SpecMismatch
from spax.he.keys import EvaluationKey, automorphism, galois, times
from spax.he.parameters import RingSpec
from spax.he.rlwe import SPREAD, Ciphertext, check, log_sum, same_key
from spax.typing import Array

__all__ = ["conjugate", "drop", "relinearise", "rotate"]


def drop(ct: Ciphertext) -> Ciphertext:
    """Divides by the last modulus and drops it: the error shrinks by as much, down to a floor.

    In CKKS this is rescaling: the scale is divided, exactly as its bookkeeping says. In BGV what is
    divided is congruent to the same message times the modulus's inverse modulo t, which ``factor``
    keeps.

    Args:
      ct: a ciphertext, or an array of them. The floor grows by sqrt(n / 1.5) with each component
        above two: drop moduli after `relinearise`.

    Returns:
      The ciphertext one level lower.

    Raises:
      NoLevelsLeft: if it has one modulus.

    Example:
      >>> import jax.numpy as jnp
      >>> from spax import crypto, he
      >>> spec = he.ckks.ring(4096, bits=(30, 26))
      >>> keys = he.keygen(key=crypto.fresh_key(), spec=spec)
      >>> m = he.ckks.encode(jnp.array([0.5]), spec, scale=2.0**50)
      >>> ct = he.drop(he.encrypt_symmetric(keys.secret, m, key=crypto.fresh_key()))
      >>> ct.level, bool(abs(he.ckks.decrypt(keys.secret, ct).value[0] - 0.5) < 1e-3)
      (1, True)

    References:
      Brakerski, Gentry and Vaikuntanathan 2012, section 4; Cheon et al. 2017, section 3.3.
    """
    spec, level = check(ct).spec, ct.level
    if level < 2:
        raise NoLevelsLeft("the last modulus cannot be dropped (got level=1)")
    last, q = ct.q[-1], ct.q[:-1]
    c = _divide(ct.c, q, last, spec)
    gained = math.log2(last)
    return dataclasses.replace(
        ct,
        c=c,
        level=level - 1,
        scale=ct.scale / last if spec.scheme == "ckks" else 1.0,
        factor=tuple(f * pow(last, -1, t) % t for f, t in zip(ct.factor, spec.t, strict=True))
        if spec.t
        else (1,),
        noise_log2=log_sum(ct.noise_log2 - gained, _floor_log2(spec, ct.components)),
        message_log2=ct.message_log2 - gained if spec.scheme == "ckks" else 0.0,
    )


def _divide(c: Array, q: tuple[int, ...], last: int, spec: RingSpec) -> Array:
    """``(c + t d) / last`` for the small d that makes it an integer; c is ``[..., T, k, L, n]``."""
    # d = -c / t modulo the last prime, centred
    inverse = np.array([[[[-pow(t, -1, last) % last]]] for t in spec.channels], np.uint32)
    d = mul_mod(intt(c[..., -1:, :], (last,)), inverse, (last,))
    multiple = mul_mod(ntt(lift(d, np.uint32(last), q), q), times(spec, q)[:, None], q)
    total = add_mod(c[..., :-1, :], multiple, q)
    return mul_mod(total, np.array([[pow(last, -1, p)] for p in q], np.uint32), q)


def relinearise(ct: Ciphertext, evk: EvaluationKey) -> Ciphertext:
    """Brings a product back to two components.

    Args:
      ct: a ciphertext, or an array of them.
      evk: made by `keygen` with a special prime, and ``components`` at least the ciphertext's.

    Returns:
      A ciphertext of two components, of the same message.

    Raises:
      SpecMismatch: if the key is of other parameters.
      ValueError: if the key has nothing for that many components.
      WrongKey: if the key is another's, where concrete.

    References:
      Han and Ki 2020, section 3.
    """
    _check_key(ct, evk)
    if ct.components == 2:
        return ct
    if ct.components - 2 > len(evk.powers):
        raise ValueError(
            f"the evaluation key relinearises up to {len(evk.powers) + 2} components "
            f"(got {ct.components}); keygen(components=...) with a special prime makes more"
        )
    c, noise = ct.c[..., :2, :, :], ct.noise_log2
    for i in range(2, ct.components):
        c = add_mod(c, _switch(ct.c[..., i, :, :], evk.powers[i - 2], ct), ct.q)
        noise = log_sum(noise, switching_log2(ct.spec, ct.level))
    key_id = same_key(ct.key_id, evk.key_id)
    return dataclasses.replace(ct, c=c, key_id=key_id, noise_log2=noise)


def rotate(ct: Ciphertext, steps: int, evk: EvaluationKey) -> Ciphertext:
    """Rotates the slots to the left: slot i holds afterwards what slot ``i + steps`` held.

    Args:
      ct: a ciphertext of two components, or an array of them.
      steps: static; in CKKS modulo n / 2, in BGV both rows of n / 2 slots rotate.
      evk: made by `keygen` with these ``rotations``.

    Returns:
      A ciphertext of two components.

    Raises:
      MissingRotation: if the key has no entry for it.
      SpecMismatch, ValueError, WrongKey: as `relinearise`.
    """
    return _turn(ct, galois(steps, ct.spec), evk, f"a rotation by {steps}")


def conjugate(ct: Ciphertext, evk: EvaluationKey) -> Ciphertext:
    """Conjugates complex slots (CKKS), or exchanges the two rows of slots (BGV); see `rotate`."""
    return _turn(ct, 2 * ct.spec.n - 1, evk, "conjugation")


def _turn(ct: Ciphertext, g: int, evk: EvaluationKey, what: str) -> Ciphertext:
    _check_key(ct, evk)
    check(ct, components=2)
    if g == 1:
        return ct
    if g not in evk.rotations:
        raise MissingRotation(f"the evaluation key has no entry for {what}; ask keygen for it")
    c = ct.c[..., automorphism(g, ct.spec.n)]
    switched = _switch(c[..., 1, :, :], evk.rotations[g], ct)
    first = add_mod(switched[..., 0, :, :], c[..., 0, :, :], ct.q)
    return dataclasses.replace(
        ct,
        c=jnp.stack([first, switched[..., 1, :, :]], axis=-3),
        key_id=same_key(ct.key_id, evk.key_id),
        noise_log2=log_sum(ct.noise_log2, switching_log2(ct.spec, ct.level)),
    )


def _switch(d: Array, key: Array, ct: Ciphertext) -> Array:
    """Two components under s that hide ``d s'``, where the key encrypts ``P s'`` digit by digit."""
    spec, level = ct.spec, ct.level
    assert spec.special is not None
    q = (*ct.q, spec.special)
    rows = jnp.moveaxis(intt(d, ct.q), -2, 0)[..., None, :]  # [digits, ..., T, 1, n]
    primes = jnp.asarray(ct.q, jnp.uint32)
    keep = (*range(level), len(spec.q))

    def add_digit(total: Array, item: tuple[Array, Array, Array]) -> tuple[Array, None]:
        digit, prime, entry = item
        lifted = lift(digit, prime, q)  # centred, which halves the noise
        term = mul_mod(ntt(lifted, q)[..., None, :, :], entry[:, :, keep, :], q)
        return add_mod(total, term, q), None

    start = jnp.zeros((*d.shape[:-2], 2, len(q), spec.n), jnp.uint32)
    total, _ = lax.scan(add_digit, start, (rows, primes, key[:level]))
    return _divide(total, ct.q, spec.special, spec)


def _check_key(ct: Ciphertext, evk: EvaluationKey) -> None:
    check(ct)
    if not isinstance(evk, EvaluationKey):
        raise TypeError(f"evk must be an EvaluationKey (got {type(evk).__name__})")
    if evk.spec != ct.spec:
        raise SpecMismatch(f"key and ciphertext differ (got {evk.spec} and {ct.spec})")


def _in_slots(spec: RingSpec) -> float:
    """From bits of an error's coefficients to those that its scheme counts in."""
    return math.log2(max(spec.t)) if spec.t else 0.5 * math.log2(spec.n)


def _floor_log2(spec: RingSpec, components: int) -> float:
    """What rounding each component by at most a half adds: ``sum_j r_j s^j``."""
    n = spec.n
    variance = 1 / 12 + math.fsum(
        n / 12 * math.factorial(j) * n ** (j - 1) * (2 / 3) ** j for j in range(1, components)
    )
    return math.log2(SPREAD) + 0.5 * math.log2(variance) + _in_slots(spec)


def switching_log2(spec: RingSpec, level: int) -> float:
    """What switching a key adds."""
    assert spec.special is not None
    errors = 0.5 * math.log2(level * spec.n / 12) + math.log2(max(spec.q) / spec.special)
    return log_sum(math.log2(SPREAD * SIGMA) + errors + _in_slots(spec), _floor_log2(spec, 2))
