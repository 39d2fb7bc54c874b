"""The one judge of all attacks: success and distance are computed again from their points."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_batch, check_key, check_number
from spax.losses import hits, misclassified
from spax.norms import box
from spax.norms import norm as norm_of
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Key,
    Model,
    Number,
    Outputs,
    PyTree,
    Stochastic,
    call,
    wide,
)

__all__ = [
    "SLACK",
    "Judgement",
    "Verdict",
    "check_judged",
    "check_point",
    "examine",
    "judge",
    "lacks_prediction",
]

SLACK = 1e-6
"""How far beyond a radius or a bound still counts as within: rounding, not cheating."""


class Judgement(NamedTuple):
    """Verdicts, ``[B]`` each; the distance is inf where there is no success."""

    success: Array
    distance: Array


class Verdict(NamedTuple):
    """Every reason of a judgement, ``[B]`` each."""

    fooled: Array  # the criterion holds, and the model has a prediction
    predicted: Array  # no NaN among the outputs
    finite: Array  # the point itself is finite
    in_bounds: Array
    in_ball: Array
    measured: Array  # the distance, whatever the verdict

    @property
    def valid(self) -> Array:
        """Whether the point keeps to the rules."""
        return self.finite & self.in_bounds & self.in_ball

    @property
    def success(self) -> Array:
        """Whether the point keeps to the rules and fools."""
        return self.fooled & self.valid


def lacks_prediction(outputs: Outputs, batch: int) -> Array:
    """Whether an example's outputs, any pytree with leading dimension ``batch``, have a NaN."""
    bad = jnp.zeros(batch, bool)
    for leaf in jax.tree.leaves(outputs):
        if jnp.shape(leaf)[:1] == (batch,) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            bad |= jnp.isnan(leaf).any(axis=tuple(range(1, leaf.ndim)))
    return bad


def examine(
    outputs: Outputs,
    x: Array,
    x_adv: Array,
    y: PyTree,
    *,
    norm: str,
    eps: Number | None,
    bounds: Bounds,
    targeted: bool,
    criterion: Criterion | None,
) -> Verdict:
    """Looks at points, with the model's outputs there, in every respect."""
    judged = criterion or (hits if targeted else misclassified)
    predicted = ~lacks_prediction(outputs, x.shape[0])

    dtype = wide(x)
    z = x_adv.astype(dtype).reshape(x.shape[0], math.prod(x.shape[1:]))
    low, high = (b.astype(dtype).reshape(z.shape) for b in box(bounds, x))
    measured = norm_of(z - x.astype(dtype).reshape(z.shape), norm)
    in_ball = jnp.ones(x.shape[:1], bool)
    if eps is not None:
        in_ball = measured <= jnp.maximum(jnp.asarray(eps, dtype), 0) + SLACK
    return Verdict(
        fooled=judged(outputs, y) & predicted,
        predicted=predicted,
        finite=jnp.isfinite(z).all(axis=1),
        in_bounds=((z >= low - SLACK) & (z <= high + SLACK)).all(axis=1),
        in_ball=in_ball,
        measured=measured,
    )


def check_point(x: Array, x_adv: Array) -> None:
    """Raises unless a point to judge has the shape of its input."""
    if jnp.shape(x_adv) != x.shape:
        raise ValueError(f"x_adv must have the shape of x, {x.shape} (got {jnp.shape(x_adv)})")


def check_judged(
    logits_fn: Model, x: Array, x_adv: Array, y: PyTree, key: Any, eps: Any, bounds: Bounds
) -> None:
    """The checks of `judge` and of what counts its verdicts."""
    check_batch(x, y, bounds)
    check_point(x, x_adv)
    if eps is not None:
        check_number("eps", eps, low=0)
        if np.shape(eps) not in ((), x.shape[:1]):
            raise ValueError(
                f"eps must be a scalar or one per example, of shape {x.shape[:1]} "
                f"(got shape {np.shape(eps)})"
            )
    if isinstance(logits_fn, Stochastic):
        check_key(key, "judging a Stochastic model")


def judge(
    logits_fn: Model,
    x: Array,
    x_adv: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    norm: str,
    eps: Number | None = None,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    criterion: Criterion | None = None,
) -> Judgement:
    """Judges what an attack returned, whatever the attack: did it succeed, and at what distance.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: the inputs ``[B, ...]``, floating, within ``bounds``.
      x_adv: the points to judge, shaped as ``x``; any values.
      y: labels (untargeted) or wanted labels (targeted), int ``[B]``, or what ``criterion``
        understands.
      key: a random key, for a Stochastic model: one draw decides.
      norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``, of the distance.
      eps: largest distance allowed, >= 0, scalar or ``[B]``; None: any. A traced value below 0
        means 0.
      bounds: valid range.
      targeted: whether ``y`` are wanted labels.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted.

    Returns:
      ``(success [B], distance [B])``; the distance is inf where there is no success.

    Guarantees:
      No success is granted to a point that is not finite, out of bounds or farther than eps (by
      more than 1e-6 each), nor where the model's outputs have a NaN. `describe` counts those. An
      input that satisfies the criterion as it is succeeds at distance 0.

    Raises:
      ValueError: on wrong shapes or norm; if concrete x is not finite or out of bounds, a label is
        outside the classes, or eps < 0; if the model is Stochastic and key is None.

    Example:
      >>> import jax.numpy as jnp
      >>> x, x_adv = jnp.array([[0.6, 0.4], [0.6, 0.4]]), jnp.array([[0.4, 0.4], [0.3, 0.4]])
      >>> success, distance = judge(
      ...     lambda x: x, x, x_adv, jnp.array([0, 0]), norm="linf", eps=0.25)
      >>> success.tolist(), distance.tolist()
      ([False, False], [inf, inf])
      >>> judge(lambda x: x, x, x_adv, jnp.array([0, 0]), norm="l1").success.tolist()
      [False, True]
    """
    check_judged(logits_fn, x, x_adv, y, key, eps, bounds)
    seen = examine(
        call(logits_fn, x_adv, key),
        x,
        x_adv,
        y,
        norm=norm,
        eps=eps,
        bounds=bounds,
        targeted=targeted,
        criterion=criterion,
    )
    return Judgement(seen.success, jnp.where(seen.success, seen.measured, jnp.inf))
