"""What differential privacy allows an attacker, and what an attack proves about epsilon.

Plain numbers on the host, in 64 bits; arrays broadcast.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from spax.checks import check_number
from spax.evaluation.accuracy import binomial_interval

__all__ = ["advantage_bound", "epsilon_lower_bound", "tpr_bound"]


def _check_privacy(epsilon: npt.ArrayLike, delta: npt.ArrayLike) -> tuple[Any, Any]:
    eps, d = np.asarray(epsilon, np.float64), np.asarray(delta, np.float64)
    check_number("epsilon", eps, low=0)
    check_number("delta", d, low=0, high=1)
    return eps, d


def advantage_bound(epsilon: npt.ArrayLike, delta: npt.ArrayLike) -> Any:
    """Largest membership advantage, TPR - FPR, that (epsilon, delta)-DP allows.

    ``(e^epsilon - 1 + 2 delta) / (e^epsilon + 1)``, sharp: where the two lines of the trade-off
    function (see `tpr_bound`) meet.

    Args:
      epsilon: >= 0; inf gives 1.
      delta: in [0, 1].

    Returns:
      float64, of the common shape.

    Guarantees:
      For a training that is (epsilon, delta)-DP when one record is added or removed, no attack on
      that record's membership, whatever it knows besides, exceeds this in expectation. (Where
      neighbours replace a record, it is the advantage in telling that record from the other.)

    Raises:
      ValueError: if epsilon < 0 or delta outside [0, 1].

    Example:
      >>> round(float(advantage_bound(1.0, 1e-5)), 5)
      0.46212

    References:
      P. Kairouz, S. Oh, P. Viswanath, The composition theorem for differential privacy, 2015,
      arXiv:1311.0776, Section 2 (the region); T. Humphries et al., Investigating membership
      inference attacks under data dependencies, 2020, arXiv:2010.12112 (the advantage).
    """
    eps, d = _check_privacy(epsilon, delta)
    # (e^eps - 1) / (e^eps + 1) = tanh(eps / 2) and 1 / (e^eps + 1) = e^-eps / (1 + e^-eps).
    shrink = np.exp(-eps)
    return (np.tanh(eps / 2) + 2 * d * shrink / (1 + shrink))[()]


def tpr_bound(fpr: npt.ArrayLike, epsilon: npt.ArrayLike, delta: npt.ArrayLike) -> Any:
    """Largest true-positive rate that (epsilon, delta)-DP allows at a false-positive rate.

    The smaller of ``e^epsilon f + delta`` and ``1 - e^-epsilon (1 - delta - f)``, at most 1.

    Args:
      fpr: f, in [0, 1].
      epsilon: >= 0; inf gives 1.
      delta: in [0, 1].

    Returns:
      float64, of the common shape.

    Guarantees:
      As `advantage_bound`. The rates are the attack's true ones: compare the lower end of a
      measured TPR with this bound at the upper end of its FPR.

    Raises:
      ValueError: if a rate is outside [0, 1], epsilon < 0 or delta outside [0, 1].

    Example:
      >>> round(float(tpr_bound(0.001, 1.0, 1e-5)), 5)
      0.00273

    References:
      P. Kairouz, S. Oh, P. Viswanath, 2015, arXiv:1311.0776, Section 2.
    """
    f = np.asarray(fpr, np.float64)
    check_number("fpr", f, low=0, high=1)
    eps, d = _check_privacy(epsilon, delta)
    with np.errstate(divide="ignore", invalid="ignore"):
        # By the logarithm, so that neither a large epsilon overflows nor f = 0 makes a NaN.
        rising = np.exp(np.minimum(np.where(np.isinf(eps), np.inf, eps + np.log(f)), 1.0)) + d
    flat = 1 - np.exp(-eps) * np.maximum(1 - d - f, 0)
    return np.minimum(np.minimum(rising, flat), 1.0)[()]


def epsilon_lower_bound(
    true_positives: npt.ArrayLike,
    members: npt.ArrayLike,
    false_positives: npt.ArrayLike,
    nonmembers: npt.ArrayLike,
    *,
    delta: npt.ArrayLike,
    confidence: float = 0.95,
) -> Any:
    """The epsilon that an attack refutes: no smaller one agrees with its success.

    ``max(log((TPR - delta) / FPR), log((1 - FPR - delta) / (1 - TPR)), 0)``, at the lower
    Clopper-Pearson end of the TPR and the upper one of the FPR.

    Args:
      true_positives: trials with the record in the training set in which the attack said so.
      members: number of such trials, >= 1.
      false_positives: trials without the record in which the attack said it was there.
      nonmembers: number of such trials, >= 1.
      delta: of the claim that is tested, in [0, 1].
      confidence: in (0, 1).

    Returns:
      epsilon, >= 0: float64, of the common shape.

    Guarantees:
      For independent trials (each a training of its own) and an attack whose threshold was fixed
      without looking at them: if the training is (epsilon, delta)-DP, the result exceeds epsilon
      with probability at most ``1 - confidence``. With n perfect trials a side it is about
      ``log(n / log(2 / (1 - confidence)))`` at most.

    Raises:
      ValueError: if a count is not whole or out of range, delta outside [0, 1], or confidence
        outside (0, 1).

    Example:
      >>> round(float(epsilon_lower_bound(1000, 1000, 0, 1000, delta=1e-5)), 4)
      5.6006

    References:
      M. Jagielski, J. Ullman, A. Oprea, Auditing differentially private machine learning: how
      private is private SGD?, 2020, arXiv:2006.07709 (here with both lines of the trade-off).
    """
    delta = np.asarray(delta, np.float64)
    check_number("delta", delta, low=0, high=1)
    tpr, _ = binomial_interval(true_positives, members, confidence)
    _, fpr = binomial_interval(false_positives, nonmembers, confidence)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(np.maximum(tpr - delta, 0)) - np.log(fpr)
        cleared = np.log(np.maximum(1 - fpr - delta, 0)) - np.log(1 - tpr)
    return np.fmax(np.fmax(found, cleared), 0.0)[()]
