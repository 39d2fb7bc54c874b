"""Per-example losses and criteria: the ``loss=`` and ``criterion=`` hooks of attacks.

A loss is ``loss(outputs, y) -> [B]``, raised by an untargeted attack and lowered by a targeted
one; a criterion is ``criterion(outputs, y) -> bool [B]``. ``outputs`` is whatever the model
returns, ``y`` any pytree with leading dimension B.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_logits, check_outputs, is_concrete
from spax.typing import Array

__all__ = [
    "cross_entropy",
    "ctc",
    "decodes_to",
    "dlr",
    "dlr_targeted",
    "hits",
    "kl_divergence",
    "margin",
    "misclassified",
]


@jax.custom_jvp
def _softplus(m: Array) -> Array:
    return jnp.logaddexp(m, jnp.zeros_like(m))


@_softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (m,), (dm,) = primals, tangents
    # sigmoid(m) underflows to 0 below m = -87 in float32. The floor keeps the direction.
    floor = max(1e-20, float(jnp.finfo(m.dtype).tiny))
    return _softplus(m), jnp.maximum(jax.nn.sigmoid(m), floor) * dm


def _others(logits: Array, y: Array) -> Array:
    """Logits with the entry of the label at minus infinity."""
    is_label = y.astype(jnp.int32)[:, None] == jnp.arange(logits.shape[1])[None, :]
    return jnp.where(is_label, jnp.array(-jnp.inf, logits.dtype), logits)


def _pick(logits: Array, y: Array) -> Array:
    y = y.astype(jnp.int32)
    # What is too large is filled with NaN; a negative index would count from the end.
    y = jnp.where(y < 0, logits.shape[1], y)
    return jnp.take_along_axis(logits, y[:, None], axis=1, mode="fill")[:, 0]


def cross_entropy(logits: Array, y: Array) -> Array:
    """Cross-entropy of the softmax, ``-log softmax(logits)_y``, in nats.

    Computed as ``softplus(logsumexp_{i != y} Z_i - Z_y)``, with the derivative of the softplus kept
    at or above 1e-20: where float32 rounds the softmax to 0 and 1, the gradient keeps its
    direction instead of vanishing, so that attacks which normalise it still move. Training is not
    affected at its own precision.

    Args:
      logits: ``[B, K]``, K >= 2. Log-probabilities are logits too; probabilities are not.
      y: integer labels ``[B]`` in [0, K).

    Returns:
      ``[B]``, >= 0; NaN for a traced label outside [0, K).

    Raises:
      ValueError: on other shapes or dtypes, or a concrete label outside [0, K).

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1]))[0]), 4)  # log 2
      0.6931
    """
    check_logits(logits, y)
    return _softplus(jax.nn.logsumexp(_others(logits, y), axis=1) - _pick(logits, y))


def margin(logits: Array, y: Array) -> Array:
    """Margin of the best wrong class, ``max_{i != y} Z_i - Z_y``: positive when misclassified.

    Args:
      logits: ``[B, K]``, K >= 2.
      y: integer labels ``[B]`` in [0, K).

    Returns:
      ``[B]``; NaN for a traced label outside [0, K).

    Raises:
      ValueError: on other shapes or dtypes, or a concrete label outside [0, K).

    Example:
      >>> import jax.numpy as jnp
      >>> margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()
      [-1.0]

    References:
      N. Carlini, D. Wagner, Towards evaluating the robustness of neural networks, 2017,
      arXiv:1608.04644, f_6.
    """
    check_logits(logits, y)
    return jnp.max(_others(logits, y), axis=1) - _pick(logits, y)


def dlr(logits: Array, y: Array) -> Array:
    """Difference of logits ratio, ``-(Z_y - max_{i != y} Z_i) / (Z_(1) - Z_(3))``.

    Args:
      logits: ``[B, K]``, K >= 3.
      y: integer labels ``[B]`` in [0, K).

    Returns:
      ``[B]``; invariant to shifting and scaling the logits.

    Raises:
      ValueError: if K < 3, or as `margin`.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(dlr(jnp.array([[4.0, 1.0, 2.0]]), jnp.array([0]))[0]), 4)
      -0.6667

    References:
      F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, arXiv:2003.01690, Eq 5.
    """
    check_outputs(logits)
    if logits.ndim != 2 or logits.shape[1] < 3:
        raise ValueError(f"dlr needs logits [B, K] with K >= 3 (got logits.shape={logits.shape})")
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Array, labels: tuple[Array, Array]) -> Array:
    """Targeted difference of logits ratio, ``-(Z_y - Z_t) / (Z_(1) - (Z_(3) + Z_(4)) / 2)``.

    Raised, not lowered, on the way from the label y to the target t: pass it to an untargeted
    attack with the pair as its labels.

    Args:
      logits: ``[B, K]``, K >= 4.
      labels: ``(y, t)``, integer ``[B]`` each.

    Returns:
      ``[B]``.

    Raises:
      ValueError: if K < 4, or a concrete label is outside [0, K).

    Example:
      >>> import jax.numpy as jnp
      >>> loss = dlr_targeted(jnp.array([[4.0, 1.0, 2.0, 0.0]]), (jnp.array([0]), jnp.array([1])))
      >>> round(float(loss[0]), 4)
      -0.8571

    References:
      F. Croce, M. Hein, 2020, arXiv:2003.01690, Eq 6.
    """
    check_outputs(logits)
    if logits.ndim != 2 or logits.shape[1] < 4:
        raise ValueError(
            f"dlr_targeted needs logits [B, K] with K >= 4 (got logits.shape={logits.shape})"
        )
    y, t = labels
    check_logits(logits, y)
    check_logits(logits, t)
    top = jax.lax.top_k(logits, 4)[0]
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (_pick(logits, t) - _pick(logits, y)) / (scale + 1e-12)


def kl_divergence(logits: Array, log_p: Array) -> Array:
    """Divergence from a reference distribution, ``KL(p || softmax(logits))``, in nats.

    Args:
      logits: ``[B, K]``.
      log_p: log-probabilities of the reference, ``[B, K]``; it takes the place of labels.

    Returns:
      ``[B]``, >= 0.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z = jnp.array([[1.0, 2.0]])
      >>> kl_divergence(z, jax.nn.log_softmax(z)).tolist()
      [0.0]

    References:
      H. Zhang et al., Theoretically principled trade-off between robustness and accuracy, 2019,
      arXiv:1901.08573, Eq 5.
    """
    check_outputs(logits)
    if logits.shape != log_p.shape or logits.ndim != 2:
        raise ValueError(
            "logits and log_p must have the same shape [B, K] "
            f"(got {logits.shape} and {log_p.shape})"
        )
    log_q = jax.nn.log_softmax(logits, axis=1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


def misclassified(logits: Array, y: Array) -> Array:
    """Whether the predicted class differs from ``y``; the criterion of untargeted attacks.

    A row with a NaN among its logits is not called misclassified: it has no prediction.

    Args:
      logits: ``[B, K]``.
      y: integer labels ``[B]``.

    Returns:
      bool ``[B]``.

    Raises:
      ValueError: on other shapes or dtypes, or a concrete label outside [0, K).

    Example:
      >>> import jax.numpy as jnp
      >>> misclassified(jnp.array([[1.0, 2.0]]), jnp.array([0])).tolist()
      [True]
    """
    check_logits(logits, y)
    wrong = jnp.argmax(logits, axis=1).astype(jnp.int32) != y.astype(jnp.int32)
    return wrong & ~jnp.isnan(logits).any(axis=1)


def hits(logits: Array, y: Array) -> Array:
    """Whether the predicted class is ``y``; the criterion of targeted attacks.

    Args:
      logits: ``[B, K]``.
      y: wanted labels, integer ``[B]``.

    Returns:
      bool ``[B]``; False for a row with a NaN.

    Raises:
      ValueError: on other shapes or dtypes, or a concrete label outside [0, K).

    Example:
      >>> import jax.numpy as jnp
      >>> hits(jnp.array([[1.0, 2.0]]), jnp.array([1])).tolist()
      [True]
    """
    check_logits(logits, y)
    right = jnp.argmax(logits, axis=1).astype(jnp.int32) == y.astype(jnp.int32)
    return right & ~jnp.isnan(logits).any(axis=1)


def _check_transcripts(logits: Array, y: Any) -> tuple[Array, Array, Array]:
    if logits.ndim != 3:
        raise ValueError(f"logits must have shape [B, F, V] (got logits.shape={logits.shape})")
    labels, lengths, frames = y
    batch = logits.shape[0]
    if labels.ndim != 2 or lengths.shape != (batch,) or frames.shape != (batch,):
        raise ValueError(
            "y must be (labels [B, N], label lengths [B], frame counts [B]) "
            f"(got shapes {labels.shape}, {lengths.shape}, {frames.shape})"
        )
    return labels, lengths, frames


def ctc(logits: Array, y: tuple[Array, Array, Array]) -> Array:
    """Connectionist temporal classification loss, with the blank at index 0.

    Args:
      logits: ``[B, F, V]``, one row of V symbols a frame.
      y: ``(labels [B, N], label lengths [B], frame counts [B])``; entries beyond a length are
        ignored. (The frame count is the model's own: the loss does not know its stride.)

    Returns:
      ``[B]``, in nats.

    Raises:
      ValueError: on other shapes, or where concrete labels with their repeats do not fit into
        the frames (the loss would be infinite).

    Example:
      >>> import jax.numpy as jnp
      >>> y = (jnp.array([[1]]), jnp.array([1]), jnp.array([2]))
      >>> round(float(ctc(jnp.zeros((1, 2, 2)), y)[0]), 4)  # log 4 - log 3
      0.2877

    References:
      A. Graves et al., Connectionist temporal classification, 2006.
    """
    import optax

    labels, lengths, frames = _check_transcripts(logits, y)
    if is_concrete(y):
        inside = np.arange(1, labels.shape[1])[None, :] < np.asarray(lengths)[:, None]
        repeats = ((np.asarray(labels)[:, 1:] == np.asarray(labels)[:, :-1]) & inside).sum(1)
        needed = np.asarray(lengths) + repeats
        if (needed > np.asarray(frames)).any():
            worst = int(np.argmax(needed - np.asarray(frames)))
            raise ValueError(
                f"the transcript needs more frames than there are (got {int(needed[worst])} "
                f"needed, {int(np.asarray(frames)[worst])} frames in example {worst})"
            )

    def padding(count: Array, size: int) -> Array:
        return (jnp.arange(size)[None, :] >= count[:, None]).astype(logits.dtype)

    return optax.ctc_loss(
        logits, padding(frames, logits.shape[1]), labels, padding(lengths, labels.shape[1])
    )


def decodes_to(logits: Array, y: tuple[Array, Array, Array]) -> Array:
    """Whether the greedy transcript (best path, repeats merged, blanks dropped) equals ``y``.

    Args:
      logits: ``[B, F, V]``, blank at index 0.
      y: as for `ctc`.

    Returns:
      bool ``[B]``.

    Raises:
      ValueError: on other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> path = jnp.array([[1, 1, 0, 1]])
      >>> logits = jnp.where(path[..., None] == jnp.arange(2)[None, None, :], 1.0, 0.0)
      >>> decodes_to(logits, (jnp.array([[1, 1]]), jnp.array([2]), jnp.array([4]))).tolist()
      [True]
    """
    labels, lengths, frames = _check_transcripts(logits, y)
    path = jnp.argmax(logits, axis=2).astype(labels.dtype)
    previous = jnp.pad(path[:, :-1], ((0, 0), (1, 0)))
    in_time = jnp.arange(path.shape[1])[None, :] < frames[:, None]
    kept = (path != 0) & (path != previous) & in_time
    place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, path.shape[1])
    size = max(labels.shape[1], 1)

    def matches(path: Array, place: Array, kept: Array, label: Array, length: Array) -> Array:
        decoded = jnp.zeros(size, path.dtype).at[place].set(path, mode="drop")
        used = jnp.arange(label.shape[0]) < length
        same = jnp.all((decoded[: label.shape[0]] == label) | ~used)
        return same & (jnp.sum(kept) == length)

    return jax.vmap(matches)(path, place, kept, labels, lengths)
