"""Evasion: attacks on the inputs of a trained model."""

from spax.evasion.apgd import apgd, apgd_targeted
from spax.evasion.audio import audio_cw, distortion_db
from spax.evasion.autoattack import AutoAttackInfo, autoattack
from spax.evasion.carlini_wagner import carlini_wagner
from spax.evasion.decision import boundary, hop_skip_jump
from spax.evasion.deepfool import deepfool
from spax.evasion.elastic_net import ead
from spax.evasion.eot import eot_attack, lab_distance
from spax.evasion.fab import fab
from spax.evasion.fgsm import bim, fgsm, least_likely, mi_fgsm, pgd
from spax.evasion.human import coarse_logits, human_transfer_attack, retinal_blur
from spax.evasion.lbfgs import lbfgs, minimize_lbfgs_box
from spax.evasion.malware import binary_saliency
from spax.evasion.oracle import Oracle
from spax.evasion.patch import Patch, PatchState, adversarial_patch, apply_patch
from spax.evasion.physical import destruction_rate, photo_transform, random_affine_photo
from spax.evasion.policy import DQN, attacked_rollout, dqn, induced_observation, policy_fgsm
from spax.evasion.saliency_map import jsma
from spax.evasion.spsa import spsa_attack
from spax.evasion.square import SquareInfo, square
from spax.evasion.substitute import (
    Substitute,
    SubstituteState,
    jacobian_augment,
    reservoir_sample,
    substitute,
)
from spax.evasion.transfer import ensemble, mean_log_probs, mean_logits, mean_probs, transfer_matrix
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
    "DQN",
    "ATNState",
    "ATNTerms",
    "AutoAttackInfo",
    "Oracle",
    "Patch",
    "PatchState",
    "SquareInfo",
    "Substitute",
    "SubstituteState",
    "Universal",
    "UniversalState",
    "aae",
    "adversarial_patch",
    "apgd",
    "apgd_targeted",
    "apply_patch",
    "apply_universal",
    "atn",
    "atn_loss",
    "attacked_rollout",
    "audio_cw",
    "autoattack",
    "bim",
    "binary_saliency",
    "boundary",
    "carlini_wagner",
    "coarse_logits",
    "deepfool",
    "destruction_rate",
    "distortion_db",
    "dqn",
    "ead",
    "ensemble",
    "eot_attack",
    "fab",
    "fgsm",
    "hop_skip_jump",
    "human_transfer_attack",
    "induced_observation",
    "jacobian_augment",
    "jsma",
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
    "policy_fgsm",
    "random_affine_photo",
    "rerank",
    "reservoir_sample",
    "retinal_blur",
    "spsa_attack",
    "square",
    "substitute",
    "transfer_matrix",
    "universal",
    "universal_deepfool",
]
