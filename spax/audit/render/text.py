"""What the page and the terminal write alike: numbers, names, and which figure stands where."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from html import escape
from typing import Any

import numpy as np

from spax.audit.sections import LEVELS, AuditReport, Measurement, Verdict

__all__ = [
    "NOT_MEASURABLE",
    "Row",
    "clean",
    "conclusions",
    "doubted",
    "escaped",
    "figure",
    "flat",
    "headlines",
    "interval",
    "label",
    "level",
    "measurable",
    "named",
    "plain",
    "rows",
    "sentence",
    "split",
]

NOT_MEASURABLE = "not measurable"
_DIGITS = 3
_ACRONYMS = {w.lower(): w for w in ("AUC", "TPR", "FPR", "FGSM", "PGD", "SPSA")}


def clean(text: object) -> str:
    """Text without control characters, lone surrogates and marks that reorder what is read.

    Example:
      >>> clean("a" + chr(27) + "b")
      'a\ufffdb'
    """
    return "".join(c if c.isprintable() or c in "\n\t\xa0" else "\ufffd" for c in str(text))


def escaped(text: object) -> str:
    """Clean text that stands in HTML or SVG, as content or between quotes.

    Example:
      >>> escaped("<b>")
      '&lt;b&gt;'
    """
    return escape(clean(text))


def measurable(m: Measurement) -> bool:
    """Whether there is a figure."""
    return m.value is not None and not math.isnan(m.value)


def doubted(m: Measurement) -> bool:
    """Whether the figure is not to be believed, as `spax.audit.run` notes beside it."""
    return m.note.startswith("not trustworthy")


def figure(m: Measurement) -> str:
    r"""The figure as it is written; bounds on leakage are rounded up.

    Example:
      >>> figure(Measurement("m", "clean_accuracy", 0.9777, "", kind="share"))
      '97.8\xa0%'
    """
    if m.value is None or math.isnan(m.value):
        return NOT_MEASURABLE
    # What promises an upper bound must not promise too little for being rounded.
    bound = m.name in ("epsilon", "delta") or m.name.endswith("_bound")
    rounding = ROUND_CEILING if bound else ROUND_HALF_EVEN
    return _written(m.value, m.kind, rounding, abs(m.value)) + (
        "\xa0%" if m.kind == "share" else ""
    )


def interval(m: Measurement) -> str:
    """Its 95 % confidence interval, in the unit of the figure; empty where there is none.

    It is rounded outwards, so that it is never narrower than what was found.

    Example:
      >>> interval(Measurement("m", "advantage", 0.05, "", low=-0.0012, high=0.12341))
      '[-0.002, 0.124]'
    """
    if m.low is None or m.high is None or not measurable(m):
        return ""
    size = max((abs(v) for v in (m.low, m.high) if math.isfinite(v)), default=0.0)
    low, high = (
        _written(v, m.kind, rounding, size)
        for v, rounding in ((m.low, ROUND_FLOOR), (m.high, ROUND_CEILING))
    )
    return f"[{low}, {high}]"


def _written(value: float, kind: str, rounding: str, size: float) -> str:
    """A number to as many decimals as one of the size needs."""
    value = float(value)
    if math.isnan(value):
        return "?"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    exact = Decimal(repr(value))
    if kind == "count":
        return f"{exact.to_integral_value(rounding):,}"
    if kind == "share":
        return _percentage(100 * exact, rounding)
    if not value:
        return "0"
    first = Decimal(repr(float(size))).adjusted()  # the exponent of the first digit
    if -5 <= first < 9:
        rounded = exact.quantize(Decimal(1).scaleb(min(first + 1 - _DIGITS, 0)), rounding)
        return f"{rounded:,f}"
    rounded = Context(prec=_DIGITS, rounding=rounding).create_decimal(exact)
    return f"{rounded.normalize():e}".replace("e+", "e")


def _percentage(percent: Decimal, rounding: str) -> str:
    """With one decimal, or as many as it takes not to claim 0 or 100 falsely."""
    for digits in range(1, 5):
        rounded = percent.quantize(Decimal(1).scaleb(-digits), rounding)
        # (an end of an interval, or a bound, that is rounded outwards claims nothing falsely)
        if rounded not in (0, 100) or rounded == percent or rounding != ROUND_HALF_EVEN:
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
    """A setting on one line.

    Example:
      >>> plain((0.1, None, True))
      '0.1, none, yes'
    """
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}".replace("inf", "∞")
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(k)}: {plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, str | int | os.PathLike):
        return clean(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return clean(named(value))


def named(value: object) -> str:
    """A function or an object by its name, never by its address, which changes from run to run.

    Example:
      >>> named(math.sqrt)
      'math.sqrt'
    """
    known = value if hasattr(value, "__qualname__") else type(value)
    return f"{known.__module__}.{known.__qualname__}"


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
    first = [v for section in report.sections for v in split(section.verdicts)[0]]
    order = {name: i for i, name in enumerate(report.models)}
    return sorted(first, key=lambda v: order.get(v.model, len(order)))


def split(verdicts: Sequence[Verdict]) -> tuple[list[Verdict], list[Verdict]]:
    """A section's conclusions, the first verdict about each model, and what they rest on."""
    models: set[str] = set()
    parts: tuple[list[Verdict], list[Verdict]] = ([], [])
    for verdict in verdicts:
        parts[verdict.model in models].append(verdict)
        models.add(verdict.model)
    return parts


def level(verdict: Verdict) -> str:
    """How bad it is; a level that nobody knows is a note.

    Example:
      >>> level(Verdict("m", "robustness", "failure", "not trustworthy"))
      'failure'
    """
    return verdict.level if verdict.level in LEVELS else "note"


def sentence(verdict: Verdict) -> tuple[str, str]:
    """What a verdict says, in front of its text what it is about, if the text does not say so.

    Example:
      >>> sentence(Verdict("m", "masking", "ok", "no sign of it"))
      ('masking: ', 'no sign of it')
      >>> sentence(Verdict("m", "robustness", "warning", "not robust"))
      ('', 'not robust')
    """
    about = label(verdict.name).lower()
    # "robust: ..." and "not robust: ..." say what they are about.
    named_already = about[:6] in verdict.text.lower()[: len(about)]
    return "" if named_already else f"{about}: ", clean(verdict.text)


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
