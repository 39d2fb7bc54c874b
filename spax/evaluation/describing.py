"""What the judge decided, counted, with every reason for a refusal."""

from typing import NamedTuple

import jax
import numpy as np

from spax.checks import is_concrete
from spax.evaluation.accuracy import binomial_interval
from spax.evaluation.judging import Verdict, check_judged, examine
from spax.typing import Array, Bounds, Criterion, Key, Model, Number, PyTree, call

__all__ = ["Description", "describe"]


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
    if not is_concrete((x, x_adv, y)):
        raise TypeError("describe gives Python numbers: call it outside jit (got a traced value)")
    check_judged(logits_fn, x, x_adv, y, key, eps, bounds)
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
