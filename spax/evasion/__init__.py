"""Evasion: attacks on the inputs of a trained model."""

from spax.evasion.apgd import apgd, apgd_targeted
from spax.evasion.autoattack import AutoAttackInfo, autoattack
from spax.evasion.carlini_wagner import carlini_wagner
from spax.evasion.deepfool import deepfool
from spax.evasion.fab import fab
from spax.evasion.fgsm import bim, fgsm, least_likely, mi_fgsm, pgd
from spax.evasion.lbfgs import lbfgs, minimize_lbfgs_box
from spax.evasion.square import SquareInfo, square

__all__ = [
    "AutoAttackInfo",
    "SquareInfo",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "bim",
    "carlini_wagner",
    "deepfool",
    "fab",
    "fgsm",
    "lbfgs",
    "least_likely",
    "mi_fgsm",
    "minimize_lbfgs_box",
    "pgd",
    "square",
]
