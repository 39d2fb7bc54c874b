"""A check that a loss written for batches treats each example by itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_number
from spax.norms import example_keys
from spax.typing import Array, Key, PyTree

__all__ = ["check_per_example"]


def check_per_example(
    batched_loss: Callable[..., Any],
    loss_fn: Callable[..., tuple[Array, PyTree]] | None,
    params: PyTree,
    data: PyTree,
    *,
    key: Key | None = None,
    tolerance: float = 1e-3,
) -> None:
    """Raises where a batched loss is not the mean of per-example losses on a probe batch.

    Private training clips what one example does to the loss. Where examples are coupled (batch
    normalisation in training mode, a contrastive loss) there is no such thing, and the loss of one
    example that is trained on is not the loss that was meant.

    Args:
      batched_loss: ``(params, data, key) -> scalar`` (or a pair with aux), a mean over rows.
      loss_fn: ``(params, example, key) -> (scalar, aux)`` as `clipped_grad` takes it; None: the
        batched loss of a batch of one row.
      params: pytree of floating arrays.
      data: the probe, at least two different rows ``[B, ...]``.
      key: for losses that draw; each example gets ``fold_in(key, row)``, and a loss that draws
        other numbers for a batch differs for that reason.
      tolerance: of the difference, relative to the larger of the losses; and of the gradients,
        relative to the longer of them.

    Returns:
      None.

    Guarantees:
      What passes agrees on this probe, in value and gradient. Coupling that the probe does not show
      goes unseen; `clipped_grad` never sees a batch and is safe either way.

    Raises:
      ValueError: if they differ, with both values; if there are fewer than two rows.

    Example:
      >>> import jax.numpy as jnp
      >>> def centred(w, x, key):
      ...     return jnp.mean((w * (x - x.mean())) ** 2)
      >>> check_per_example(centred, None, jnp.float32(1), jnp.arange(3.0))
      Traceback (most recent call last):
      ...
      ValueError: the batched loss couples examples: ... (got 0.6667 for the batch, 0 for the mean)

    References:
      M. Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133, Section 3.1
      (what is clipped is the gradient of one example).
    """
    check_number("tolerance", tolerance, low=0, scalar=True)
    data = jax.tree.map(jnp.asarray, data)
    rows = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(data)}
    if len(rows) != 1 or min(rows) < 2:
        raise ValueError(f"data must have at least two rows, the same in all (got {sorted(rows)})")

    def value(out: Any) -> Array:
        return jnp.asarray(out[0] if isinstance(out, tuple) else out, jnp.float32)

    def together(params: PyTree) -> Array:
        return value(batched_loss(params, data, key))

    def one(params: PyTree, example: PyTree, key: Key | None) -> Array:
        if loss_fn is not None:
            return value(loss_fn(params, example, key))
        return value(batched_loss(params, jax.tree.map(lambda v: v[None], example), key))

    keys = None if key is None else example_keys(key, jax.tree.leaves(data)[0])

    def apart(params: PyTree) -> Array:
        return jnp.mean(jax.vmap(one, (None, 0, None if key is None else 0))(params, data, keys))

    found = [jax.jit(jax.value_and_grad(f))(params) for f in (together, apart)]
    losses = [float(loss) for loss, _ in found]
    grads = [
        np.concatenate([np.ravel(v).astype(np.float64) for v in jax.tree.leaves(grad)])
        for _, grad in found
    ]
    if not abs(losses[0] - losses[1]) <= tolerance * max(map(abs, losses)):
        raise ValueError(_explanation("", *losses))
    lengths = [float(np.linalg.norm(grad)) for grad in grads]
    if not np.linalg.norm(grads[0] - grads[1]) <= tolerance * max(lengths):
        raise ValueError(_explanation("gradients of ", *lengths))


def _explanation(what: str, batched: float, mean: float) -> str:
    return (
        "the batched loss couples examples: it is not the mean of the losses of its rows. Batch "
        "normalisation in training mode does this, and contrastive losses; so does a sum in the "
        "place of a mean. Use group or layer normalisation, or batch statistics that are fixed: "
        "the gradient of one example must not depend on the others "
        f"(got {what}{batched:.4g} for the batch, {mean:.4g} for the mean)"
    )
