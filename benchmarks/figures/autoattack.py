"""Auto-PGD, Square and AutoAttack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import spax
from benchmarks import victim
from benchmarks.figures.common import KEY, mnist, remaining

FEW = 100


def ensemble(path, eps):
    """Accuracy under the standard version, in per cent, and what each member broke."""
    params, x, y = victim.load(path, FEW)
    model = jax.tree_util.Partial(victim.apply_fn, jax.tree.map(jnp.asarray, params))
    x_adv, info = spax.evasion.autoattack(
        model, jnp.asarray(x), jnp.asarray(y, jnp.int32), key=KEY, eps=eps, return_info=True
    )
    success, _ = victim.judged(path, np.asarray(x_adv), norm="linf", eps=eps)
    broken = np.bincount(np.asarray(info.broken_by) + 1, minlength=6)
    names = ("none", "clean", "apgd_ce", "apgd_t", "fab_t", "square")
    return {
        "left": round(100 * float(1 - success.mean()), 1),
        "broken_by": dict(zip(names, broken.tolist(), strict=True)),
    }


def measure():
    """Members and the whole, on the plain network."""
    *_, data = mnist()
    evasion = spax.evasion
    ratio = functools.partial(evasion.apgd, loss=spax.losses.dlr)
    squares = functools.partial(evasion.square, eps=0.3, steps=1000)
    at_plain = ensemble(victim.prepare(quick=False), 0.1)
    return {
        "data": data,
        "apgd": {
            "ce_at_01": remaining(evasion.apgd, eps=0.1)[0],
            "dlr_at_01": remaining(ratio, eps=0.1)[0],
            "l2_at_15": remaining(evasion.apgd, eps=1.5, norm="l2")[0],
            "l1_at_10": remaining(evasion.apgd, eps=10.0, norm="l1")[0],
        },
        "apgd_targeted": {"at_01": remaining(evasion.apgd_targeted, eps=0.1)[0]},
        "square": {
            "at_03": remaining(squares)[0],
            "fixed_at_03": remaining(functools.partial(squares, reschedule=False))[0],
            "l2_at_2": remaining(functools.partial(evasion.square, eps=2.0, steps=1000, norm="l2"))[
                0
            ],
        },
        "autoattack": {
            "images": FEW,
            "plain_01": at_plain["left"],
            "plain_01_broken_by": at_plain["broken_by"],
        },
    }
