"""Defences: objectives to train with, wrappers around models, and cleaners of training data."""

from spax.defenses.adversarial_training import (
    LossTerms,
    adversarial_loss,
    mixed_adversarial_loss,
    trades_loss,
    truncated_normal_eps,
)
from spax.defenses.randomization import random_resize_pad, randomized_resize
from spax.defenses.sanitization import relabel_knn
from spax.defenses.transformations import bit_depth, quantize

__all__ = [
    "LossTerms",
    "adversarial_loss",
    "bit_depth",
    "mixed_adversarial_loss",
    "quantize",
    "random_resize_pad",
    "randomized_resize",
    "relabel_knn",
    "trades_loss",
    "truncated_normal_eps",
]
