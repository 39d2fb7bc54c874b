"""spax itself."""

from functools import partial

import jax
import numpy as np

from benchmarks import victim
from benchmarks.systems import Job
from spax.evaluation import sweep
from spax.evasion import carlini_wagner, pgd
from spax.gradients import exact

PACKAGES = ("spax", "jax", "jaxlib", "numpy")


def _bound(params):
    return lambda x: victim.apply_fn(params, x)


def pgd_linf(path, *, batch_size, eps, step_size, steps, **_) -> Job:
    params, x, y = jax.device_put(victim.load(path, batch_size))
    attack = partial(pgd, eps=eps, step_size=step_size, steps=steps)
    compiled = jax.jit(lambda params, x, y, key: attack(_bound(params), x, y, key=key))
    return Job(
        lambda seed: compiled(params, x, y, jax.random.key(seed)).block_until_ready(),
        lambda out: {"x_adv": np.asarray(out)},
    )


def carlini_wagner_l2(path, *, batch_size, count_gradients=False, **settings) -> Job:
    params, x, y = jax.device_put(victim.load(path, batch_size))
    counted = []

    def counting(fn, x, key):
        # Only to know the number of steps, never timed: the call to the host costs.
        jax.debug.callback(lambda: counted.append(1))
        return exact(fn, x, key)

    attack = partial(
        carlini_wagner,
        return_info=True,
        gradient=counting if count_gradients else exact,
        **settings,
    )
    compiled = jax.jit(lambda params, x, y: attack(_bound(params), x, y))

    def run(_):
        counted.clear()
        return jax.block_until_ready(compiled(params, x, y))

    def read(out):
        jax.effects_barrier()
        x_adv, info = out
        return {
            "x_adv": np.asarray(x_adv),
            "steps": np.asarray(info.steps),
            "gradients": np.asarray(len(counted)),
        }

    return Job(run, read)


def eps_sweep(path, *, batch_size, eps, share, steps, **_) -> Job:
    """The whole grid by `spax.evaluation.sweep`, judged, in one compilation."""
    params, x, y = jax.device_put(victim.load(path, batch_size))
    eps = np.asarray(eps, np.float32)
    keys = [jax.random.key(seed) for seed in range(3)]
    compilations = []

    def count(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            compilations.append(name)

    @jax.jit
    def compiled(params, x, y, key, eps):
        def attack(logits_fn, x, y, *, key, eps):
            return pgd(logits_fn, x, y, key=key, eps=eps, step_size=share * eps, steps=steps)

        return sweep(attack, _bound(params), x, y, key=key, eps=eps, norm="linf")

    jax.monitoring.register_event_duration_secs_listener(count)

    def run(seed):
        return jax.block_until_ready(compiled(params, x, y, keys[seed % len(keys)], eps))

    def read(out):
        return {
            "success": np.asarray(out.success).mean(axis=1),
            "compilations": np.asarray(len(compilations)),
        }

    return Job(run, read)


def eps_calls(path, *, batch_size, eps, share, steps, **_) -> Job:
    """The same grid by one compiled function, called for each radius."""
    params, x, y = jax.device_put(victim.load(path, batch_size))
    eps = [np.float32(e) for e in eps]
    keys = jax.random.split(jax.random.key(0), len(eps))

    @jax.jit
    def compiled(params, x, y, key, eps):
        return pgd(_bound(params), x, y, key=key, eps=eps, step_size=share * eps, steps=steps)

    def run(_):
        return [
            compiled(params, x, y, key, e).block_until_ready()
            for key, e in zip(keys, eps, strict=True)
        ]

    return Job(run, lambda out: {"x_adv": np.asarray(out)})
