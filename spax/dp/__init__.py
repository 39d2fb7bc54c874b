"""Differential privacy: sampling, clipping, noise, and an account of what was spent."""

from spax.dp import accounting
from spax.dp.adaptive import AdaptiveClip, adaptive_private_grad, split_noise_multiplier
from spax.dp.clipping import (
    ClipInfo,
    ClippedGrad,
    clipped_grad,
    explain_clipping,
    per_example_norms,
)
from spax.dp.coupling import check_per_example
from spax.dp.rules import Rule, automatic, flat, normalised, per_layer
from spax.dp.sampling import Batch, Poisson, capacity_for, sample
from spax.dp.sgd import (
    PrivacyState,
    PrivateGrad,
    add_noise,
    epsilon,
    init_privacy,
    noised_sums,
    private_grad,
)

__all__ = [
    "AdaptiveClip",
    "Batch",
    "ClipInfo",
    "ClippedGrad",
    "Poisson",
    "PrivacyState",
    "PrivateGrad",
    "Rule",
    "accounting",
    "adaptive_private_grad",
    "add_noise",
    "automatic",
    "capacity_for",
    "check_per_example",
    "clipped_grad",
    "epsilon",
    "explain_clipping",
    "flat",
    "init_privacy",
    "noised_sums",
    "normalised",
    "per_example_norms",
    "per_layer",
    "private_grad",
    "sample",
    "split_noise_multiplier",
]
