"""The arguments with which the laws of each shape are tried on every public function.

A public function of a room has to appear here once, under its shape; `discovery_test` fails
otherwise. Numbers are small: a law either holds or does not.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from spax import defenses, evasion, poisoning


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


class Wrapper(NamedTuple):
    """A model wrapper, ``wrap(logits_fn)``, on images of ``shape`` for a model of ``inner``."""

    wrap: Any
    draws: bool
    shape: tuple[int, ...] = (8, 8, 1)
    inner: tuple[int, ...] = (8, 8, 1)


WRAPPERS: Mapping[str, tuple[Wrapper, ...]] = {
    "bit_depth": (Wrapper(functools.partial(defenses.bit_depth, bits=3), draws=False),),
    "randomized_resize": (
        Wrapper(
            functools.partial(defenses.randomized_resize, low=6, high=8, out=9),
            draws=True,
            inner=(9, 9, 1),
        ),
    ),
}

_fast = functools.partial(evasion.pgd, eps=0.1, steps=2)

# Factories ``(apply_fn, **mode) -> loss_fn``, mode being has_state and attack_in_train_mode.
OBJECTIVES: Mapping[str, tuple[Any, ...]] = {
    "adversarial_loss": (
        functools.partial(defenses.adversarial_loss, attack=_fast, alpha=0.5),
        functools.partial(defenses.adversarial_loss, attack=_fast, alpha=0.0),
    ),
    "mixed_adversarial_loss": (
        functools.partial(
            defenses.mixed_adversarial_loss, attack=functools.partial(evasion.fgsm, eps=0.1), k=2
        ),
    ),
    "trades_loss": (functools.partial(defenses.trades_loss, eps=0.1, steps=2),),
}


class DatasetMap(NamedTuple):
    """A dataset map ``run(x, y, key) -> output`` and whether it draws."""

    run: Any
    draws: bool


DATASET_MAPS: Mapping[str, tuple[DatasetMap, ...]] = {
    "flip_labels": (
        DatasetMap(
            lambda x, y, key: poisoning.flip_labels(x, y, key=key, rate=0.25, num_classes=3),
            draws=True,
        ),
    ),
    "relabel_knn": (
        DatasetMap(
            lambda x, y, key: defenses.relabel_knn(x, y, k=3, eta=0.6, num_classes=3),
            draws=False,
        ),
    ),
}

# Public functions of these rooms that have none of the five shapes, and what they are instead.
OTHERS: Mapping[str, str] = {
    "LossTerms": "what an objective reports",
    "least_likely": "labels to attack towards",
    "quantize": "a preprocessing step, tested as bit_depth",
    "random_resize_pad": "a preprocessing step, tested as randomized_resize",
    "truncated_normal_eps": "a sampler of radii",
}
