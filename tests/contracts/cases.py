"""The arguments with which the laws of each shape are tried on every public function.

A public function of a room has to appear here once, under its shape; `discovery_test` fails
otherwise. Numbers are small: a law either holds or does not.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spax import crypto, defenses, dp, evasion, poisoning
from spax.dp import draws
from spax.dp.accounting import composition, gdp, pld, rdp, zcdp

# Compiler options: laws hold however well the code is optimised, and compiling it takes longest.
QUICK = {"xla_backend_optimization_level": 0}


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


_AVERAGE = dp.fedavg(
    lambda params, x, key: params - 0.5 * (params - x.mean(axis=0)),
    optax.sgd(1.0),
    l2_clip_norm=0.5,
    noise_multiplier=2.0,
    sampling=dp.Users(rate=0.5, capacity=8, num_users=8),
)


def _round(state: Any, key: Any) -> Any:
    """The new model comes out too: diagnostics do not depend on the key."""
    clients = dp.Batch(jnp.linspace(-1, 1, 48).reshape(8, 3, 2), jnp.arange(8) % 3 > 0)
    _, state = _AVERAGE.update(state, clients, key=key)
    return state.params, state


_BANDED = dp.banded_noise(
    dp.toeplitz_sqrt(8, bands=3), steps=8, noise_multiplier=2.0, l2_clip_norm=0.5
)
_TREE = dp.tree_noise(steps=8, noise_multiplier=2.0, l2_clip_norm=0.5)
_ADAM = dp.adam_bias_corrected(0.1, noise_variance=0.01)
_DECAY = dp.publishing.validation_decay(8.0, period=2, threshold=0.1, factor=0.5)


_QUESTIONS = dp.sparse_vector(epsilon=1.0, threshold=0.0, sensitivity=1.0, max_hits=3)


def _ask(state: Any, key: Any) -> Any:
    """Sixteen answers in one, so that two keys hardly agree in all; counted once."""
    keys = [draws.fold_in(key, i) for i in range(16)]
    above = jnp.stack([_QUESTIONS.update(state, 0.0, key=k)[0] for k in keys])
    return above, _QUESTIONS.update(state, 0.0, key=key)[1]


def _adapt(state: Any, key: Any) -> Any:
    return _ADAM.update(jnp.array([0.5, -1.0]), state)


def _spend(state: Any, key: Any) -> Any:
    return rdp.update(state, noise_multiplier=2.0, steps=3)


def _spent(state: Any) -> int:
    """The Gaussian mechanism costs a / (2 sigma^2) at order a, three times an update."""
    return round(float(state.total[-1]) / (3 * rdp.ORDERS[-1] / 8))


def _double(x: Any) -> Any:
    return jnp.concatenate([x, 1 - x], axis=1)


_COPY = evasion.substitute(
    lambda x: 1 - x,
    lambda params, x, *, train, key: _double(x) @ params,
    optax.sgd(0.1),
    rounds=4,
    reservoir_after=1,
    reservoir_size=3,
    epochs=2,
    batch_size=2,
)


def _copied() -> Any:
    return _COPY.init(jnp.ones((4, 2)), jnp.linspace(0, 1, 10).reshape(5, 2))


def _copy(state: Any, key: Any) -> Any:
    return _COPY.update(state, _words(key))


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
    return _AGENT.update(state, _words(key))


_MODEL = lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.square(x).sum((1, 2, 3))], axis=1)  # noqa: E731
_IMAGES = jnp.linspace(0, 1, 2 * 4 * 4).reshape(2, 4, 4, 1)
_UNIVERSAL = evasion.universal(_MODEL, eps=0.3)
_CLASSIC = evasion.universal_deepfool(_MODEL, eps=0.3, steps=2)
_PATCH = evasion.adversarial_patch(_MODEL, patch_shape=(3, 3, 1))
_GENERATOR = evasion.p_atn(lambda w, x: w * x, eps=0.5)
_ATN = evasion.atn(_MODEL, _GENERATOR, optax.sgd(0.1), 1)


def _words(key: Any) -> Any:
    """A key of jax.random's from one of either kind; an attack has no use for a secure one."""
    if isinstance(key, crypto.ChaChaKey):
        return jax.random.wrap_key_data(crypto.bits(key, (2,)))
    return key


