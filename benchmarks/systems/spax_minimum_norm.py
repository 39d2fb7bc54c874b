"""spax itself: the minimum-norm attacks DeepFool and FAB."""

from functools import partial

import jax
import numpy as np

from benchmarks import victim
from benchmarks.systems import Job
from spax.evasion import deepfool, fab

PACKAGES = ("spax", "jax", "jaxlib", "numpy")


def _job(attack, path, batch_size) -> Job:
    params, x, y = jax.device_put(victim.load(path, batch_size))
    compiled = jax.jit(lambda params, x, y: attack(lambda x: victim.apply_fn(params, x), x, y))
    return Job(
        lambda _: compiled(params, x, y).block_until_ready(),
        lambda out: {"x_adv": np.asarray(out)},
    )


def deepfool_l2(path, *, batch_size, **settings) -> Job:
    return _job(partial(deepfool, norm="l2", **settings), path, batch_size)


def fab_linf(path, *, batch_size, **settings) -> Job:
    """Without a radius: one run tells the accuracy at all of them."""
    return _job(partial(fab, norm="linf", **settings), path, batch_size)
