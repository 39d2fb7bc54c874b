"""The attacks on inputs with which the laws of their shape are tried."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax import evasion, gradients
from spax.evaluation import worst_of
from spax.losses import cross_entropy, hits

# The range of each of the two channels of what is attacked.
BOUNDS = (np.array([0.0, -1.0], np.float32), np.array([1.0, 2.0], np.float32))


class Attack(NamedTuple):
    """An attack on inputs within BOUNDS with its arguments; ``eps`` None: minimum norm.

    ``run(logits_fn, x, y, *, key)`` and, unless it is of minimum norm, ``eps``.
    """

    run: Any
    norm: str
    eps: float | None
    needs_key: bool = False
    targeted: bool = False


QUICK_TO_COMPILE = {
    "fgsm", "bim", "mi_fgsm", "pgd", "carlini_wagner", "deepfool", "square", "worst_of"
}  # fmt: skip
"""The attacks whose first case is tried by default; everything else is slow."""

_DRAW = (
    evasion.apgd,
    evasion.apgd_targeted,
    evasion.autoattack,
    evasion.pgd,
    evasion.spsa_attack,
    evasion.square,
)


def _difference(logits: Any, labels: Any) -> Any:
    """A targeted loss, ``(y, target)``, for the three classes of the model under attack."""
    y, t = (jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0] for label in labels)
    return t - y


def _bounded(attack: Any, ball: str, eps: float, **settings: Any) -> Attack:
    targeted = settings.get("targeted", False)
    run = functools.partial(attack, bounds=BOUNDS, **settings)
    return Attack(run, ball, eps, needs_key=attack in _DRAW, targeted=targeted)


def _policy_l1(logits_fn: Any, x: Any, y: Any, *, key: Any, eps: Any) -> Any:
    """The attack on policies takes its radius per entry, of which there are six."""
    settings = {"norm": "l1", "bounds": BOUNDS}
    return evasion.policy_fgsm(logits_fn, x, y, key=key, eps=eps / 6, **settings)


ATTACKS: Mapping[str, tuple[Attack, ...]] = {
    "fgsm": (
        _bounded(evasion.fgsm, "linf", 0.1),
        _bounded(evasion.fgsm, "l2", 0.3, norm="l2"),
        _bounded(evasion.fgsm, "l1", 0.5, norm="l1", targeted=True),
    ),
    "bim": (_bounded(evasion.bim, "linf", 0.1, steps=3),),
    "mi_fgsm": (
        _bounded(evasion.mi_fgsm, "linf", 0.1, steps=3),
        _bounded(evasion.mi_fgsm, "l2", 0.3, steps=3, norm="l2"),
    ),
    "pgd": (
        _bounded(evasion.pgd, "linf", 0.1, steps=3, restarts=2),
        _bounded(evasion.pgd, "l2", 0.3, steps=3, norm="l2"),
        _bounded(evasion.pgd, "l1", 0.5, steps=3, norm="l1", targeted=True),
    ),
    # In l1 its sparse steps make of rounding another choice of entries; see apgd_test.
    "apgd": (_bounded(evasion.apgd, "linf", 0.1, steps=3, restarts=2, targeted=True),),
    "apgd_targeted": (
        _bounded(
            evasion.apgd_targeted, "l2", 0.3, steps=3, norm="l2", n_targets=2, loss=_difference
        ),
    ),
    "square": (_bounded(evasion.square, "linf", 0.1, steps=12),),
    "autoattack": (_bounded(evasion.autoattack, "linf", 0.1, steps=2, queries=4, n_targets=1),),
    "carlini_wagner": (
        Attack(
            functools.partial(
                evasion.carlini_wagner, steps=30, search_steps=3, initial_const=1.0, bounds=BOUNDS
            ),
            "l2",
            None,
        ),
        *(
            Attack(
                functools.partial(
                    evasion.carlini_wagner,
                    norm=ball,
                    steps=30,
                    search_steps=2,
                    step_size=0.1,
                    initial_const=1.0,
                    bounds=BOUNDS,
                ),
                ball,
                None,
            )
            for ball in ("l0", "linf")
        ),
    ),
    "ead": (
        Attack(
            functools.partial(
                evasion.ead, steps=30, search_steps=3, initial_const=1.0, bounds=BOUNDS
            ),
            "l1",
            None,
        ),
    ),
    "jsma": (
        Attack(
            functools.partial(evasion.jsma, theta=0.5, gamma=1.0, bounds=BOUNDS),
            "l0",
            None,
            targeted=True,
        ),
    ),
    "policy_fgsm": (Attack(_policy_l1, "l1", 0.5),),
    "audio_cw": (
        Attack(
            functools.partial(
                evasion.audio_cw,
                tau=1.0,
                step_size=0.05,
                steps=30,
                bits=None,
                bounds=BOUNDS,
                loss=cross_entropy,
                criterion=hits,
            ),
            "linf",
            None,
            targeted=True,
        ),
    ),
    "deepfool": (
        Attack(functools.partial(evasion.deepfool, steps=5, bounds=BOUNDS), "l2", None),
        Attack(
            functools.partial(evasion.deepfool, steps=5, norm="linf", bounds=BOUNDS), "linf", None
        ),
    ),
    "fab": (
        Attack(functools.partial(evasion.fab, norm="l2", steps=5, bounds=BOUNDS), "l2", None),
        Attack(
            functools.partial(evasion.fab, norm="l2", steps=5, targets=2, bounds=BOUNDS), "l2", 0.5
        ),
    ),
    "lbfgs": (
        Attack(
            functools.partial(
                evasion.lbfgs, steps=4, search_steps=4, initial_weight=1.0, bounds=BOUNDS
            ),
            "l2",
            None,
            targeted=True,
        ),
    ),
    "hop_skip_jump": (
        Attack(
            functools.partial(
                evasion.hop_skip_jump, steps=3, init_evals=40, max_queries=400, bounds=BOUNDS
            ),
            "l2",
            None,
            needs_key=True,
        ),
    ),
    "boundary": (
        Attack(
            functools.partial(evasion.boundary, steps=30, bounds=BOUNDS),
            "l2",
            None,
            needs_key=True,
        ),
    ),
    "spsa_attack": (_bounded(evasion.spsa_attack, "linf", 0.1, step_size=0.05, n=4, steps=3),),
    "eot_attack": (
        Attack(
            functools.partial(
                evasion.eot_attack,
                transform=lambda x, key: x * jax.random.uniform(key, (), x.dtype, 0.9, 1.0),
                distance=lambda a, b: jnp.sum(jnp.square(a - b), axis=(1, 2)),
                steps=12,
                step_size=0.1,
                held_out=3,
                bounds=BOUNDS,
                gradient=gradients.eot(2),
            ),
            "l2",
            None,
            needs_key=True,
            targeted=True,
        ),
    ),
    "human_transfer_attack": (
        Attack(
            lambda f, x, y, *, key, eps: evasion.human_transfer_attack(
                [f, lambda x: 2 * f(x)],
                x,
                y,
                key=key,
                eps=eps,
                steps=3,
                groups=((0,), (1,), (2,)),
                bounds=BOUNDS,
            ),
            "linf",
            0.1,
            targeted=True,
        ),
    ),
    "worst_of": (
        Attack(
            worst_of(
                [
                    functools.partial(evasion.fgsm, bounds=BOUNDS, targeted=True),
                    functools.partial(evasion.bim, steps=2, bounds=BOUNDS, targeted=True),
                ],
                bounds=BOUNDS,
                targeted=True,
            ),
            "linf",
            0.1,
            targeted=True,
        ),
    ),
}
