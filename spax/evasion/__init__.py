"""Evasion: attacks on the inputs of a trained model."""

from spax.evasion.audio import audio_cw, distortion_db
from spax.evasion.carlini_wagner import carlini_wagner
from spax.evasion.fgsm import bim, fgsm, least_likely, mi_fgsm, pgd
from spax.evasion.policy import DQN, attacked_rollout, dqn, induced_observation, policy_fgsm

__all__ = [
    "DQN",
    "attacked_rollout",
    "audio_cw",
    "bim",
    "carlini_wagner",
    "distortion_db",
    "dqn",
    "fgsm",
    "induced_observation",
    "least_likely",
    "mi_fgsm",
    "pgd",
    "policy_fgsm",
]
