"""spax's attacks on decisions."""

from functools import partial

import jax
import numpy as np

from benchmarks import victim
from benchmarks.systems import Job, other_class
from spax.evasion import boundary, hop_skip_jump

PACKAGES = ("spax", "jax", "jaxlib", "numpy")


def _decision(attack, path, *, batch_size, max_queries, **_) -> Job:
    params, x, y = jax.device_put(victim.load(path, batch_size))
    start = x[other_class(np.asarray(y))]

    @jax.jit
    def compiled(params, x, y, start, key):
        return attack(
            lambda x: victim.apply_fn(params, x),
            x,
            y,
            key=key,
            x_init=start,
            max_queries=max_queries,
            return_info=True,
        )

    return Job(
        lambda seed: jax.block_until_ready(compiled(params, x, y, start, jax.random.key(seed))),
        lambda out: {"x_adv": np.asarray(out[0]), "queries": np.asarray(out[1].queries)},
    )


hop_skip_jump_l2 = partial(_decision, partial(hop_skip_jump, steps=1000))
boundary_l2 = partial(_decision, partial(boundary, steps=100_000))
