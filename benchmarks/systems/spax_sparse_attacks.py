"""spax's attacks that change few entries."""

from functools import partial

import jax
import numpy as np

from benchmarks import victim
from benchmarks.systems import Job
from spax.evasion import ead, jsma

PACKAGES = ("spax", "jax", "jaxlib", "numpy")


def _job(attack, params, x, y) -> Job:
    compiled = jax.jit(lambda params, x, y: attack(lambda x: victim.apply_fn(params, x), x, y))
    return Job(
        lambda _: compiled(params, x, y).block_until_ready(),
        lambda out: {"x_adv": np.asarray(out)},
    )


def elastic_net(path, *, batch_size, **settings) -> Job:
    return _job(partial(ead, **settings), *jax.device_put(victim.load(path, batch_size)))


def saliency_map(path, *, batch_size, **settings) -> Job:
    params, x, y = victim.load(path, batch_size)
    target = victim.next_class(y)
    return _job(partial(jsma, **settings), *jax.device_put((params, x, target)))
