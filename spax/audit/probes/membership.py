"""How well an attacker can tell who was in the training data."""

from functools import partial

import jax
import numpy as np

from spax.audit.budget import Budget
from spax.audit.data import in_batches, sample
from spax.audit.model import Model, per_architecture
from spax.audit.sections import Measurement, Plot, Section, Series
from spax.datasets import Dataset
from spax.leakage import Estimate, advantage, auc, loss_threshold, roc, tpr_at_fpr
from spax.typing import Key

__all__ = ["RATES", "mean_loss_advantage", "membership", "scores"]

RATES = (0.001, 0.01, 0.1)
"""The false-positive rates at which the members found are counted."""

_POINTS = 200


def scores(
    models: dict[str, Model], data: Dataset, budget: Budget, key: Key
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of members and non-members by model: the negative loss, larger for likelier members.

    An example without a loss (NaN) gets the score of the least likely member. Which examples are
    scored does not depend on the key, so that all probes report on the same ones.

    Raises:
      ValueError: if the members are not known.
    """
    if data.x_train is None or data.y_train is None:
        raise ValueError(f"{data.name!r} has no members: x_train and y_train are None")
    key_sample = jax.random.key(0)
    parts = [
        sample(data.x_train, data.y_train, budget.max_scored, key_sample),
        sample(data.x_test, data.y_test, budget.max_scored, key_sample),
    ]
    program = per_architecture(lambda f, x, y, key: loss_threshold(f, x, y, key=key))
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for i, (name, model) in enumerate(models.items()):
        budget.say(i / len(models), f"membership in the training data of {name}")
        inside, outside = (
            in_batches(partial(program, model), x, y, key=key, batch_size=budget.batch_size)
            for x, y in parts
        )
        # (nan_to_num would make the infinite ones finite)
        found[name] = (
            np.where(np.isnan(inside), -np.inf, inside),
            np.where(np.isnan(outside), -np.inf, outside),
        )
    return found


def mean_loss_advantage(inside: np.ndarray, outside: np.ndarray) -> tuple[Estimate, float]:
    """The advantage of Yeom's adversary, and its threshold: the negative mean training loss."""
    finite = inside[np.isfinite(inside)]  # some examples may have no loss
    threshold = float(finite.mean()) if finite.size else 0.0
    return advantage(inside, outside, threshold=threshold), threshold


def membership(models: dict[str, Model], data: Dataset, budget: Budget, key: Key) -> Section:
    """Membership inference by the loss: AUC, advantage, and members found at low false alarm.

    Args:
      models: the models by name.
      data: its training examples are the members, its test examples the non-members.
      budget: ``max_scored`` and ``batch_size`` are used.
      key: a random key.

    Returns:
      The section "membership"; without members it says what is missing.

    References:
      S. Yeom et al., Privacy risk in machine learning, 2018, arXiv:1709.01604. N. Carlini et al.,
      Membership inference attacks from first principles, 2022, arXiv:2112.03570 (why low
      false-positive rates).
    """
    title = "Who was in the training data?"
    if not data.has_members:
        return Section(
            "membership",
            title,
            text="Not measured: the training examples are not known. Give x_train and y_train "
            "beside x_test and y_test.",
        )
    measurements: list[Measurement] = []
    series: list[Series] = []
    for name, (inside, outside) in scores(models, data, budget, key).items():
        measurements += _figures(name, inside, outside)
        series.append(_curve(name, inside, outside))
    lowest = min(s.x[0] for s in series)
    grid = tuple(map(float, np.geomspace(lowest, 1.0, 40)))
    return Section(
        "membership",
        title,
        text="An attacker who sees the model's loss on an example guesses that examples of small "
        "loss were trained on. This is the simplest attack, not the strongest.",
        measurements=tuple(measurements),
        plots=(
            Plot(
                "Membership inference",
                "false-positive rate",
                "true-positive rate",
                (*series, Series("guessing", grid, grid, style="dashed")),
                log="xy",
                caption=f"{len(inside)} members and {len(outside)} non-members.",
            ),
        ),
    )


def _figures(name: str, inside: np.ndarray, outside: np.ndarray) -> list[Measurement]:
    settings = {
        "attack": "loss_threshold",
        "loss": "cross-entropy",
        "members": len(inside),
        "nonmembers": len(outside),
    }
    area = auc(inside, outside)
    gain, threshold = mean_loss_advantage(inside, outside)
    rows = [
        Measurement(
            name,
            "membership_auc",
            area.value,
            "Chance that a training example has a smaller loss than a test example (area under the "
            "ROC curve; 0.5 is guessing), with Newcombe's 95 % interval.",
            area.low,
            area.high,
            settings,
            headline="members AUC",
        ),
        Measurement(
            name,
            "membership_advantage",
            gain.value,
            "True-positive minus false-positive rate of calling those members whose loss is at "
            "most the mean training loss, with its 95 % interval.",
            gain.low,
            gain.high,
            settings | {"threshold": threshold},
        ),
    ]
    for rate in RATES:
        found = tpr_at_fpr(inside, outside, rate)
        rows.append(
            Measurement(
                name,
                "membership_tpr",
                found.value,
                f"Share of the training examples found when at most {100 * rate:g} % of the test "
                "examples are taken for members, with its 95 % Clopper-Pearson interval.",
                found.low,
                found.high,
                settings | {"fpr": rate, "measured_fpr": found.fpr},
                kind="share",
                note=found.reason.removeprefix("not measurable, "),
            )
        )
    return rows


def _curve(name: str, inside: np.ndarray, outside: np.ndarray) -> Series:
    """The ROC curve from the first false positive on, thinned evenly on the logarithmic axis."""
    fpr, tpr, _ = roc(inside, outside)
    shown = (fpr > 0) & (tpr > 0)
    fpr, tpr = fpr[shown], tpr[shown]
    wanted = np.geomspace(fpr[0], 1.0, _POINTS)
    at = np.unique(np.searchsorted(fpr, wanted, side="right") - 1)
    return Series(name, tuple(map(float, fpr[at])), tuple(map(float, tpr[at])), style="steps")
