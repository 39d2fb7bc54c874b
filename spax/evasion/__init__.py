"""Evasion: attacks on the inputs of a trained model."""

from spax.evasion.carlini_wagner import carlini_wagner
from spax.evasion.decision import boundary, hop_skip_jump
from spax.evasion.fgsm import bim, fgsm, least_likely, mi_fgsm, pgd
from spax.evasion.oracle import Oracle
from spax.evasion.spsa import spsa_attack
from spax.evasion.substitute import (
    Substitute,
    SubstituteState,
    jacobian_augment,
    reservoir_sample,
    substitute,
)

__all__ = [
    "Oracle",
    "Substitute",
    "SubstituteState",
    "bim",
    "boundary",
    "carlini_wagner",
    "fgsm",
    "hop_skip_jump",
    "jacobian_augment",
    "least_likely",
    "mi_fgsm",
    "pgd",
    "reservoir_sample",
    "spsa_attack",
    "substitute",
]
