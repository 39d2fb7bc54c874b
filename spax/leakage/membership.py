"""Membership inference: was this example in the training set, and how well can one tell.

An attack gives a score to an example, larger for a likelier member. The metrics compare the scores
of known members with those of known non-members; on the host, in 64 bits, exactly.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spax.checks import check_batch, check_key, check_number, is_concrete
from spax.evaluation.accuracy import binomial_interval
from spax.losses import cross_entropy
from spax.typing import Array, Key, Model, PerExampleLoss, PyTree, Stochastic, call

__all__ = [
    "Estimate",
    "Roc",
    "TruePositives",
    "advantage",
    "auc",
    "loss_threshold",
    "roc",
    "tpr_at_fpr",
]

Floats = npt.NDArray[np.float64]


class Roc(NamedTuple):
    """The steps of a ROC curve, from (0, 0) to (1, 1), ``[T]`` each.

    At ``threshold[t]`` an example is called a member if its score is at least the threshold; the
    first, inf, calls nobody one.
    """

    fpr: Floats
    tpr: Floats
    threshold: Floats


class Estimate(NamedTuple):
    """A measured figure with its confidence interval."""

    value: float
    low: float
    high: float


class TruePositives(NamedTuple):
    """The true-positive rate at a threshold, or why there is none.

    ``value``, ``low`` and ``high`` are None where it is not measurable, and ``reason`` says why;
    elsewhere ``reason`` is empty. ``fpr`` is the false-positive rate that the threshold really has
    on the non-members, at most the one asked for, with its own interval.
    """

    value: float | None
    low: float | None
    high: float | None
    fpr: float | None
    fpr_low: float | None
    fpr_high: float | None
    threshold: float | None
    reason: str


def loss_threshold(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    loss: PerExampleLoss = cross_entropy,
) -> Array:
    """Membership scores by the loss alone: members tend to have the smaller one.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: the examples ``[B, ...]``, floating.
      y: their labels, int ``[B]`` in [0, K), or what ``loss`` understands.
      key: a random key, for a Stochastic model.
      loss: ``(outputs, y) -> [B]``.

    Returns:
      ``-loss``, ``[B]``: larger means a likelier member. Yeom's adversary who knows the mean
      training loss calls members the scores of at least its negative.

    Raises:
      ValueError: on wrong shapes; if concrete x is not finite or a label outside the classes; if
        the model is Stochastic and key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> score = jax.jit(lambda w, x, y: loss_threshold(lambda x: x @ w, x, y))
      >>> scores = score(jnp.eye(2), jnp.array([[5.0, 0.0], [0.5, 0.0]]), jnp.array([0, 0]))
      >>> bool(scores[0] > scores[1])  # the model is surer of the first
      True

    References:
      S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, Privacy risk in machine learning: analyzing the
      connection to overfitting, 2018, arXiv:1709.01604, Section 3 (Adversary 2).
    """
    check_batch(x, y)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "a Stochastic model")
    return -loss(call(logits_fn, x, key), y)


def _scores(members: npt.ArrayLike | Array, nonmembers: npt.ArrayLike | Array) -> list[Floats]:
    out = []
    for name, scores in (("members", members), ("nonmembers", nonmembers)):
        if not is_concrete(scores):
            raise TypeError(f"{name} must be concrete: call this outside jit (got a traced value)")
        v = np.asarray(scores, np.float64)
        if v.ndim != 1 or not v.size:
            raise ValueError(f"{name} must have shape [n], n >= 1 (got {name}.shape={v.shape})")
        if np.isnan(v).any():
            raise ValueError(f"{name} must be free of NaN (got {np.isnan(v).sum()} of {v.size})")
        out.append(v)
    return out


def roc(members: npt.ArrayLike | Array, nonmembers: npt.ArrayLike | Array) -> Roc:
    """The ROC curve of membership scores.

    Args:
      members: scores of known members, ``[M]``, larger for a likelier member.
      nonmembers: scores of known non-members, ``[N]``.

    Returns:
      ``Roc(fpr, tpr, threshold)``, one step for each distinct score, descending. Tied examples
      cross the threshold together, and nothing is interpolated.

    Raises:
      ValueError: on empty, wrongly shaped or NaN scores.
      TypeError: on traced values.

    Example:
      >>> curve = roc([3.0, 2.0, 2.0], [2.0, 1.0])
      >>> curve.fpr.tolist(), curve.threshold.tolist()
      ([0.0, 0.0, 0.5, 1.0], [inf, 3.0, 2.0, 1.0])
    """
    inside, outside = _scores(members, nonmembers)
    steps = np.unique(np.concatenate([inside, outside]))[::-1]

    def at_least(scores: Floats) -> Floats:
        below = np.searchsorted(np.sort(scores), steps, side="left")
        return np.concatenate([[0.0], (scores.size - below) / scores.size])

    return Roc(at_least(outside), at_least(inside), np.concatenate([[np.inf], steps]))


def auc(
    members: npt.ArrayLike | Array, nonmembers: npt.ArrayLike | Array, *, confidence: float = 0.95
) -> Estimate:
    """Area under the ROC curve: the chance that a member outscores a non-member.

    Args:
      members: scores of known members, ``[M]``.
      nonmembers: scores of known non-members, ``[N]``.
      confidence: of the interval, in (0, 1).

    Returns:
      ``Estimate(value, low, high)``; a tie counts half. The interval is Newcombe's: every area
      whose distance from the measured one is within its own standard error times the normal
      quantile. It is asymptotic, but stays honest at 0 and 1, and its variance at an area of 1/2,
      that of no leakage at all, is the exact one (without ties; with them it errs on the wide
      side).

    Raises:
      ValueError: as `roc`, or if confidence is outside (0, 1).
      TypeError: on traced values.

    Example:
      >>> auc([3.0, 2.0], [2.0, 1.0]).value
      0.875

    References:
      R. Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney
      statistic, part 2, 2006, method 5. J. Hanley, B. McNeil, The meaning and use of the area under
      a receiver operating characteristic curve, 1982 (the variance).
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    inside, outside = _scores(members, nonmembers)
    check_number("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    m, n = inside.size, outside.size
    ranked = np.sort(outside)
    below = np.searchsorted(ranked, inside, side="left")
    upto = np.searchsorted(ranked, inside, side="right")
    # Whole numbers until here: twice the number of pairs won.
    value = float((below + upto).sum()) / (2 * m * n)
    z = float(ndtri((1 + confidence) / 2))

    def excess(area: float) -> float:
        size = (m + n) / 2
        shape = (1 - area) / (2 - area) + area / (1 + area)
        variance = area * (1 - area) * (1 + (size - 1) * shape) / (m * n)
        return (area - value) ** 2 - z**2 * variance

    # At the measured area the excess is below 0 (0 at 0 and 1), and above at the far ends.
    low = 0.0 if value == 0 else brentq(excess, 0.0, min(value, 1 - 1e-12))
    high = 1.0 if value == 1 else brentq(excess, max(value, 1e-12), 1.0)
    return Estimate(value, float(low), float(high))


def tpr_at_fpr(
    members: npt.ArrayLike | Array,
    nonmembers: npt.ArrayLike | Array,
    fpr: float,
    *,
    confidence: float = 0.95,
) -> TruePositives:
    """Share of the members found at a small false-positive rate.

    The threshold is the lowest at which at most a share ``fpr`` of the non-members pass. Tied
    scores pass together: where a tie would exceed the rate, none of it passes.

    Args:
      members: scores of known members, ``[M]``.
      nonmembers: scores of known non-members, ``[N]``.
      fpr: the false-positive rate allowed, in (0, 1).
      confidence: of the Clopper-Pearson intervals, in (0, 1), each rate on its own.

    Returns:
      `TruePositives`; with fewer than 10 / fpr non-members it is not measurable, since the
      threshold would hang on a handful of examples: ``value`` is then None and ``reason`` says how
      many are needed. The interval of the value is for the threshold as it was found; what rate
      that threshold has beyond these non-members is in ``fpr_low`` and ``fpr_high``.

    Raises:
      ValueError: as `roc`, or if fpr or confidence is outside (0, 1).
      TypeError: on traced values.

    Example:
      >>> import numpy as np
      >>> found = tpr_at_fpr(np.arange(50.0, 150.0), np.arange(100.0), 0.1)
      >>> found.value, found.fpr, found.threshold
      (0.6, 0.1, 90.0)
      >>> tpr_at_fpr(np.arange(50.0, 150.0), np.arange(100.0), 0.01).reason
      'not measurable, needs at least 1000 non-members (got 100)'

    References:
      N. Carlini et al., Membership inference attacks from first principles, 2022,
      arXiv:2112.03570 (why at low false-positive rates).
    """
    inside, outside = _scores(members, nonmembers)
    check_number("fpr", fpr, low=0, high=1, low_open=True, high_open=True)
    check_number("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    # Decimal rates are not exact in binary: 0.1 of 100 means 10, and 10 / 0.001 means 10 000.
    needed = int(np.ceil(10 / fpr * (1 - 1e-12)))
    if outside.size < needed:
        reason = f"not measurable, needs at least {needed} non-members (got {outside.size})"
        return TruePositives(*(None,) * 7, reason=reason)
    allowed = int(np.floor(fpr * outside.size * (1 + 1e-12)))
    curve = roc(inside, outside)
    false = np.rint(curve.fpr * outside.size)
    last = int(np.searchsorted(false, allowed, side="right")) - 1
    threshold = float(curve.threshold[last])
    passed = int(np.rint(curve.tpr[last] * inside.size))
    low, high = binomial_interval(passed, inside.size, confidence)
    fpr_low, fpr_high = binomial_interval(false[last], outside.size, confidence)
    return TruePositives(
        passed / inside.size,
        float(low),
        float(high),
        float(curve.fpr[last]),
        float(fpr_low),
        float(fpr_high),
        threshold,
        "",
    )


def advantage(
    members: npt.ArrayLike | Array,
    nonmembers: npt.ArrayLike | Array,
    *,
    threshold: float | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Membership advantage: true-positive rate minus false-positive rate.

    Args:
      members: scores of known members, ``[M]``.
      nonmembers: scores of known non-members, ``[N]``.
      threshold: call members the scores of at least this, fixed beforehand (such as the negative
        mean training loss); None: the best threshold for these very scores, an upper bound on what
        an attacker gets, never below 0.
      confidence: of the interval, in (0, 1).

    Returns:
      ``Estimate(value, low, high)``.

    Guarantees:
      Independent scores, any distributions, any sizes: each end of the interval fails in at most
      ``(1 - confidence) / 2`` of the cases. At a fixed threshold it joins two Clopper-Pearson
      intervals. At the best one it uses the bound of Dvoretzky, Kiefer, Wolfowitz and Massart on
      both empirical distributions, which holds for all thresholds together, so the search for the
      best is paid for; it is wide.

    Raises:
      ValueError: as `roc`, or if confidence is outside (0, 1) or the threshold is NaN.
      TypeError: on traced values.

    Example:
      >>> advantage([3.0, 2.0, 0.0], [2.0, 1.0, 0.0]).value
      0.3333333333333333
      >>> advantage([3.0, 2.0, 0.0], [2.0, 1.0, 0.0], threshold=0.0).value
      0.0

    References:
      S. Yeom et al., 2018, arXiv:1709.01604, Definition 4. P. Massart, The tight constant in the
      Dvoretzky-Kiefer-Wolfowitz inequality, 1990.
    """
    inside, outside = _scores(members, nonmembers)
    check_number("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    tail = (1 - confidence) / 2
    if threshold is not None:
        check_number("threshold", threshold)
        hits, alarms = (int(np.count_nonzero(s >= threshold)) for s in (inside, outside))
        tpr_low, tpr_high = binomial_interval(hits, inside.size, 1 - tail)
        fpr_low, fpr_high = binomial_interval(alarms, outside.size, 1 - tail)
        value = hits / inside.size - alarms / outside.size
        return Estimate(value, float(tpr_low - fpr_high), float(tpr_high - fpr_low))
    curve = roc(inside, outside)
    value = float(np.max(curve.tpr - curve.fpr))
    # One-sided, each sample at half the tail.
    slack = sum(np.sqrt(np.log(2 / tail) / (2 * s.size)) for s in (inside, outside))
    return Estimate(value, max(0.0, value - float(slack)), min(1.0, value + float(slack)))
