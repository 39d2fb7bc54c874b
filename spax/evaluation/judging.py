"""The one judge of all attacks: what an attack claims is computed again from its points."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_batch, check_key, check_number, is_concrete
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
    "Description",
    "Judgement",
    "check_point",
    "describe",
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
            bad |= jnp.isnan(leaf).reshape(batch, -1).any(axis=1)
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
    z = x_adv.astype(dtype).reshape(x.shape[0], -1)
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


def _check(
    logits_fn: Model, x: Array, x_adv: Array, y: PyTree, key: Any, eps: Any, bounds: Bounds
) -> None:
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
    _check(logits_fn, x, x_adv, y, key, eps, bounds)
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


class Description(NamedTuple):
    """Judged points, counted. Distances are over those of the initially right that were fooled."""

    n: int
    initially_wrong: int  # succeed as they are: no merit of the attack
    fooled: int  # of the n - initially_wrong others
    share: float  # fooled / (n - initially_wrong)
    low: float  # its Clopper-Pearson interval, 95 %
    high: float
    median_distance: float
    mean_distance: float
    max_distance: float
    not_finite: int  # of all n points, as are the next three
    out_of_bounds: int
    out_of_ball: int
    no_prediction: int  # the model's outputs have a NaN

    def __str__(self) -> str:
        right = self.n - self.initially_wrong
        text = (
            f"{self.fooled} of {right} fooled ({100 * self.share:.1f} %, "
            f"95 % interval {100 * self.low:.1f} to {100 * self.high:.1f})"
        )
        if self.fooled:
            text += f", median distance {self.median_distance:.4g}"
        if self.initially_wrong:
            text += f"; {self.initially_wrong} wrong from the start"
        refused = {
            "not finite": self.not_finite,
            "out of bounds": self.out_of_bounds,
            "beyond eps": self.out_of_ball,
            "without a prediction": self.no_prediction,
        }
        return text + "".join(f"; {count} {why}" for why, count in refused.items() if count)


def describe(
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
) -> Description:
    """Counts what `judge` decides: successes, distances, and every reason for a refusal.

    Inputs that satisfy the criterion as they are, or on which the model has no prediction, are
    counted apart, so that they flatter neither the success nor the distances.

    Args:
      logits_fn: as for `judge`, and so are the rest.
      x: the inputs ``[B, ...]``.
      x_adv: the points to judge.
      y: labels or wanted labels.
      key: a random key, for a Stochastic model: the inputs and the points are seen once each.
      norm: of the distance.
      eps: largest distance allowed.
      bounds: valid range.
      targeted: whether ``y`` are wanted labels.
      criterion: ``(outputs, y) -> bool [B]``.

    Returns:
      `Description`, Python numbers; ``str`` of it is a sentence and ``_asdict()`` a dict. Shares
      and distances of nothing are NaN.

    Raises:
      ValueError: as `judge`.
      TypeError: on traced values.

    Example:
      >>> import jax.numpy as jnp
      >>> x, x_adv = jnp.array([[0.6, 0.4], [0.6, 0.4]]), jnp.array([[0.3, 0.4], [0.6, 1.5]])
      >>> print(describe(lambda x: x, x, x_adv, jnp.array([0, 0]), norm="linf"))
      1 of 2 fooled (50.0 %, 95 % interval 1.3 to 98.7), median distance 0.3; 1 out of bounds
    """
    from spax.evaluation.accuracy import binomial_interval

    if not is_concrete((x, x_adv, y)):
        raise TypeError("describe gives Python numbers: call it outside jit (got a traced value)")
    _check(logits_fn, x, x_adv, y, key, eps, bounds)
    key_before, key_after = (None, None) if key is None else jax.random.split(key)

    def look(z: Array, key: Key | None) -> Verdict:
        return examine(
            call(logits_fn, z, key),
            x,
            z,
            y,
            norm=norm,
            eps=eps,
            bounds=bounds,
            targeted=targeted,
            criterion=criterion,
        )

    before, after = look(x, key_before), look(x_adv, key_after)
    wrong = np.asarray(before.fooled | ~before.predicted)
    fooled = np.asarray(after.success) & ~wrong
    distances = np.asarray(after.measured, np.float64)[fooled]
    right = int((~wrong).sum())
    low, high = binomial_interval(fooled.sum(), right) if right else (0.0, 1.0)
    finite = np.asarray(after.finite)
    return Description(
        n=wrong.size,
        initially_wrong=int(wrong.sum()),
        fooled=int(fooled.sum()),
        share=float(fooled.sum() / right) if right else float("nan"),
        low=float(low),
        high=float(high),
        median_distance=float(np.median(distances)) if distances.size else float("nan"),
        mean_distance=float(np.mean(distances)) if distances.size else float("nan"),
        max_distance=float(np.max(distances)) if distances.size else float("nan"),
        not_finite=int((~finite).sum()),
        out_of_bounds=int((finite & ~np.asarray(after.in_bounds)).sum()),
        out_of_ball=int((finite & ~np.asarray(after.in_ball)).sum()),
        no_prediction=int((finite & ~np.asarray(after.predicted)).sum()),
    )
