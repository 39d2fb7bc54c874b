"""Evasion: attacks on the inputs of a trained model."""

from spax.evasion.carlini_wagner import carlini_wagner
from spax.evasion.deepfool import deepfool
from spax.evasion.elastic_net import ead
from spax.evasion.fab import fab
from spax.evasion.fgsm import bim, fgsm, least_likely, mi_fgsm, pgd
from spax.evasion.lbfgs import lbfgs, minimize_lbfgs_box
from spax.evasion.malware import binary_saliency
from spax.evasion.saliency_map import jsma

__all__ = [
    "bim",
    "binary_saliency",
    "carlini_wagner",
    "deepfool",
    "ead",
    "fab",
    "fgsm",
    "jsma",
    "lbfgs",
    "least_likely",
    "mi_fgsm",
    "minimize_lbfgs_box",
    "pgd",
]
