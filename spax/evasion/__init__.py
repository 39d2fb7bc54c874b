"""Evasion: attacks on the inputs of a trained model."""

from spax.evasion.audio import audio_cw, distortion_db
from spax.evasion.carlini_wagner import carlini_wagner
from spax.evasion.decision import boundary, hop_skip_jump
from spax.evasion.deepfool import deepfool
from spax.evasion.elastic_net import ead
from spax.evasion.fab import fab
from spax.evasion.fgsm import bim, fgsm, least_likely, mi_fgsm, pgd
from spax.evasion.lbfgs import lbfgs, minimize_lbfgs_box
from spax.evasion.malware import binary_saliency
from spax.evasion.oracle import Oracle
from spax.evasion.policy import DQN, attacked_rollout, dqn, induced_observation, policy_fgsm
from spax.evasion.saliency_map import jsma
from spax.evasion.spsa import spsa_attack
from spax.evasion.substitute import (
    Substitute,
    SubstituteState,
    jacobian_augment,
    reservoir_sample,
    substitute,
)

__all__ = [
    "DQN",
    "Oracle",
    "Substitute",
    "SubstituteState",
    "attacked_rollout",
    "audio_cw",
    "bim",
    "binary_saliency",
    "boundary",
    "carlini_wagner",
    "deepfool",
    "distortion_db",
    "dqn",
    "ead",
    "fab",
    "fgsm",
    "hop_skip_jump",
    "induced_observation",
    "jacobian_augment",
    "jsma",
    "lbfgs",
    "least_likely",
    "mi_fgsm",
    "minimize_lbfgs_box",
    "pgd",
    "policy_fgsm",
    "reservoir_sample",
    "spsa_attack",
    "substitute",
]
