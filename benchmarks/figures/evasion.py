"""The attacks that share the loop of PGD, and the l2 attack of Carlini and Wagner."""

import functools

import jax

import spax
from benchmarks import victim
from benchmarks.figures.common import mnist, remaining


def measure():
    """Every attack on the same network."""
    params, x, y, data = mnist()
    f = jax.jit(functools.partial(victim.apply_fn, params))
    projected = functools.partial(spax.evasion.pgd, steps=40)

    target = spax.evasion.least_likely(f, x)
    _, towards = remaining(spax.evasion.bim, labels=target, eps=0.3, steps=20, targeted=True)
    run = jax.jit(
        lambda p, x, y: spax.evasion.carlini_wagner(
            lambda x: victim.apply_fn(p, x), x, y, steps=1000
        )
    )
    x_adv = run(params, x[:100], y[:100])
    verdict = spax.evaluation.judge(f, x[:100], x_adv, y[:100], norm="l2")
    return {
        "data": data,
        "fgsm": {
            "at_01": remaining(spax.evasion.fgsm, eps=0.1)[0],
            "at_02": remaining(spax.evasion.fgsm, eps=0.2)[0],
        },
        "bim": {
            "at_01": remaining(spax.evasion.bim, eps=0.1)[0],
            "at_02": remaining(spax.evasion.bim, eps=0.2)[0],
        },
        "least_likely": {"hit": round(100 * float(spax.losses.hits(f(towards), target).mean()), 1)},
        "mi_fgsm": {
            "at_01": remaining(spax.evasion.mi_fgsm, eps=0.1)[0],
            "at_02": remaining(spax.evasion.mi_fgsm, eps=0.2)[0],
        },
        "pgd": {
            "at_01": remaining(projected, eps=0.1, step_size=0.01)[0],
            "at_02": remaining(projected, eps=0.2, step_size=0.01)[0],
            "l2_at_3": remaining(projected, eps=3.0, norm="l2")[0],
            "l1_at_15": remaining(projected, eps=15.0, norm="l1")[0],
        },
        "carlini_wagner": {
            "success": round(100 * float(verdict.success.mean()), 1),
            "mean_l2": round(float(verdict.distance[verdict.success].mean()), 3),
        },
    }
