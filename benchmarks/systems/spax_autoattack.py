"""spax itself: AutoAttack and its members."""

from functools import partial

import jax
import numpy as np

from benchmarks import victim
from benchmarks.systems import Job
from spax.evasion import apgd, apgd_targeted
from spax.evasion import autoattack as ensemble
from spax.evasion import square as squares

PACKAGES = ("spax", "jax", "jaxlib", "numpy")


def _job(path, batch_size, attack) -> Job:
    params, x, y = jax.device_put(victim.load(path, batch_size))
    compiled = jax.jit(
        lambda params, x, y, key: attack(lambda x: victim.apply_fn(params, x), x, y, key=key)
    )
    return Job(
        lambda seed: compiled(params, x, y, jax.random.key(seed)).block_until_ready(),
        lambda out: {"x_adv": np.asarray(out)},
    )


def apgd_ce(path, *, batch_size, eps, steps, **_) -> Job:
    return _job(path, batch_size, partial(apgd, eps=eps, steps=steps))


def apgd_t(path, *, batch_size, eps, steps, **_) -> Job:
    return _job(path, batch_size, partial(apgd_targeted, eps=eps, steps=steps))


def square(path, *, batch_size, eps, queries, reschedule, **_) -> Job:
    attack = partial(squares, eps=eps, steps=queries, reschedule=reschedule)
    return _job(path, batch_size, attack)


def autoattack(path, *, batch_size, eps, steps, queries, **_) -> Job:
    """Not jitted from outside: the survivors are packed between the attacks."""
    params, x, y = jax.device_put(victim.load(path, batch_size))
    model = jax.tree_util.Partial(victim.apply_fn, params)

    def run(seed):
        key = jax.random.key(seed)
        out = ensemble(
            model, x, y, key=key, eps=eps, steps=steps, queries=queries, return_info=True
        )
        return jax.block_until_ready(out)

    def read(out):
        x_adv, info = out
        return {"x_adv": np.asarray(x_adv), "broken_by": np.asarray(info.broken_by)}

    return Job(run, read)
