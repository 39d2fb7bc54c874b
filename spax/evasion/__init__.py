"""Evasion: attacks on the inputs of a trained model."""

from spax.evasion.carlini_wagner import carlini_wagner
from spax.evasion.fgsm import bim, fgsm, least_likely, mi_fgsm, pgd

__all__ = ["bim", "carlini_wagner", "fgsm", "least_likely", "mi_fgsm", "pgd"]
