"""The limit of a gradient attack: its gradients alone, one after another, each jitted."""

from functools import partial

import jax

from benchmarks import victim
from benchmarks.systems import Job
from spax.gradients import canonical_convolutions
from spax.losses import cross_entropy, margin


def _gradients(loss, path, *, batch_size, gradients, rewritten, **_):
    params, x, y = jax.device_put(victim.load(path, batch_size))

    def total(x, params, y):
        return loss(victim.apply_fn(params, x), y).sum()

    gradient = jax.grad(total)
    gradient = jax.jit(canonical_convolutions(gradient) if rewritten else gradient)

    def run(_):
        for _ in range(gradients):
            # A step needs the one before, so the next call must not start early.
            out = gradient(x, params, y).block_until_ready()
        return out

    return Job(run, lambda _: {})


pgd_linf = partial(_gradients, cross_entropy)
carlini_wagner_l2 = partial(_gradients, margin)
