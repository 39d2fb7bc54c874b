"""Differential privacy: sampling, clipping, noise, and an account of what was spent."""

from spax.dp import accounting
from spax.dp.clipping import ClipInfo, clipped_grad
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
    "Batch",
    "ClipInfo",
    "Poisson",
    "PrivacyState",
    "PrivateGrad",
    "accounting",
    "add_noise",
    "capacity_for",
    "clipped_grad",
    "epsilon",
    "init_privacy",
    "noised_sums",
    "private_grad",
    "sample",
]
