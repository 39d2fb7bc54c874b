"""Label flipping: an attacker who controls some training labels, and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_count, check_key, check_labels, check_number, is_concrete
from spax.typing import Array, Key, Number

__all__ = ["flip_labels"]


def _count(rate: Number, n: int) -> Any:
    """``floor(rate n)``, in float64 where the rate is concrete."""
    # 0.29 * 100 is a little less than 29 in floating point; 29 is meant.
    if is_concrete(rate):
        wide = np.asarray(rate)
        eps = np.finfo(wide.dtype if wide.dtype == np.float32 else np.float64).eps
        return int(np.floor(wide.astype(np.float64) * (1 + 4 * float(eps)) * n))
    share = jnp.asarray(rate, jnp.float32) * (1 + 4 * float(jnp.finfo(jnp.float32).eps))
    return jnp.floor(share * n).astype(jnp.int32)


def flip_labels(
    x: Array,
    y: Array,
    *,
    key: Key | None = None,
    rate: Number,
    num_classes: int,
    mapping: Array | None = None,
    scores: Array | None = None,
) -> tuple[Array, Array]:
    """Changes the labels of a share of the training examples.

    Which: random ones, or those of highest score (the margins of a clean model: far from its
    boundary; their negatives: near). To what: a random other class, or the class that a mapping
    gives (pair flips).

    Args:
      x: inputs ``[N, ...]``, returned as they are.
      y: integer labels ``[N]`` in [0, num_classes).
      key: a random key; not needed where ``mapping`` and ``scores`` leave nothing to draw.
      rate: share of all N examples to flip, in [0, 1], may be traced.
      num_classes: number of classes, static, >= 2.
      mapping: new label of each class, integer ``[num_classes]``; a class mapped to itself is left
        alone. None: uniform over the other classes.
      scores: ``[N]``, flipped from the highest down; ties go to the earlier example. None: random.

    Returns:
      ``(x, y_new)``, the labels in the dtype of ``y``; what was flipped is ``y_new != y``.

    Guarantees:
      Exactly ``floor(rate * N)`` labels change, or all that may if a mapping allows fewer. A rate
      in float32, as every traced one is, counts to its own rounding: beyond about a million
      examples a few labels may change more.

    Raises:
      TypeError: if num_classes is not an int.
      ValueError: on a wrong shape, a label outside the classes, a concrete rate outside [0, 1],
        NaN scores, or without a key where something is drawn.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y = jnp.arange(10) % 2
      >>> _, flipped = flip_labels(y, y, key=jax.random.key(0), rate=0.3, num_classes=2)
      >>> int((flipped != y).sum())
      3

    References:
      B. Biggio, B. Nelson, P. Laskov, Support vector machines under adversarial label noise, 2011.
      A. Paudice, L. Munoz-Gonzalez, E. C. Lupu, Label sanitization against label flipping
      poisoning attacks, 2018, arXiv:1803.00992, Section 3 (which flips harm most).
    """
    y = jnp.asarray(y)
    if y.ndim != 1 or jnp.ndim(x) < 1 or jnp.shape(x)[0] != y.shape[0]:
        raise ValueError(
            "x and y must have shapes [N, ...] and [N] "
            f"(got x.shape={jnp.shape(x)}, y.shape={y.shape})"
        )
    check_count("num_classes", num_classes, minimum=2)
    check_labels(y, num_classes)
    check_number("rate", rate, low=0, high=1)
    n = y.shape[0]
    if mapping is None or scores is None:
        key_new, key_order = jax.random.split(check_key(key, "a random flip"))

    if mapping is None:
        shift = jax.random.randint(key_new, (n,), 1, num_classes, jnp.int32)
        new = ((y.astype(jnp.int32) + shift) % num_classes).astype(y.dtype)
    else:
        mapping = jnp.asarray(mapping)
        if mapping.shape != (num_classes,):
            raise ValueError(
                f"mapping must have shape [{num_classes}] (got mapping.shape={mapping.shape})"
            )
        check_labels(mapping, num_classes)
        new = mapping[y].astype(y.dtype)
    if scores is None:
        priority = jax.random.permutation(key_order, n).astype(jnp.float32)
    else:
        priority = jnp.asarray(scores)
        if priority.shape != (n,):
            raise ValueError(f"scores must have shape [{n}] (got scores.shape={priority.shape})")
        check_number("scores", priority)

    allowed = new != y
    order = jnp.lexsort((-priority, ~allowed))  # the last key leads
    rank = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))
    flipped = allowed & (rank < _count(rate, n))
    return x, jnp.where(flipped, new, y)
