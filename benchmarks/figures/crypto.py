"""Throughput of the cipher."""

import time

import jax
import numpy as np

import spax
from benchmarks.figures.common import KEY


def measure():
    """Throughput of the cipher's bits, beside JAX's generator."""
    shape = (1 << 22,)
    draws = {
        "chacha": (jax.jit(lambda key: spax.crypto.bits(key, shape)), spax.crypto.fresh_key()),
        "threefry": (jax.jit(lambda key: jax.random.bits(key, shape)), KEY),
    }
    return {"bits": {name: megabytes_a_second(*draw, 4 * shape[0]) for name, draw in draws.items()}}


def megabytes_a_second(draw, key, size, repetitions=15):
    """By the median time."""
    jax.block_until_ready(draw(key))
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(draw(key))
        seconds.append(time.perf_counter() - start)
    return round(size / float(np.median(seconds)) / 1e6)
