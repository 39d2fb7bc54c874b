"""The arguments with which the laws of each shape are tried on every public function.

A public function of a room has to appear here once, under its shape; `discovery_test` fails
otherwise. Numbers are small: a law either holds or does not.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import spax.evasion as evasion


class Attack(NamedTuple):
    """An attack on inputs with its arguments; ``eps`` None: minimum norm."""

    run: Any
    norm: str
    eps: float | None
    needs_key: bool = False
    targeted: bool = False


def _bounded(attack: Any, ball: str, eps: float, **settings: Any) -> Attack:
    targeted = settings.get("targeted", False)
    run = functools.partial(attack, eps=eps, **settings)
    return Attack(run, ball, eps, needs_key=attack is evasion.pgd, targeted=targeted)


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
    "carlini_wagner": (
        Attack(
            functools.partial(evasion.carlini_wagner, steps=30, search_steps=3, initial_const=1.0),
            "l2",
            None,
        ),
    ),
}
