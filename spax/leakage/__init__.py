"""Leakage: what a trained model gives away about its training data, measured and bounded."""

from spax.leakage.auditing import advantage_bound, epsilon_lower_bound, tpr_bound
from spax.leakage.membership import (
    Estimate,
    Roc,
    TruePositives,
    advantage,
    auc,
    loss_threshold,
    roc,
    tpr_at_fpr,
)

__all__ = [
    "Estimate",
    "Roc",
    "TruePositives",
    "advantage",
    "advantage_bound",
    "auc",
    "epsilon_lower_bound",
    "loss_threshold",
    "roc",
    "tpr_at_fpr",
    "tpr_bound",
]
