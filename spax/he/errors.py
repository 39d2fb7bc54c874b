"""What encrypted computation refuses, each with its own name."""

__all__ = [
    "InsecureParameters",
    "LevelMismatch",
    "MissingRotation",
    "NoLevelsLeft",
    "NoiseExhausted",
    "PlaintextOverflow",
    "ScaleMismatch",
    "SpecMismatch",
    "WrongKey",
]


class InsecureParameters(ValueError):
    """The parameters give less than 128 bits of security."""


class SpecMismatch(ValueError):
    """Ciphertexts, keys or plaintexts of different parameters or schemes."""


class LevelMismatch(ValueError):
    """Operands with different numbers of moduli left."""


class ScaleMismatch(ValueError):
    """Operands whose scales, or plaintext factors, differ."""


class NoLevelsLeft(ValueError):
    """A modulus is to be dropped where only one is left."""


class PlaintextOverflow(ValueError):
    """A value, or a proven bound of a result, does not fit the space of plaintexts."""


class MissingRotation(ValueError):
    """The evaluation key has no entry for the rotation."""


class WrongKey(ValueError):
    """The ciphertext was made for another key."""


class NoiseExhausted(ValueError):
    """The noise has grown over what still decrypts: the result is unknown."""
