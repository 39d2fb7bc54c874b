"""Cryptographic building blocks: secure randomness in arrays."""

from spax.crypto.chacha import (
    ChaChaKey,
    bits,
    chacha20_block,
    fold_in,
    fresh_key,
    normal,
    split,
    uniform,
)

__all__ = [
    "ChaChaKey",
    "bits",
    "chacha20_block",
    "fold_in",
    "fresh_key",
    "normal",
    "split",
    "uniform",
]
