"""What training with differential privacy promises, beside what an attack measured."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from spax.audit.budget import Budget
from spax.audit.errors import AuditError
from spax.audit.model import Model
from spax.audit.probes import spending
from spax.audit.probes.clean import accuracies
from spax.audit.probes.membership import RATES, mean_loss_advantage, scores
from spax.audit.sections import Measurement, Plot, Section, Series, Verdict
from spax.datasets import Dataset
from spax.dp import PrivacyState, epsilon
from spax.evaluation import Accuracy
from spax.leakage import advantage_bound, tpr_at_fpr, tpr_bound
from spax.typing import Key

__all__ = ["privacy"]

_LARGEST_DELTA = 1e-5


class _Bound(NamedTuple):
    """What epsilon allows a membership attack, beside what was measured, if anything was."""

    name: str
    value: float
    definition: str
    settings: Mapping[str, Any]
    kind: str
    measured: str
    broken: bool


def privacy(models: dict[str, Model], data: Dataset, budget: Budget, key: Key) -> Section:
    """The epsilon spent, what it allows an attacker, and whether the measured attack keeps to it.

    delta is ``min(1e-5, 1 / (10 n))`` for n records. An attack that tells members from others
    better than epsilon allows refutes the receipt: the verdict is then "failure". A receipt that
    counts no release, or fewer records than the data have members, is a "warning".

    Args:
      models: the models by name; `spax.audit.Model.privacy` is the receipt.
      data: its training examples are the members, where they are known.
      budget: ``max_scored`` and ``batch_size`` are used.
      key: a random key.

    Returns:
      The section "privacy".

    Raises:
      AuditError: if a receipt is not a `spax.dp.PrivacyState`.

    References:
      T. Humphries et al., Investigating membership inference attacks under data dependencies,
      2020, arXiv:2010.12112 (the advantage that epsilon allows).
    """
    promised = {name: _receipt(name, m) for name, m in models.items() if m.privacy is not None}
    key_scores, key_clean = jax.random.split(key)
    share = accuracies(models, data.x_test, data.y_test, budget, key_clean)
    measured: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if data.has_members:
        measured = scores({name: models[name] for name in promised}, data, budget, key_scores)
    measurements: list[Measurement] = []
    verdicts: list[Verdict] = []
    points: list[Series] = []
    spendings: list[spending.Spending] = []
    for name in models:
        spent = math.inf
        if name in promised:
            receipt = promised[name]
            delta = min(_LARGEST_DELTA, 1 / (10 * receipt.sampling.num_records))
            spent = float(epsilon(receipt, delta))
            bounds = _bounds(spent, delta, measured.get(name))
            measurements.append(_account(name, receipt, spent, delta))
            measurements += [_row(name, bound, spent, delta) for bound in bounds]
            spendings.append(spending.spending(name, receipt, delta))
            measurements += spendings[-1].measurements
            broken, doubt = _broken(receipt), _doubt(receipt, data)
            if broken:
                verdicts.append(Verdict(name, "privacy", "failure", f"the receipt {broken}"))
            else:
                verdicts.append(_verdict(name, bounds, spent, delta, doubt, name in measured))
        else:
            measurements.append(_no_promise(name))
            verdicts.append(Verdict(name, "privacy", "note", "no promise of privacy came with it"))
        points.append(_point(name, spent, share[name]))
    return Section(
        "privacy",
        "What does the training promise?",
        text="Differential privacy bounds what anybody can learn about one training example, by "
        "whatever attack. A model without a promise may give away anything; what an attack "
        "measured is a lower bound.",
        measurements=tuple(measurements),
        verdicts=tuple(verdicts),
        plots=(
            Plot(
                "Privacy against utility",
                "epsilon spent (∞: no promise)",
                "clean accuracy",
                tuple(points),
                caption="Further left is more private. Bars are 95 % confidence intervals.",
            ),
            *spending.plot(spendings),
        ),
    )


def _receipt(name: str, model: Model) -> PrivacyState:
    if not isinstance(model.privacy, PrivacyState):
        raise AuditError(
            f"privacy of model {name!r} must be the spax.dp.PrivacyState that private_grad returns "
            f"(got {type(model.privacy).__name__})"
        )
    for count in ("steps", "overflow"):
        if np.shape(getattr(model.privacy, count)):
            raise AuditError(
                f"privacy of model {name!r} must be the state of one training (got {count} of "
                f"shape {np.shape(getattr(model.privacy, count))}); take one entry of it"
            )
    return model.privacy


def _no_promise(name: str) -> Measurement:
    return Measurement(
        name,
        "epsilon",
        math.inf,
        "Epsilon of the training: infinite, since no receipt of private training came with the "
        "model.",
        headline="epsilon",
        note="no promise",
    )


def _account(name: str, receipt: PrivacyState, spent: float, delta: float) -> Measurement:
    account, sampling = receipt.spent, receipt.sampling
    return Measurement(
        name,
        "epsilon",
        spent,
        f"Epsilon that the training has spent at delta = {delta:g} for {account.adjacency} of one "
        f"{account.unit}, by Rényi accounting of Gaussian noise on Poisson samples, rounded up; "
        "the probability that a batch overflowed is taken out of delta.",
        settings={
            "delta": delta,
            "adjacency": account.adjacency,
            "unit": account.unit,
            "sampler": account.sampler,
            "rate": sampling.rate,
            "capacity": sampling.capacity,
            "records": sampling.num_records,
            "releases": int(receipt.steps),
            "overflow": float(receipt.overflow),
        },
        headline="epsilon",
        note=f"at delta = {delta:.2g}",
    )


def _bounds(
    spent: float, delta: float, measured: tuple[np.ndarray, np.ndarray] | None
) -> list[_Bound]:
    gain, said, broken = float(advantage_bound(spent, delta)), "", False
    if measured is not None:
        found, _ = mean_loss_advantage(*measured)
        said = f"measured {found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
        broken = found.low > gain
    bounds = [
        _Bound(
            "membership_advantage_bound",
            gain,
            "Largest true-positive minus false-positive rate that epsilon leaves to any attack on "
            "membership, in expectation.",
            {},
            "number",
            said,
            broken,
        )
    ]
    for rate in RATES:
        most, said, broken = float(tpr_bound(rate, spent, delta)), "", False
        if measured is not None:
            rates = tpr_at_fpr(*measured, rate)
            said = rates.reason
            if rates.value is not None and rates.low is not None and rates.fpr_high is not None:
                said = f"measured {rates.value:.3f}"
                broken = rates.low > float(tpr_bound(rates.fpr_high, spent, delta))
        bounds.append(
            _Bound(
                "membership_tpr_bound",
                most,
                "Largest share of the members that epsilon leaves to any attack to find while it "
                f"takes {100 * rate:g} % of the others for members, in expectation.",
                {"fpr": rate},
                "share",
                said,
                broken,
            )
        )
    return bounds


def _row(name: str, bound: _Bound, spent: float, delta: float) -> Measurement:
    return Measurement(
        name,
        bound.name,
        bound.value,
        bound.definition,
        settings={"epsilon": spent, "delta": delta, **bound.settings},
        kind=bound.kind,
        note=bound.measured or "not measured: the training examples are not known",
    )


def _broken(receipt: PrivacyState) -> str:
    """What makes a receipt none at all; empty: nothing."""
    steps, overflow = int(receipt.steps), float(receipt.overflow)
    nothing = bool((np.asarray(receipt.spent.total) == 0).all())
    if steps < 0 or not overflow >= 0:
        return f"is damaged: {steps} releases and an overflow of {overflow:g}"
    if (steps == 0) != nothing:
        return f"contradicts itself: {steps} releases, and {'nothing' if nothing else 'some'} spent"
    return ""


def _doubt(receipt: PrivacyState, data: Dataset) -> str:
    """What speaks against a receipt being this model's; empty: nothing."""
    members = 0 if data.x_train is None else len(data.x_train)
    records = receipt.sampling.num_records
    if int(receipt.steps) == 0:
        return "counts no release: take the state after the training, not the one before"
    if receipt.spent.unit == "record" and members > records:
        return f"is for {records} records, and the data have {members} training examples"
    return ""


def _verdict(
    name: str, bounds: list[_Bound], spent: float, delta: float, doubt: str, measured: bool
) -> Verdict:
    if math.isinf(spent):
        return Verdict(name, "privacy", "failure", "the receipt promises nothing: epsilon is ∞")
    # Rounded up, as everything that a promise says.
    promise = f"epsilon {math.ceil(100 * spent) / 100:.2f} at delta {delta:.2g}"
    if any(bound.broken for bound in bounds):
        return Verdict(
            name,
            "privacy",
            "failure",
            f"an attack on membership does better than {promise} allows: the receipt is not this "
            "model's, the training broke its rules, or members and others differ otherwise",
        )
    if doubt:
        return Verdict(name, "privacy", "warning", f"{promise}, but the receipt {doubt}")
    if not measured:
        return Verdict(name, "privacy", "note", f"{promise}; membership was not measured")
    return Verdict(
        name, "privacy", "ok", f"{promise}; the measured attack stays within what it allows"
    )


def _point(name: str, spent: float, share: Accuracy) -> Series:
    return Series(name, (spent,), (share.value,), (share.low,), (share.high,), style="points")
