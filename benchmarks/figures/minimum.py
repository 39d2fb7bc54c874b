"""The minimum-norm attacks DeepFool, FAB and L-BFGS."""

from functools import partial

import jax
import numpy as np

import spax
from benchmarks import victim
from benchmarks.figures.common import mnist

IMAGES = 100


def distances(attack, norm, *, images=IMAGES, targeted=False):
    """(share of success in per cent, distances) of an attack on the MNIST network."""
    params, x, y, _ = mnist()
    x, y = x[:images], y[:images]
    y = (y + 1) % 10 if targeted else y
    run = jax.jit(lambda p, x, y: attack(lambda x: victim.apply_fn(p, x), x, y))
    verdict = spax.evaluation.judge(
        lambda x: victim.apply_fn(params, x),
        x,
        run(params, x, y),
        y,
        norm=norm,
        targeted=targeted,
    )
    return round(100 * float(verdict.success.mean()), 1), np.asarray(verdict.distance)


def nearest(attack):
    """Success and median distance in l2 and linf, and the mean of |r|_2 / |x|_2."""
    found = {}
    for norm in ("l2", "linf"):
        success, distance = distances(partial(attack, norm=norm), norm)
        found |= {
            f"success_{norm}": success,
            f"median_{norm}": round(float(np.median(distance)), 3),
        }
        if norm == "l2":
            _, x, _, _ = mnist()
            size = np.linalg.norm(np.asarray(x[:IMAGES]).reshape(IMAGES, -1), axis=1)
            found["relative_l2"] = round(float(np.mean(distance / size)), 3)
    return found


def measure():
    """All on the same images; L-BFGS towards the next class."""
    *_, data = mnist()
    success, distance = distances(spax.evasion.lbfgs, "l2", images=50, targeted=True)
    return {
        "data": data,
        "deepfool": nearest(spax.evasion.deepfool),
        "fab": nearest(partial(spax.evasion.fab, targets=9, steps=20)),
        "lbfgs": {"success": success, "mean_l2": round(float(distance.mean()), 3)},
    }
