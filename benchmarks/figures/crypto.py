"""Throughput of the cipher."""

import jax

import spax
from benchmarks.figures.common import KEY, median_seconds


def measure():
    """Throughput of the cipher's bits, beside JAX's generator."""
    shape = (1 << 22,)
    draws = {
        "chacha": (jax.jit(lambda key: spax.crypto.bits(key, shape)), spax.crypto.fresh_key()),
        "threefry": (jax.jit(lambda key: jax.random.bits(key, shape)), KEY),
    }
    return {"bits": {name: megabytes_a_second(*draw, 4 * shape[0]) for name, draw in draws.items()}}


def megabytes_a_second(draw, key, size):
    """By the median time."""
    return round(size / median_seconds(lambda: draw(key)) / 1e6)
