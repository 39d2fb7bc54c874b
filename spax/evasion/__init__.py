"""Evasion: attacks on the inputs of a trained model."""

from spax.evasion.carlini_wagner import carlini_wagner
from spax.evasion.deepfool import deepfool
from spax.evasion.eot import eot_attack, lab_distance
from spax.evasion.fab import fab
from spax.evasion.fgsm import bim, fgsm, least_likely, mi_fgsm, pgd
from spax.evasion.human import coarse_logits, human_transfer_attack, retinal_blur
from spax.evasion.lbfgs import lbfgs, minimize_lbfgs_box
from spax.evasion.patch import Patch, PatchState, adversarial_patch, apply_patch
from spax.evasion.physical import destruction_rate, photo_transform, random_affine_photo
from spax.evasion.transfer import (
    ensemble,
    mean_log_probs,
    mean_logits,
    mean_probs,
    transfer_matrix,
)
from spax.evasion.transformation_network import (
    ATN,
    ATNState,
    ATNTerms,
    aae,
    atn,
    atn_loss,
    p_atn,
    rerank,
)
from spax.evasion.universal import (
    Universal,
    UniversalState,
    apply_universal,
    universal,
    universal_deepfool,
)

__all__ = [
    "ATN",
    "ATNState",
    "ATNTerms",
    "Patch",
    "PatchState",
    "Universal",
    "UniversalState",
    "aae",
    "adversarial_patch",
    "apply_patch",
    "apply_universal",
    "atn",
    "atn_loss",
    "bim",
    "carlini_wagner",
    "coarse_logits",
    "deepfool",
    "destruction_rate",
    "ensemble",
    "eot_attack",
    "fab",
    "fgsm",
    "human_transfer_attack",
    "lab_distance",
    "lbfgs",
    "least_likely",
    "mean_log_probs",
    "mean_logits",
    "mean_probs",
    "mi_fgsm",
    "minimize_lbfgs_box",
    "p_atn",
    "pgd",
    "photo_transform",
    "random_affine_photo",
    "rerank",
    "retinal_blur",
    "transfer_matrix",
    "universal",
    "universal_deepfool",
]
