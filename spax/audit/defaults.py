"""What ``spax audit`` looks at when it is given nothing: one network, trained in three ways."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spax.audit.model import Model
from spax.audit.progress import Progress
from spax.datasets import Dataset
from spax.defenses import adversarial_loss
from spax.dp import Poisson, PrivacyState, capacity_for, init_privacy, private_grad, sample
from spax.evasion import pgd
from spax.gradients import canonical_convolutions
from spax.losses import cross_entropy
from spax.typing import Array, Key, LossFn, PyTree

__all__ = ["TRAINING_UNITS", "train"]

TRAINING_UNITS: Mapping[str, float] = {"plain": 3.0, "adversarial": 7.0, "private": 12.0}
"""Names of the models, and about how many seconds their training takes on two cores."""

_BATCH_SIZE, _LEARNING_RATE = 64, 6e-3
_PLAIN_EPOCHS, _ADVERSARIAL_EPOCHS = 20, 30
# Madry's objective in the linf ball that the report's table is about, with some of the clean loss.
_EPS, _ATTACK_STEPS, _ALPHA = 0.15, 5, 0.3
_RATE, _PRIVATE_STEPS, _PRIVATE_LEARNING_RATE = 0.2, 200, 1.0
_NOISE_MULTIPLIER, _L2_CLIP_NORM = 3.0, 0.3


def train(data: Dataset, *, key: Key, progress: Progress) -> dict[str, Model]:
    """Trains one small network plainly, adversarially, and with differential privacy.

    Args:
      data: images ``[n, H, W, C]`` in [0, 1], with members.
      key: a random key.
      progress: told by ``advance`` alone, ``sum(TRAINING_UNITS.values())`` in all.

    Returns:
      `Model` by name. They share ``apply_fn``, so that each probe is compiled once for all, and
      the private one has its receipt.

    Raises:
      ValueError: if the training examples are not known.

    Example:
      >>> list(TRAINING_UNITS)
      ['plain', 'adversarial', 'private']
    """
    if data.x_train is None or data.y_train is None:
        raise ValueError(f"training needs training examples (got none in {data.name!r})")
    from spax.nets import CNN  # nobody else needs flax

    net = CNN(features=(32, 64), hidden=64, num_classes=data.num_classes)
    examples = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    key_init, *keys = jax.random.split(key, 4)
    start = net.init(key_init, examples[0][:1])
    apply_fn: Any = net.apply

    def plain_loss(params: PyTree, batch: Any, key: Key) -> tuple[Array, None]:
        x, y = batch
        return cross_entropy(apply_fn(params, x), y).mean(), None

    robust_loss = adversarial_loss(
        lambda params, x, *, train, key: apply_fn(params, x),
        partial(pgd, eps=_EPS, steps=_ATTACK_STEPS),
        alpha=_ALPHA,
    )
    trainings: Mapping[str, Callable[..., tuple[PyTree, PrivacyState | None]]] = {
        "plain": partial(_fit, plain_loss, _PLAIN_EPOCHS),
        "adversarial": partial(_fit, robust_loss, _ADVERSARIAL_EPOCHS),
        "private": partial(_fit_privately, apply_fn),
    }
    models: dict[str, Model] = {}
    finished = 0.0
    for (name, fit), key_model in zip(trainings.items(), keys, strict=True):
        progress.advance(finished, f"training the {name} model")
        params, privacy = jax.block_until_ready(fit(start, examples, key_model))
        models[name] = Model(None, apply_fn, params, privacy=privacy)
        finished = TRAINING_UNITS[name]
    progress.advance(finished, "training done")
    return models


def _fit(
    loss_fn: LossFn, epochs: int, params: PyTree, examples: PyTree, key: Key
) -> tuple[PyTree, None]:
    """Adam on shuffled batches."""
    n = len(examples[1])
    size = min(_BATCH_SIZE, n)
    steps = epochs * (n // size)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))
    gradient = canonical_convolutions(jax.grad(loss_fn, has_aux=True))

    @jax.jit
    def run(params: PyTree, examples: PyTree, key: Key) -> PyTree:
        key_order, key_steps = jax.random.split(key)
        orders = jax.vmap(lambda key: jax.random.permutation(key, n)[: n // size * size])
        rows = orders(jax.random.split(key_order, epochs)).reshape(steps, size)

        def step(carry: PyTree, given: PyTree) -> tuple[PyTree, None]:
            (params, opt_state), (rows, key) = carry, given
            batch = jax.tree.map(lambda v: v[rows], examples)
            grads, _ = gradient(params, batch, key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, (rows, jax.random.split(key_steps, steps)))[0][0]

    return run(params, examples, key), None


def _fit_privately(
    apply_fn: Callable[..., Array], params: PyTree, examples: PyTree, key: Key
) -> tuple[PyTree, PrivacyState]:
    """DP-SGD: few, large batches and much noise in each give the better account."""
    n = len(examples[1])
    sampling = Poisson(_RATE, capacity_for(n, _RATE, _PRIVATE_STEPS), n)
    rate = optax.cosine_decay_schedule(_PRIVATE_LEARNING_RATE, _PRIVATE_STEPS)
    optimizer = optax.sgd(rate, momentum=0.9)

    def loss_fn(params: PyTree, example: PyTree, key: Key) -> tuple[Array, None]:
        x, y = example
        return cross_entropy(apply_fn(params, x[None]), y[None])[0], None

    gradient = canonical_convolutions(
        private_grad(
            loss_fn,
            l2_clip_norm=_L2_CLIP_NORM,
            noise_multiplier=_NOISE_MULTIPLIER,
            sampling=sampling,
        )
    )

    @jax.jit
    def run(params: PyTree, examples: PyTree, key: Key) -> tuple[PyTree, PrivacyState]:
        def step(carry: PyTree, key: Key) -> tuple[PyTree, None]:
            params, opt_state, privacy = carry
            key_batch, key_step = jax.random.split(key)
            batch = sample(key_batch, examples, sampling)
            out, privacy = gradient(params, batch, privacy, key=key_step)
            updates, opt_state = optimizer.update(out.grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state, privacy), None

        carry = params, optimizer.init(params), init_privacy(sampling)
        keys = jax.random.split(key, _PRIVATE_STEPS)
        (params, _, privacy), _ = jax.lax.scan(step, carry, keys)
        return params, privacy

    return run(params, examples, key)
