"""Parameters of ring encryption, and the security that they give.

References:
  M. Albrecht et al., Homomorphic Encryption Security Standard, 2018, table 1 (ternary secret,
  classical attacker, 128 bits).
  J.-P. Bossuat et al., Security Guidelines for Implementing Homomorphic Encryption, 2024, eprint
  2024/463.
"""

import dataclasses
import math

from spax.crypto.modular import check_primes, log2_product
from spax.he.errors import InsecureParameters, LevelMismatch

__all__ = ["GUIDELINES_2024", "HES_2018", "RingSpec"]

# The widest modulus, in bits, that leaves 128 bits of security, by the ring's degree. The last two
# rows extend the standard's table as public libraries do.
HES_2018 = {
    1024: 27,
    2048: 54,
    4096: 109,
    8192: 218,
    16384: 438,
    32768: 881,
    65536: 1747,
    131072: 3523,
}
GUIDELINES_2024 = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}

_TABLES = {"hes_2018": HES_2018, "guidelines_2024": GUIDELINES_2024}


@dataclasses.dataclass(frozen=True)
class RingSpec:
    """A ring ``Z[X] / (X^n + 1)``, the chain of moduli, and the spaces of plaintexts.

    Static and hashable: it travels with every key and ciphertext, which are compared by it.

    Attributes:
      n: the degree, a power of two: n slots of integers, or n / 2 of real numbers.
      q: the chain of ciphertext primes, below 2^30 and 1 modulo 2n, dropped from the last.
      special: the prime that switching keys use besides; None: keys can't be switched
        (no relinearisation, no rotation).
      t: primes of the spaces of integers (BGV), 1 modulo 2n, each a channel of its own: results
        are known modulo their product. Empty for approximate numbers (CKKS).
      security: the table that bounds the modulus: "hes_2018" or "guidelines_2024".
      insecure: True permits moduli over the table's bound, for tests: a ciphertext made with it is
        not ``secure``.

    Raises:
      InsecureParameters: if the modulus (with the special prime) is wider than the table allows,
        or the degree is not in it, unless ``insecure``.
      ValueError: on moduli that are not different primes of the form wanted.

    Example:
      >>> from spax.crypto.modular import ntt_primes
      >>> RingSpec(4096, ntt_primes(4096, 30, 3)).bits
      90
      >>> RingSpec(4096, ntt_primes(4096, 30, 4))
      Traceback (most recent call last):
        ...
      spax.he.errors.InsecureParameters: a modulus of at most 109 bits leaves 128 bits of security
      at n = 4096 (got 120 bits); insecure=True permits it, for tests
    """

    n: int
    q: tuple[int, ...]
    special: int | None = None
    t: tuple[int, ...] = ()
    security: str = "hes_2018"
    insecure: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 4 or self.n & (self.n - 1):
            raise ValueError(f"n must be a power of two, at least 4 (got n={self.n!r})")
        if self.security not in _TABLES:
            raise ValueError(
                f"security must be one of {sorted(_TABLES)} (got security={self.security!r})"
            )
        check_primes(self.all_primes, self.n)
        if self.t:
            check_primes(self.t, self.n)
            if set(self.t) & set(self.all_primes):
                raise ValueError(f"plaintext primes must differ from the moduli (got t={self.t})")
        if self.special is not None and self.special < max(self.q):
            raise ValueError(
                "the special prime must not be below the others, or switching keys adds noise "
                f"(got special={self.special}, largest {max(self.q)})"
            )
        limit = _TABLES[self.security].get(self.n, 0)
        if not self.insecure and self.bits > limit:
            raise InsecureParameters(
                f"a modulus of at most {limit} bits leaves 128 bits of security at n = {self.n} "
                f"(got {self.bits} bits); insecure=True permits it, for tests"
            )

    @property
    def all_primes(self) -> tuple[int, ...]:
        """The chain, and the special prime after it."""
        return self.q if self.special is None else (*self.q, self.special)

    def moduli(self, level: int | None = None) -> tuple[int, ...]:
        """The first ``level`` primes of the chain; None: all. Raises LevelMismatch beyond them."""
        if level is not None and not 1 <= level <= len(self.q):
            raise LevelMismatch(f"level must be in [1, {len(self.q)}] (got level={level})")
        return self.q[:level]

    @property
    def bits(self) -> int:
        """The width of the whole modulus, special prime included, in bits, rounded up."""
        return math.ceil(log2_product(self.all_primes) - 1e-9)

    @property
    def scheme(self) -> str:
        """``"bgv"`` (integers) where there are plaintext primes, else ``"ckks"``."""
        return "bgv" if self.t else "ckks"

    @property
    def channels(self) -> tuple[int, ...]:
        """The numbers that errors are multiples of, one a channel; 1 for CKKS."""
        return self.t or (1,)

    @property
    def slots(self) -> int:
        """How many numbers a plaintext holds."""
        return self.n if self.t else self.n // 2
