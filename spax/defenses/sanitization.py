"""Cleaning of training data before a model learns from it."""

import jax.numpy as jnp
from jax import lax

from spax.checks import check_batch, check_count, check_labels, check_number
from spax.typing import Array, Number, wide

__all__ = ["relabel_knn"]


def relabel_knn(
    x: Array,
    y: Array,
    *,
    num_classes: int,
    eta: Number = 0.5,
    k: int = 10,
    block_size: int = 256,
) -> tuple[Array, Array]:
    """Gives each example the label of its neighbours, where enough of them agree.

    Where a single class has the most votes among the k nearest other examples (Euclidean), and at
    least a share eta of them, the label becomes that class; otherwise it stays, also on a tie for
    the most votes. One pass: all votes are cast by the labels given.

    Helps against labels flipped at random; much less against flips chosen to hide among each
    other. Some right labels are lost too: look at what changed, ``y_new != y``.

    Args:
      x: inputs ``[N, ...]``, floating; put features on a common scale first.
      y: integer labels ``[N]`` in [0, num_classes).
      num_classes: number of classes, static.
      eta: share of the k votes that a new label needs, in [0, 1], may be traced.
      k: number of neighbours, static, 1 <= k < N.
      block_size: examples whose distances are held at once, static: memory is
        ``block_size * N`` numbers. It does not change the result beyond rounding.

    Returns:
      ``(x, y_new)``, the labels in the dtype of ``y``.

    Raises:
      TypeError: if a count is not an int.
      ValueError: if k >= N, eta is outside [0, 1], or on bad inputs or labels.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
      >>> y = jnp.array([0, 1, 0, 1, 1, 1])
      >>> relabel_knn(x, y, num_classes=2, k=2)[1].tolist()
      [0, 0, 0, 1, 1, 1]

    References:
      A. Paudice, L. Munoz-Gonzalez, E. C. Lupu, Label sanitization against label flipping
      poisoning attacks, 2018, arXiv:1803.00992, Algorithm 2.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    check_batch(x, y)
    check_count("num_classes", num_classes, minimum=2)
    check_count("k", k)
    check_count("block_size", block_size)
    check_number("eta", eta, low=0, high=1)
    if y.ndim != 1:
        raise ValueError(f"y must have shape [N] (got y.shape={y.shape})")
    check_labels(y, num_classes)
    n = x.shape[0]
    if k >= n:
        raise ValueError(f"k must be below the number of examples (got k={k}, {n} examples)")
    features = x.reshape(n, -1).astype(wide(x))
    # |a - b|^2 is expanded below; around the mean less of it cancels.
    features = features - jnp.mean(features, axis=0, keepdims=True)
    squares = jnp.sum(features * features, axis=1)

    def vote(row: tuple[Array, Array, Array]) -> Array:
        i, feature, label = row
        distance = squares - 2 * jnp.matmul(features, feature, precision="highest")
        distance = jnp.where(jnp.arange(n) == i, jnp.inf, distance)
        neighbours = lax.top_k(-distance, k)[1]
        votes = jnp.zeros(num_classes, distance.dtype).at[y[neighbours]].add(1)
        most = jnp.max(votes)
        agreed = (jnp.sum(votes == most) == 1) & (most / k >= jnp.asarray(eta, votes.dtype))
        return jnp.where(agreed, jnp.argmax(votes).astype(label.dtype), label)

    return x, lax.map(vote, (jnp.arange(n), features, y), batch_size=min(block_size, n))
