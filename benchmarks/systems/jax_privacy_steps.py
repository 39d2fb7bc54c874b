"""jax_privacy's clipped gradients."""

import jax_privacy

from benchmarks.systems.networks import losses
from benchmarks.systems.private_steps import BOUND, repeated, updated

PACKAGES = ("jax_privacy", "jax")


def private_step(name, *, microbatch=None, **settings):
    def step(params, opt_state, x, y, key):
        fn = jax_privacy.clipped_grad(
            lambda p, x, y: losses(name, p, x, y).mean(),
            l2_clip_norm=BOUND,
            batch_argnums=(1, 2),
            microbatch_size=microbatch,
            normalize_by=len(x),
        )
        return updated(fn(params, x, y), params, opt_state)

    return repeated(step, name, **settings)