def _stick(state: Any, key: Any) -> Any:
    return _PATCH.update(state, _IMAGES, jnp.array([1, 0]), _words(key))


STATES: Mapping[str, tuple[State, ...]] = {
    "substitute": (State(_copied, _copy, lambda s: int(s.rounds), draws=True),),
    "adversarial_patch": (
        State(lambda: _PATCH.init(jax.random.key(0)), _stick, lambda s: int(s.steps), draws=True),
    ),
    "atn": (
        State(
            lambda: _ATN.init(jnp.full((1, 1, 1, 1), 0.1)),
            lambda state, key: _ATN.update(state, _IMAGES),
            lambda s: int(s.steps),
            draws=False,
        ),
    ),
    "universal": (
        State(
            lambda: _UNIVERSAL.init(_IMAGES[0]),
            lambda state, key: _UNIVERSAL.update(state, _IMAGES),
            lambda s: int(s.steps),
            draws=False,
        ),
    ),
    "universal_deepfool": (
        State(
            lambda: _CLASSIC.init(_IMAGES[0]),
            lambda state, key: _CLASSIC.update(state, _IMAGES),
            lambda s: int(s.steps),
            draws=False,
        ),
    ),
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
    "fedavg": (
        State(
            lambda: _AVERAGE.init(jnp.zeros(2)),
            _round,
            lambda s: int(s.privacy.steps),
            draws=True,
        ),
    ),
    "banded_noise": (
        State(
            lambda: _BANDED.init({"w": jnp.zeros((2, 3))}),
            lambda state, key: _BANDED.update(state, key=key),
            lambda s: int(s.steps),
            draws=True,
        ),
    ),
    "tree_noise": (
        State(
            lambda: _TREE.init({"w": jnp.zeros((2, 3))}),
            lambda state, key: _TREE.update(state, key=key),
            lambda s: int(s.steps),
            draws=True,
        ),
    ),
    "adam_bias_corrected": (
        State(lambda: _ADAM.init(jnp.zeros(2)), _adapt, lambda s: int(s[0].steps), draws=False),
    ),
    "publishing.validation_decay": (
        State(
            _DECAY.init,
            lambda state, key: _DECAY.update(state, 0.5),
            lambda s: int(s.checks),
            draws=False,
        ),
    ),
    "sparse_vector": (
        State(
            lambda: _QUESTIONS.init(key=jax.random.key(0)),
            _ask,
            lambda s: int(s.queries),
            draws=True,
        ),
    ),
    "rdp.update": (State(rdp.init, _spend, _spent, draws=False),),
    "zcdp.update": (
        State(
            zcdp.init,
            lambda state, key: zcdp.update(state, noise_multiplier=0.5),
            lambda s: round(float(s.total) / 2),
            draws=False,
        ),
    ),
    "zcdp.add": (
        State(
            zcdp.init,
            lambda state, key: zcdp.add(state, 2.0),
            lambda s: round(float(s.total) / 2),
            draws=False,
        ),
    ),
    "gdp.update": (
        State(
            gdp.init,
            lambda state, key: gdp.update(state, noise_multiplier=0.5),
            lambda s: round(float(s.total) / 4),
            draws=False,
        ),
    ),
    "gdp.update_clt": (
        State(
            gdp.init_clt,
            lambda state, key: gdp.update_clt(
                state, noise_multiplier=1.0, sampling_rate=0.5, steps=10
            ),
            lambda s: round(float(s.spent.total) / 4.2957),
            draws=False,
        ),
    ),
    "pld.update": (
        State(
            lambda: pld.init([pld.laplace(1.0)]),
            lambda state, key: pld.update(state, steps=3),
            lambda s: int(s.counts[0]) // 3,
            draws=False,
        ),
    ),
    "composition.update": (
        State(
            composition.init,
            lambda state, key: composition.update(state, epsilon=2.0),
            lambda s: round(float(s.epsilons[0]) / 2),
            draws=False,
        ),
    ),
}

