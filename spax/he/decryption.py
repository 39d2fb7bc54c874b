"""What BGV and CKKS share of decryption: looking at the error before anything is believed."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from spax.crypto.modular import log2_product, ranked
from spax.crypto.ntt import intt
from spax.he.errors import NoiseExhausted, WrongKey
from spax.he.keys import SecretKey, phase
from spax.he.mixed_radix import centred_digits, log2_magnitude
from spax.he.rlwe import Ciphertext
from spax.typing import Array

__all__ = ["Decrypted", "Opened", "open_up", "raise_unless_ok"]


class Decrypted(NamedTuple):
    """What decryption found.

    Attributes:
      value: the numbers; where ``ok`` is False the most negative int32 (BGV), NaN (CKKS).
      ok: bool ``[...]``, whether the error left the message intact.
      budget_bits: float32 ``[...]``, how many bits the error may still have grown; <= 0: none.
    """

    value: Array
    ok: Array
    budget_bits: Array


class Opened(NamedTuple):
    """Message and error together, in mixed-radix digits, and whether they can be believed."""

    negative: Array
    magnitude: Array
    ok: Array
    budget_bits: Array


def open_up(sk: SecretKey, ct: Ciphertext) -> Opened:
    """Takes the key off; ok where all coefficients are below a quarter of the modulus."""
    negative, magnitude = centred_digits(intt(phase(sk, ct), ct.q), ct.q)
    size = jnp.max(log2_magnitude(magnitude, ct.q), axis=(-2, -1))
    budget = np.float32(log2_product(ct.q) - 2) - size
    named = jnp.all(_named_alike(sk, ct), axis=-1)
    budget_bits = jnp.where(named, budget, jnp.minimum(budget, 0))
    return Opened(negative, magnitude, named & (budget > 0), budget_bits)


def raise_unless_ok(sk: SecretKey, ct: Ciphertext, found: Decrypted) -> None:
    """Raises WrongKey or NoiseExhausted for what is not ok; on the host."""
    if not bool(jnp.all(_named_alike(sk, ct))):
        raise WrongKey("the ciphertext was made for another key")
    if not bool(jnp.all(found.ok)):
        raise NoiseExhausted(
            "the error is too large to decrypt, or the ciphertext was altered "
            f"(got {int(jnp.sum(~found.ok))} of {found.ok.size} ciphertexts)"
        )


def _named_alike(sk: SecretKey, ct: Ciphertext) -> Array:
    return ct.key_id == ranked(sk.key_id, ct.key_id.ndim)
