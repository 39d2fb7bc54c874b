"""What the page and the terminal write alike: numbers, names, and which figure stands where."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal
from typing import Any

import numpy as np

from spax.audit.sections import AuditReport, Measurement, Verdict

__all__ = [
    "NOT_MEASURABLE",
    "Row",
    "clean",
    "conclusions",
    "figure",
    "flat",
    "grounds",
    "headlines",
    "interval",
    "label",
    "measurable",
    "plain",
    "rows",
]

NOT_MEASURABLE = "not measurable"
_DIGITS = 4
_ACRONYMS = {w.lower(): w for w in ("AUC", "TPR", "FPR", "FGSM", "PGD", "SPSA")}


def clean(text: object) -> str:
    """Text without control characters, lone surrogates and marks that reorder what is read.

    Example:
      >>> clean("a" + chr(27) + "b")
      'a\ufffdb'
    """
    return "".join(c if c.isprintable() or c in "\n\t\xa0" else "\ufffd" for c in str(text))


def measurable(m: Measurement) -> bool:
    """Whether there is a figure."""
    return m.value is not None and not math.isnan(m.value)


def figure(m: Measurement) -> str:
    r"""The figure as it is written; bounds on leakage are rounded up.

    Example:
      >>> figure(Measurement("m", "clean_accuracy", 0.9777, "", kind="share"))
      '97.8\xa0%'
    """
    if m.value is None or math.isnan(m.value):
        return NOT_MEASURABLE
    return _written(m.value, m.kind, _rounds_up(m)) + ("\xa0%" if m.kind == "share" else "")


def interval(m: Measurement) -> str:
    """Its 95 % confidence interval, in the unit of the figure; empty where there is none.

    Example:
      >>> interval(Measurement("m", "auc", 0.5, "", low=0.45, high=0.55))
      '[0.45, 0.55]'
    """
    if m.low is None or m.high is None or not measurable(m):
        return ""
    low, high = (_written(v, m.kind, False) for v in (m.low, m.high))
    return f"[{low}, {high}]"


def _rounds_up(m: Measurement) -> bool:
    """What promises an upper bound must not promise too little for being rounded."""
    return m.name in ("epsilon", "delta") or m.name.endswith("_bound")


def _written(value: float, kind: str, up: bool) -> str:
    value = float(value)
    if math.isnan(value):
        return "?"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    rounding = ROUND_CEILING if up else ROUND_HALF_EVEN
    exact = Decimal(repr(value))
    if kind == "count":
        return f"{exact.to_integral_value(rounding):,}"
    if kind == "share":
        return _percentage(100 * exact, rounding)
    rounded = Context(prec=_DIGITS, rounding=rounding).create_decimal(exact).normalize()
    if not rounded:
        return "0"
    if -5 <= rounded.adjusted() < 9:
        return f"{rounded:,f}"
    return f"{rounded:e}".replace("e+", "e")


def _percentage(percent: Decimal, rounding: str) -> str:
    """With one decimal, or as many as it takes not to claim 0 or 100 falsely."""
    for digits in range(1, 5):
        rounded = percent.quantize(Decimal(1).scaleb(-digits), rounding)
        if rounded not in (0, 100) or rounded == percent:
            break
    return f"{rounded:f}"


def label(name: str) -> str:
    """A measurement's name in words.

    Example:
      >>> label("robust_accuracy"), label("membership_auc")
      ('Robust accuracy', 'Membership AUC')
    """
    words = " ".join(_ACRONYMS.get(w, w) for w in clean(name).replace("_", " ").split())
    return words[:1].upper() + words[1:]


def plain(value: Any) -> str:
    """A setting on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}".replace("inf", "∞")
    if isinstance(value, np.ndarray) and value.ndim:
        value = value.tolist()
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(k)}: {plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return clean(value)


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs of a dotted name and a text.

    Example:
      >>> flat({"budget": {"norm": "linf", "eps": (0.1, 0.2)}})
      [('budget.norm', 'linf'), ('budget.eps', '0.1, 0.2')]
    """
    pairs = []
    for name, value in settings.items():
        name = prefix + clean(name)
        if isinstance(value, Mapping) and value:
            pairs += flat(value, name + ".")
        else:
            pairs.append((name, plain(value)))
    return pairs


def headlines(report: AuditReport) -> tuple[list[str], dict[str, dict[str, Measurement]]]:
    """The summary: its columns in order of appearance, and by model the figures by column."""
    found: dict[str, dict[str, Measurement]] = {name: {} for name in report.models}
    columns: dict[str, None] = {}
    for section in report.sections:
        for m in section.measurements:
            if m.headline:
                columns[m.headline] = None
                found.setdefault(m.model, {}).setdefault(m.headline, m)
    return list(columns), found


def conclusions(report: AuditReport) -> list[Verdict]:
    """The verdicts of the summary: the first of each section about each model, by model."""
    first = [v for section in report.sections for v in _firsts(section.verdicts)]
    order = {name: i for i, name in enumerate(report.models)}
    return sorted(first, key=lambda v: order.get(v.model, len(order)))


def grounds(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What a section's conclusions rest on: all its other verdicts."""
    first = {id(v) for v in _firsts(verdicts)}
    return [v for v in verdicts if id(v) not in first]


def _firsts(verdicts: Iterable[Verdict]) -> list[Verdict]:
    found: dict[str, Verdict] = {}
    for verdict in verdicts:
        found.setdefault(verdict.model, verdict)
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure of several models: what it is called, what tells it from its like, and cells."""

    name: str
    setting: tuple[tuple[str, str], ...]
    cells: Mapping[str, Measurement]


def rows(measurements: Sequence[Measurement]) -> list[Row]:
    """Measurements as a table with a column for each model.

    Measurements of one name are told apart by as few settings as suffice within a model (attack and
    eps, not the number of steps that follows from the attack).
    """
    by_name: dict[str, list[Measurement]] = {}
    for m in measurements:
        by_name.setdefault(m.name, []).append(m)
    table = []
    for name, alike in by_name.items():
        telling = _telling(alike)
        found: dict[tuple, dict[str, Measurement]] = {}
        for m in alike:
            setting = tuple((key, plain(m.settings[key])) for key in telling if key in m.settings)
            copy = 0  # two that nothing tells apart stand in two rows
            while m.model in found.get((setting, copy), {}):
                copy += 1
            found.setdefault((setting, copy), {})[m.model] = m
        table += [Row(name, setting, cells) for (setting, _), cells in found.items()]
    return table


def _telling(alike: Sequence[Measurement]) -> list[str]:
    """Fewest settings, taken in their order, that tell the measurements of each model apart."""
    keys = list(dict.fromkeys(key for m in alike for key in m.settings))

    def kinds(chosen: list[str]) -> int:
        return len({(m.model, *(plain(m.settings.get(k)) for k in chosen)) for m in alike})

    telling: list[str] = []
    for key in keys:
        if kinds([*telling, key]) > kinds(telling):
            telling.append(key)
    return telling
