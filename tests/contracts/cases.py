"""The arguments with which the laws of each shape are tried on every public function.

A public function of a room has to appear here once, under its shape; `discovery_test` fails
otherwise. Numbers are small: a law either holds or does not.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from spax import defenses, dp, evasion, poisoning
from spax.dp.accounting import rdp
from spax.evaluation import worst_of

# Compiler options: laws hold however well the code is optimised, and compiling it takes longest.
QUICK = {"xla_backend_optimization_level": 0}

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


_DRAW = (evasion.apgd, evasion.apgd_targeted, evasion.autoattack, evasion.pgd, evasion.square)


def _difference(logits: Any, labels: Any) -> Any:
    """A targeted loss, ``(y, target)``, for the three classes of the model under attack."""
    y, t = (jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0] for label in labels)
    return t - y


def _bounded(attack: Any, ball: str, eps: float, **settings: Any) -> Attack:
    targeted = settings.get("targeted", False)
    run = functools.partial(attack, bounds=BOUNDS, **settings)
    return Attack(run, ball, eps, needs_key=attack in _DRAW, targeted=targeted)


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
    "apgd": (
        _bounded(evasion.apgd, "linf", 0.1, steps=3, restarts=2, targeted=True),
        _bounded(evasion.apgd, "l1", 0.5, steps=4, norm="l1"),
    ),
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


class State(NamedTuple):
    """A state machine: ``init() -> state`` and ``update(state, key) -> (output, state)``.

    ``count(state)`` tells how many updates a state has seen; ``draws``: the key decides the output.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Any], tuple[Any, Any]]
    count: Callable[[Any], int]
    draws: bool


_SAMPLING = dp.Poisson(rate=0.5, capacity=8, num_records=8)


def _squares(w: Any, example: Any, key: Any) -> Any:
    x, y = example
    return (x @ w - y) ** 2, None


_STEP = dp.private_grad(
    _squares, l2_clip_norm=0.5, noise_multiplier=2.0, sampling=_SAMPLING, chunk_size=3
)


def _release(privacy: Any, key: Any) -> Any:
    x = jnp.linspace(-1, 1, 24).reshape(8, 3)
    batch = dp.Batch((x, jnp.arange(8.0)), jnp.arange(8) % 3 > 0)
    return _STEP(jnp.ones(3), batch, privacy, key=key)


def _spend(state: Any, key: Any) -> Any:
    return rdp.update(state, noise_multiplier=2.0, steps=3)


def _spent(state: Any) -> int:
    """The Gaussian mechanism costs a / (2 sigma^2) at order a, three times an update."""
    return round(float(state.total[-1]) / (3 * rdp.ORDERS[-1] / 8))


STATES: Mapping[str, tuple[State, ...]] = {
    "private_grad": (
        State(lambda: dp.init_privacy(_SAMPLING), _release, lambda s: int(s.steps), draws=True),
    ),
    "rdp.update": (State(rdp.init, _spend, _spent, draws=False),),
}

# Public functions of these rooms that have none of the five shapes, and what they are instead.
OTHERS: Mapping[str, str] = {
    # defenses, evasion
    "AutoAttackInfo": "what autoattack reports",
    "LossTerms": "what an objective reports",
    "SquareInfo": "what square reports",
    "least_likely": "labels to attack towards",
    "quantize": "a preprocessing step, tested as bit_depth",
    "random_resize_pad": "a preprocessing step, tested as randomized_resize",
    "truncated_normal_eps": "a sampler of radii",
    # dp
    "Batch": "a container",
    "ClipInfo": "what clipped_grad reports",
    "Poisson": "a rule, with no state",
    "PrivacyState": "the state of private_grad",
    "PrivateGrad": "what private_grad returns",
    "accounting": "the folder of accountants; each is a room of its own here",
    "add_noise": "a draw, the noise of private_grad",
    "capacity_for": "a number, from numbers",
    "clipped_grad": "the sum that private_grad adds noise to",
    "epsilon": "read from a state",
    "init_privacy": "the first state of private_grad",
    "noised_sums": "an optax transformation, whose state is empty",
    "sample": "a draw of a batch",
    "rdp.ORDERS": "a constant",
    "rdp.RdpState": "the state of rdp.update",
    "rdp.add": "the cheap half of rdp.update",
    "rdp.delta": "read from a state",
    "rdp.epsilon": "read from a state",
    "rdp.init": "the first state of rdp.update",
    "rdp.subsampled_gaussian": "the cost of a release, the dear half of rdp.update",
    # leakage
    "Estimate": "a figure with its interval",
    "Roc": "a curve",
    "TruePositives": "a figure with its interval",
    "advantage": "a metric of scores",
    "advantage_bound": "a bound, from numbers",
    "auc": "a metric of scores",
    "epsilon_lower_bound": "a bound, from counts",
    "loss_threshold": "scores of examples",
    "roc": "a metric of scores",
    "tpr_at_fpr": "a metric of scores",
    "tpr_bound": "a bound, from numbers",
    # crypto
    "ChaChaKey": "a secret, never part of a state",
    "bits": "a draw",
    "chacha20_block": "a function of its input alone",
    "fold_in": "a key from a key",
    "fresh_key": "entropy, on the host",
    "normal": "a draw",
    "split": "keys from a key",
    "uniform": "a draw",
    # gradients
    "bpda": "a function with another derivative",
    "canonical_convolutions": "the same function, compiled otherwise",
    "eot": "a gradient hook",
    "exact": "a gradient hook",
    "nes": "a gradient hook",
    "spsa": "a gradient hook",
    # evaluation
    "Accuracy": "a figure with its interval",
    "Curve": "a curve with its intervals",
    "Description": "what describe reports",
    "Judgement": "what judge returns",
    "Sweep": "what sweep returns",
    "accuracy": "a figure of a model",
    "binomial_interval": "an interval, from counts",
    "compile_attack": "runs an attack",
    "describe": "a report on judged results",
    "judge": "the verdict on attacks",
    "radius_curve": "a figure of distances",
    "sweep": "runs an attack",
}
