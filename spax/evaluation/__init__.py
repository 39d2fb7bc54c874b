"""Evaluation: one judge for all attacks, accuracies with intervals, sweeps over radii."""

from spax.evaluation.accuracy import (
    Accuracy,
    Curve,
    accuracy,
    binomial_interval,
    radius_curve,
)
from spax.evaluation.describing import Description, describe
from spax.evaluation.judging import Judgement, judge
from spax.evaluation.sweeping import Sweep, compile_attack, sweep, worst_of

__all__ = [
    "Accuracy",
    "Curve",
    "Description",
    "Judgement",
    "Sweep",
    "accuracy",
    "binomial_interval",
    "compile_attack",
    "describe",
    "judge",
    "radius_curve",
    "sweep",
    "worst_of",
]
