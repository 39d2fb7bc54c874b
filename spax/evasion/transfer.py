"""Transfer: several models attacked as one, and who is fooled by whose adversarial points."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_batch, check_key, check_labels, check_number, is_concrete
from spax.losses import misclassified
from spax.typing import Array, Attack, Key, Model, Stochastic, call

__all__ = ["ensemble", "mean_log_probs", "mean_logits", "mean_probs", "transfer_matrix"]


def _weighted(values: Array, weights: Array) -> Array:
    shape = (weights.shape[0],) + (1,) * (values.ndim - 1)
    return jnp.sum(weights.astype(values.dtype).reshape(shape) * values, axis=0)


def mean_logits(outputs: Array, weights: Array) -> Array:
    """The weighted mean of the members' logits.

    Args:
      outputs: ``[M, B, K]``, the logits of M members.
      weights: ``[M]``, of sum 1.

    Returns:
      Logits ``[B, K]``.

    Raises:
      ValueError: if the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> mean_logits(jnp.array([[[1.0, 0.0]], [[3.0, 4.0]]]), jnp.array([0.5, 0.5])).tolist()
      [[2.0, 2.0]]

    References:
      Y. Dong et al., Boosting adversarial attacks with momentum, 2017, arXiv:1710.06081, Eq 6.
    """
    return _weighted(outputs, weights)


def mean_log_probs(outputs: Array, weights: Array) -> Array:
    """The weighted mean of the members' log-probabilities: a geometric mean of probabilities.

    Its softmax is that of `mean_logits`, but what it returns is comparable across members whose
    logits have an arbitrary offset.

    Args:
      outputs: ``[M, B, K]``, the logits of M members.
      weights: ``[M]``, of sum 1.

    Returns:
      Logits ``[B, K]``.

    Raises:
      ValueError: if the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> outputs = jnp.log(jnp.array([[[0.5, 0.5]], [[0.5, 0.5]]]))
      >>> jnp.exp(mean_log_probs(outputs, jnp.array([0.5, 0.5]))).round(3).tolist()
      [[0.5, 0.5]]

    References:
      G. Elsayed et al., Adversarial examples that fool both computer vision and time-limited
      humans, 2018, arXiv:1802.08195.
    """
    return _weighted(jax.nn.log_softmax(outputs, axis=-1), weights)


def mean_probs(outputs: Array, weights: Array) -> Array:
    """The logarithm of the weighted mean of the members' probabilities.

    Args:
      outputs: ``[M, B, K]``, the logits of M members.
      weights: ``[M]``, of sum 1.

    Returns:
      Log-probabilities ``[B, K]``; they are logits too.

    Raises:
      ValueError: if the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> outputs = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
      >>> probs = jnp.exp(mean_probs(outputs, jnp.array([0.5, 0.5])))
      >>> bool(jnp.allclose(probs, jnp.array([[0.7, 0.3]])))
      True

    References:
      Y. Dong et al., Boosting adversarial attacks with momentum, 2017, arXiv:1710.06081,
      Section 3.4 ("ensemble in predictions").
    """
    w = weights.astype(outputs.dtype)[:, None, None]
    # b=w and not + log w: a weight may be 0.
    return jax.nn.logsumexp(jax.nn.log_softmax(outputs, axis=-1), axis=0, b=w)


def ensemble(
    fns: Sequence[Model],
    *,
    weights: Any = None,
    combine: Callable[[Array, Array], Array] = mean_logits,
) -> Any:
    """Several models as one, which every attack then takes.

    What fools all of its members is likelier to fool a model that is none of them.

    Args:
      fns: the models, each ``[B, ...] -> [B, K]`` of the same K, plain or Stochastic.
      weights: ``[M]``, >= 0 and not all 0, may be traced; divided by their sum. None: all equal.
      combine: ``(outputs [M, B, K], weights [M]) -> logits [B, K]``: `mean_logits`, `mean_probs`
        or `mean_log_probs`.

    Returns:
      The model ``[B, ...] -> [B, K]``; Stochastic if a member is (each draws its own).

    Raises:
      ValueError: if there is no member, the weights are not one for each, or a concrete one is
        negative (or all are 0); at the call, if the members' outputs differ in shape.

    Example:
      >>> import jax.numpy as jnp
      >>> both = ensemble([lambda x: x, lambda x: 3 * x])
      >>> both(jnp.array([[1.0, 2.0]])).tolist()
      [[2.0, 4.0]]

    References:
      Y. Dong et al., Boosting adversarial attacks with momentum, 2017, arXiv:1710.06081,
      Algorithm 2 and Section 3.4. Y. Liu et al., Delving into transferable adversarial examples,
      2016, arXiv:1611.02770, Section 2.
    """
    fns = tuple(fns)
    if not fns:
        raise ValueError("an ensemble needs one model or more (got none)")
    raw = jnp.ones(len(fns)) if weights is None else jnp.asarray(weights, jnp.float32)
    if raw.shape != (len(fns),):
        raise ValueError(
            f"weights must have shape [{len(fns)}], one for each model (got shape {raw.shape})"
        )
    check_number("weights", raw, low=0)
    if is_concrete(raw) and not np.asarray(raw).any():
        raise ValueError("weights must not all be 0 (got only zeros)")
    shares = raw / jnp.sum(raw)

    def combined(x: Array, key: Key | None = None) -> Array:
        outputs = [
            call(f, x, None if key is None else jax.random.fold_in(key, i))
            for i, f in enumerate(fns)
        ]
        shapes = {out.shape for out in outputs}
        if len(shapes) > 1 or outputs[0].ndim != 2:
            raise ValueError(
                "all models must return logits [B, K] of one shape "
                f"(got shapes {[out.shape for out in outputs]})"
            )
        return combine(jnp.stack(outputs), shares)

    return Stochastic(combined) if any(isinstance(f, Stochastic) for f in fns) else combined


def _wrong(f: Callable[..., Any], x: Array, y: Array, key: Key | None) -> Array:
    """Whether a model, or one that returns labels alone, errs."""
    outputs = call(f, x, key)
    if outputs.ndim == 1:
        if not jnp.issubdtype(outputs.dtype, jnp.integer):
            raise ValueError(
                "a victim must return logits [B, K] or integer labels [B] "
                f"(got shape {outputs.shape}, dtype {outputs.dtype})"
            )
        return outputs.astype(jnp.int32) != y.astype(jnp.int32)
    return misclassified(outputs, y)


def transfer_matrix(
    sources: Sequence[Model],
    victims: Sequence[Callable[..., Any]],
    x: Array,
    y: Array,
    *,
    key: Key | None = None,
    attack: Attack,
) -> Array:
    """How often what was crafted on one model fools another.

    Args:
      sources: models to craft on, ``[B, ...] -> [B, K]``, plain or Stochastic.
      victims: models to score on; one that tells labels alone, int ``[B]``, will do.
      x: inputs ``[B, ...]``, floating.
      y: their labels, int ``[B]``.
      key: a random key, for an attack or a model that draws; source i is attacked with
        ``fold_in(key, i)``, as ``attack(source, x, y, key=...)``.
      attack: an untargeted attack with its numbers bound: ``partial(fgsm, eps=0.25)``.

    Returns:
      ``[S, V]``: of the examples that victim j classified correctly, the share that it gets wrong
      once they were perturbed on source i. NaN where victim j got none right. Where a source is
      among the victims, the entry is its white-box rate.

    Raises:
      ValueError: if there is no source or no victim, labels are not int ``[B]``, something draws
        and key is None, or as the attack.

    Example:
      >>> import functools, jax.numpy as jnp
      >>> from spax.evasion import fgsm
      >>> steep, flat = (lambda x: x), (lambda x: jnp.argmax(x, 1))
      >>> x, y = jnp.array([[0.6, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
      >>> transfer_matrix([steep], [steep, flat], x, y, attack=functools.partial(fgsm, eps=0.1))
      Array([[0.5, 0.5]], dtype=float32)

    References:
      N. Papernot, P. McDaniel, I. Goodfellow, Transferability in machine learning: from phenomena
      to black-box attacks using adversarial samples, 2016, arXiv:1605.07277, Sections 2 and 3.
      The paper counts all examples; here those that the victim had right, so that its own errors
      are no transfer.
    """
    if not sources or not victims:
        raise ValueError(
            "one source and one victim are needed at least "
            f"(got {len(sources)} sources, {len(victims)} victims)"
        )
    check_batch(x, y)
    if jnp.shape(y) != x.shape[:1]:
        raise ValueError(f"y must have shape [{x.shape[0]}] (got y.shape={jnp.shape(y)})")
    check_labels(y, jnp.iinfo(jnp.int32).max)
    if any(isinstance(f, Stochastic) for f in (*sources, *victims)):
        check_key(key, "a Stochastic source or victim")

    def draw(*path: int) -> Key | None:
        if key is None:
            return None
        drawn = key
        for i in path:
            drawn = jax.random.fold_in(drawn, i)
        return drawn

    size = len(sources)
    right = [~_wrong(f, x, y, draw(size, j)) for j, f in enumerate(victims)]
    rows = []
    for i, source in enumerate(sources):
        x_adv = attack(source, x, y, key=draw(i))
        row = []
        for j, victim in enumerate(victims):
            fooled = _wrong(victim, x_adv, y, draw(size + 1 + i, j)) & right[j]
            row.append(jnp.sum(fooled) / jnp.sum(right[j]))
        rows.append(jnp.stack(row))
    return jnp.stack(rows).astype(jnp.float32)
