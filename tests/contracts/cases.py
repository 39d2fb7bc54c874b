"""The arguments with which the laws of each shape are tried on every public function.

A public function of a room has to appear here once, under its shape; `discovery_test` fails
otherwise. Numbers are small: a law either holds or does not.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spax import crypto, defenses, dp, evasion, poisoning
from spax.dp.accounting import rdp
from spax.evaluation import worst_of
from spax.losses import cross_entropy, hits

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


def _bounded(attack: Any, ball: str, eps: float, **settings: Any) -> Attack:
    targeted = settings.get("targeted", False)
    run = functools.partial(attack, bounds=BOUNDS, **settings)
    return Attack(run, ball, eps, needs_key=attack is evasion.pgd, targeted=targeted)


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
    "carlini_wagner": (
        Attack(
            functools.partial(
                evasion.carlini_wagner, steps=30, search_steps=3, initial_const=1.0, bounds=BOUNDS
            ),
            "l2",
            None,
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


def _roam(place: Any, action: Any, key: Any) -> Any:
    place = place + action.astype(place.dtype) + jax.random.uniform(key)
    return place, place[None] / 4, 1.0 - place / 4, place > 3


_AGENT = evasion.dqn(
    (lambda key: (jnp.zeros(()), jax.random.uniform(key, (1,))), _roam),
    lambda w, x: x @ w,
    optax.sgd(0.1),
    exploration=0.5,
    capacity=8,
    batch_size=4,
    warmup=2,
    target_every=2,
    environments=2,
)


def _play(state: Any, key: Any) -> Any:
    if isinstance(key, crypto.ChaChaKey):
        key = jax.random.wrap_key_data(crypto.bits(key, (2,)))
    return _AGENT.update(state, key)


STATES: Mapping[str, tuple[State, ...]] = {
    "private_grad": (
        State(lambda: dp.init_privacy(_SAMPLING), _release, lambda s: int(s.steps), draws=True),
    ),
    "dqn": (
        State(
            lambda: _AGENT.init(jnp.ones((1, 2)), jax.random.key(0)),
            _play,
            lambda s: int(s.steps),
            draws=True,
        ),
    ),
    "rdp.update": (State(rdp.init, _spend, _spent, draws=False),),
}

# Public functions of these rooms that have none of the five shapes, and what they are instead.
OTHERS: Mapping[str, str] = {
    # defenses, evasion
    "DQN": "what dqn returns",
    "attacked_rollout": "a figure of a policy and an attack",
    "distortion_db": "a measure of perturbations",
    "induced_observation": "runs an attack, on a second model",
    "LossTerms": "what an objective reports",
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
