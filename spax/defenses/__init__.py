"""Defences: objectives to train with, wrappers around models, and cleaners of training data."""

from spax.defenses.adversarial_training import (
    LossTerms,
    adversarial_loss,
    mixed_adversarial_loss,
    trades_loss,
    truncated_normal_eps,
)

__all__ = [
    "LossTerms",
    "adversarial_loss",
    "mixed_adversarial_loss",
    "trades_loss",
    "truncated_normal_eps",
]
