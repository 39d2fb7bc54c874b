"""Gates for continuous integration: ``--fail-under robust@0.1=0.5``."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence

from spax.audit.errors import AuditError
from spax.audit.numbers import real
from spax.audit.sections import AuditReport, Measurement

__all__ = ["Gate", "check_names", "failures", "parse"]

_FORM = "[MODEL:]clean=SHARE, [MODEL:]robust@EPS=SHARE or [MODEL:]cw=DISTANCE"


@dataclasses.dataclass(frozen=True)
class Gate:
    """One requirement: a figure of one model, or of each, must reach ``least``.

    Args:
      text: as the user wrote it.
      metric: ``"clean"``, ``"robust"`` or ``"cw"``.
      eps: radius, of ``"robust"`` alone.
      least: the smallest value that passes.
      model: name of the model; empty: every model.
    """

    text: str
    metric: str
    eps: float | None
    least: float
    model: str = ""

    def concerns(self, m: Measurement) -> bool:
        """Whether it is this measurement that must reach ``least``."""
        if self.model and m.model != self.model:
            return False
        if self.metric == "robust":
            return (
                m.name == "robust_accuracy"
                and m.settings["attack"] in ("worst", "strongest")
                and math.isclose(m.settings["eps"], self.eps or 0.0, rel_tol=1e-9)
            )
        return m.name == {"clean": "clean_accuracy", "cw": "distance_median"}[self.metric]


def parse(text: str) -> Gate:
    """Reads one gate.

    Args:
      text: ``[MODEL:]clean=SHARE``, ``[MODEL:]robust@EPS=SHARE`` or ``[MODEL:]cw=DISTANCE``; a
        share is a number in [0, 1] or a percentage.

    Raises:
      AuditError: if it has another form.

    Example:
      >>> gate = parse("plain:robust@0.1=50%")
      >>> gate.model, gate.metric, gate.eps, gate.least
      ('plain', 'robust', 0.1, 0.5)
    """
    model, _, rest = text.rpartition(":")
    what, equals, least = rest.partition("=")
    metric, at, eps = (part.strip() for part in what.partition("@"))
    if not equals:
        raise AuditError(f"--fail-under {text!r} has no '='; write {_FORM}")
    if metric not in ("clean", "robust", "cw"):
        raise AuditError(f"--fail-under {text!r}: unknown metric {metric!r}; write {_FORM}")
    if bool(at) != (metric == "robust"):
        what = "needs a radius, as in robust@0.1" if metric == "robust" else "takes no radius"
        raise AuditError(f"--fail-under {text!r}: {metric} {what}; write {_FORM}")
    radius = _number(text, eps) if at else None
    if radius is not None and not radius > 0:
        raise AuditError(f"--fail-under {text!r}: the radius must be > 0; clean=... is at 0")
    percent = least.strip().endswith("%")
    value = _number(text, least.strip().rstrip("%")) / (100 if percent else 1)
    if value < 0 or (metric != "cw" and value > 1):
        raise AuditError(
            f"--fail-under {text!r}: a share lies in [0, 1] or ends in %; write {_FORM}"
        )
    return Gate(text, metric, radius, value, model.strip())


def _number(text: str, number: str) -> float:
    try:
        return real(number)
    except ValueError:
        raise AuditError(
            f"--fail-under {text!r}: {number!r} is not a number; write {_FORM}"
        ) from None


def check_names(gates: Iterable[Gate], models: Collection[str]) -> None:
    """Raises unless every gate speaks of a model that there is; before the audit, not after it."""
    for gate in gates:
        if gate.model and gate.model not in models:
            raise AuditError(
                f"--fail-under {gate.text!r}: there is no model {gate.model!r}; "
                f"the models are {', '.join(models)}"
            )


def failures(gates: Iterable[Gate], report: AuditReport) -> Sequence[str]:
    """What was not reached, one line each.

    A robust accuracy that the masking checks do not trust fails, however high it is; so does a
    figure that was not measured.
    """
    measured = [m for section in report.sections for m in section.measurements]
    doubted = {
        v.model
        for section in report.sections
        for v in section.verdicts
        if v.name in ("robustness", "masking") and v.level == "failure"
    }
    lines = []
    for gate in gates:
        found = [m for m in measured if gate.concerns(m)]
        if not found:
            lines.append(f"{gate.text}: not measured")
        for m in found:
            if m.value is None or math.isnan(m.value):
                lines.append(f"{gate.text}: not measured of {m.model}")
            elif m.value < gate.least:
                lines.append(
                    f"{gate.text}: {m.model} has {m.value:.4g}, {gate.least - m.value:.4g} less "
                    f"than {gate.least:.4g}"
                )
            elif gate.metric != "clean" and m.model in doubted:
                lines.append(f"{gate.text}: {m.model} has {m.value:.4g}, which is not trustworthy")
    return lines