# Public functions of these rooms that have none of the five shapes, and what they are instead.
OTHERS: Mapping[str, str] = {
    # defenses, evasion
    "binary_saliency": "an attack on binary inputs only, its laws are in its own tests",
    "DQN": "what dqn returns",
    "attacked_rollout": "a figure of a policy and an attack",
    "distortion_db": "a measure of perturbations",
    "induced_observation": "runs an attack, on a second model",
    "LossTerms": "what an objective reports",
    "Oracle": "a model behind a service",
    "Substitute": "what substitute returns",
    "SubstituteState": "the state of substitute",
    "jacobian_augment": "new inputs, tested with substitute",
    "ATN": "what atn returns",
    "ATNState": "the state of atn",
    "ATNTerms": "what atn reports",
    "Patch": "what adversarial_patch returns",
    "PatchState": "the state of adversarial_patch",
    "Universal": "what universal returns",
    "UniversalState": "the state of universal",
    "aae": "a generator for atn",
    "apply_patch": "a transformation of inputs, the output of adversarial_patch on them",
    "apply_universal": "a transformation of inputs, the output of universal on them",
    "atn_loss": "an objective of the attacker's network, tried as atn",
    "coarse_logits": "a model of other classes, not a defence",
    "destruction_rate": "a figure of an attack",
    "ensemble": "one model of several, not a defence",
    "lab_distance": "a distance",
    "mean_log_probs": "a way to combine models in an ensemble",
    "mean_logits": "a way to combine models in an ensemble",
    "mean_probs": "a way to combine models in an ensemble",
    "p_atn": "a generator for atn",
    "photo_transform": "a transformation of inputs",
    "random_affine_photo": "a transformation of inputs",
    "rerank": "probabilities that atn aims at",
    "retinal_blur": "a transformation of inputs",
    "transfer_matrix": "figures of an attack on several models",
    "AutoAttackInfo": "what autoattack reports",
    "SquareInfo": "what square reports",
    "least_likely": "labels to attack towards",
    "minimize_lbfgs_box": "a solver, of lbfgs and of others",
    "quantize": "a preprocessing step, tested as bit_depth",
    "reservoir_sample": "a draw of rows",
    "random_resize_pad": "a preprocessing step, tested as randomized_resize",
    "truncated_normal_eps": "a sampler of radii",
    # dp
    "AdamBiasCorrectedState": "the state of adam_bias_corrected",
    "AdaptiveClip": "the clipping norm of adaptive_private_grad",
    "BallsInBins": "a rule, with no state",
    "Batch": "a container",
    "ClipInfo": "what clipped_grad reports",
    "ClippedGrad": "what clipped_grad returns",
    "CorrelatedNoise": "what banded_noise and tree_noise return",
    "Estimator": "what an estimator returns",
    "FedAvg": "what fedavg returns",
    "FedAvgState": "the state of fedavg",
    "FixedSize": "a rule, with no state",
    "NoiseState": "the state of banded_noise and tree_noise",
    "Poisson": "a rule, with no state",
    "PrivacyState": "the state of private_grad",
    "PrivateGrad": "what private_grad returns",
    "Rule": "of clipping, with no state",
    "Sampling": "any of the rules",
    "Shuffled": "a rule, with no state",
    "SparseVector": "what sparse_vector returns",
    "SparseVectorState": "the state of sparse_vector",
    "Users": "a rule, with no state",
    "accounting": "the folder of accountants; each is a room of its own here",
    "adaptive_private_grad": "private_grad, and an exponential of a noised count",
    "add_noise": "a draw, the noise of private_grad",
    "analytic_noise_multiplier": "a number, from numbers",
    "automatic": "a rule of clipping",
    "capacity_for": "a number, from numbers",
    "check_per_example": "a check of a loss",
    "classic_noise_multiplier": "a number, from numbers",
    "clipped_denominator": "an estimator of fedavg",
    "clipped_grad": "the sum that private_grad adds noise to",
    "debias_counts": "an estimate, from counts",
    "discrete_gaussian": "a mechanism, with no state",
    "discrete_laplace": "a mechanism, with no state",
    "epsilon": "read from a state",
    "explain_clipping": "a table of text",
    "exponential": "a mechanism, with no state",
    "exponential_noise": "a draw, the noise of noisy_max",
    "factorization_error": "a number, from numbers",
    "fixed_denominator": "an estimator of fedavg",
    "flat": "a rule of clipping",
    "gaussian": "a mechanism, with no state",
    "gumbel_noise": "a draw, the noise of noisy_max",
    "init_privacy": "the first state of private_grad",
    "laplace": "a mechanism, with no state",
    "laplace_noise": "a draw, the noise of noisy_max",
    "noised_sums": "an optax transformation, whose state is empty",
    "noisy_max": "a mechanism, with no state",
    "normalised": "a rule of clipping",
    "optimize_banded": "coefficients of banded_noise",
    "per_example_norms": "norms, whose squares clipped_grad sums",
    "per_layer": "a rule of clipping",
    "publishing": "a room of its own here",
    "publishing.ValidationDecay": "what validation_decay returns",
    "publishing.ValidationDecayState": "the state of validation_decay",
    "publishing.exponential_decay": "a schedule",
    "publishing.polynomial_decay": "a schedule",
    "publishing.rho_reshuffle": "a number, from numbers",
    "publishing.sampling_epsilon": "a number, from numbers",
    "publishing.step_decay": "a schedule",
    "publishing.time_decay": "a schedule",
    "publishing.within_budget": "a verdict, from numbers",
    "randomized_response": "a mechanism, with no state",
    "rounded_sensitivity": "a number, from numbers",
    "sample": "a draw of a batch",
    "scale_by_adam_bias_corrected": "the first half of adam_bias_corrected",
    "shuffle": "a draw of an order",
    "split_noise_multiplier": "a number, from numbers",
    "toeplitz_sensitivity": "a number, from numbers",
    "toeplitz_sqrt": "coefficients of banded_noise",
    "rdp.ORDERS": "a constant",
    "rdp.RdpCost": "what rdp.update adds",
    "rdp.RdpState": "the state of rdp.update",
    "rdp.add": "the cheap half of rdp.update",
    "rdp.delta": "read from a state",
    "rdp.epsilon": "read from a state",
    "rdp.init": "the first state of rdp.update",
    "rdp.subsampled_gaussian": "the cost of a release, the dear half of rdp.update",
    "rdp.calibrate": "a number, from numbers",
    "rdp.epsilon_and_order": "read from a state",
    "rdp.fixed_size_gaussian": "the cost of a release, as rdp.subsampled_gaussian",
    "rdp.full_batch_gaussian": "the cost of a release, as rdp.subsampled_gaussian",
    "rdp.max_steps": "a number, from numbers",
    "moments.delta": "read from a state",
    "moments.epsilon": "read from a state",
    "zcdp.ZcdpState": "the state of zcdp.update",
    "zcdp.calibrate": "a number, from numbers",
    "zcdp.delta": "read from a state",
    "zcdp.epsilon": "read from a state",
    "zcdp.init": "the first state of zcdp.update",
    "zcdp.reshuffled_rho": "a number, from numbers",
    "zcdp.sampled_epsilon": "a number, from numbers",
    "gdp.Approximate": "a figure that is no guarantee",
    "gdp.ApproximateGdpState": "the state of gdp.update_clt",
    "gdp.GdpState": "the state of gdp.update",
    "gdp.delta": "read from a state",
    "gdp.epsilon": "read from a state",
    "gdp.init": "the first state of gdp.update",
    "gdp.init_clt": "the first state of gdp.update_clt",
    "pld.PldEpsilon": "what pld.epsilon_with_error returns",
    "pld.PldState": "the state of pld.update",
    "pld.calibrate": "a number, from numbers",
    "pld.compose": "a state of two",
    "pld.delta": "read from a state",
    "pld.epsilon": "read from a state",
    "pld.epsilon_with_error": "read from a state",
    "pld.gaussian": "a rule, with no state",
    "pld.init": "the first state of pld.update",
    "pld.laplace": "a rule, with no state",
    "pld.randomized_response": "a rule, with no state",
    "pld.self_compose": "a state of one",
    "composition.PureState": "the state of composition.update",
    "composition.advanced": "read from a state",
    "composition.basic": "read from a state",
    "composition.calibrate": "a number, from a function",
    "composition.init": "the first state of composition.update",
    "composition.optimal": "a number, from numbers",
    "composition.shuffle_epsilon": "a number, from numbers",
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
