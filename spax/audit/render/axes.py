"""The axes of a plot: which range they show, where a value lies, and the ticks."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

__all__ = ["Axis", "Fit", "axis"]

Fit = Literal["exact", "level", "loose"]

_ZONE = 0.13  # share of an axis that is kept for values that have no place on its scale
_SAME = 1e-9  # values that differ by less, relatively, count as one


@dataclasses.dataclass(frozen=True)
class Axis:
    """Maps data onto pixels: ``low`` lies at ``start``, ``high`` at ``end``.

    Args:
      low: of the range shown.
      high: of the range shown.
      start: pixel of ``low``.
      end: pixel of ``high``.
      log: whether the scale is logarithmic.
      under: pixel where values are drawn that have no logarithm; None: there are none.
      beyond: pixel where infinite values are drawn; None: there are none.
      empty: no value has a place on the scale, so that it has no ticks.
      under_label: tick of ``under``.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    under: float | None = None
    beyond: float | None = None
    empty: bool = False
    under_label: str = "0"

    def __call__(self, value: float) -> float | None:
        """The pixel of a value; None for what is no number, or infinitely small."""
        if math.isnan(value) or value == -math.inf:
            return None
        if value == math.inf:
            return self.beyond
        if self.log and value <= 0:
            return self.under
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and labels."""
        found = [] if self.empty else self._powers() if self.log else self._steps()
        if self.under is not None:
            found.insert(0, (self.under, self.under_label))
        if self.beyond is not None:
            found.append((self.beyond, "∞"))
        return found

    def breaks(self) -> list[float]:
        """Pixels where the scale ends and the place of other values begins."""
        ends = ((self.under, self.start), (self.beyond, self.end))
        return [end for place, end in ends if place is not None and not self.empty]

    def _steps(self, about: int = 5) -> list[tuple[float, str]]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / about
        size = math.floor(math.log10(raw))
        step = next(m * 10.0**size for m in (1, 2, 5, 10) if m * 10.0**size >= raw * (1 - _SAME))
        first = math.ceil(self.low / step - _SAME)
        last = math.floor(self.high / step + _SAME)
        values = [round(i * step, 2 - size) + 0.0 for i in range(first, last + 1)]
        return [(self._at(v), f"{v:.6g}") for v in values]

    def _powers(self) -> list[tuple[float, str]]:
        """Powers of ten, and 2 and 5 times these where there are few."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        inner = (1, 2, 5) if last - first <= 2 else (1,)
        skip = max(1, -(-(last - first) // 7))
        values = [m * 10.0**e for e in range(first, last + 1, skip) for m in inner]
        slack = 1 + _SAME
        within = [v for v in values if self.low / slack <= v <= self.high * slack]
        return [(self._at(v), _power(v)) for v in within]

    def _at(self, value: float) -> float:
        place = self(value)
        assert place is not None  # ticks are finite, and positive where the scale is logarithmic
        return place


def _power(value: float) -> str:
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + _SAME)
    superscript = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    digit = round(value / 10.0**exponent)
    return f"10{superscript}" if digit == 1 else f"{digit}·10{superscript}"


def axis(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool,
    fit: Fit,
) -> Axis:
    """An axis for the values, with a place of their own for those that its scale does not know.

    Args:
      values: what will be drawn; what is no number is left out.
      start: pixel of the lower end.
      end: pixel of the upper end.
      log: whether the scale is logarithmic.
      fit: ``"exact"``: from the smallest to the largest; ``"level"``: from zero where nothing is
        negative, to 1 for shares; ``"loose"``: with a margin around.

    Returns:
      The axis.

    Example:
      >>> axis([1.0, 4.0], 0.0, 100.0, log=False, fit="level").ticks()[0]
      (0.0, '0')
    """
    values = [v for v in values if not math.isnan(v) and v != -math.inf]
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    lowest = min(values, default=1.0)
    zone = _ZONE * (end - start)
    under = beyond = None
    if math.inf in values:
        beyond, end = end - zone / 2, end - zone
    if log and lowest <= 0:
        under, start = start + zone / 2, start + zone
    low, high = _logarithmic(known, fit) if log else _linear(known, fit)
    under_label = "0" if lowest == 0 else "≤ 0"
    return Axis(low, high, start, end, log, under, beyond, not known, under_label)


def _logarithmic(known: list[float], fit: Fit) -> tuple[float, float]:
    low, high = min(known, default=1.0), max(known, default=10.0)
    if fit != "exact" or high < 2 * low:
        return low / 1.6, high * 1.6
    return low, high


def _linear(known: list[float], fit: Fit) -> tuple[float, float]:
    low, high = min(known, default=0.0), max(known, default=1.0)
    shares = low >= 0 and high <= 1
    if fit == "level" and shares and high > 0.5:
        return 0.0, 1.0
    if high - low <= _SAME * max(abs(low), abs(high)):
        margin = 0.5 * abs(high) or 0.5
    else:
        margin = {"exact": 0.0, "level": 0.08, "loose": 0.25}[fit] * (high - low)
    if fit == "level" and low >= 0:
        return 0.0, high + margin
    low, high = low - margin, high + margin
    return (max(low, 0.0), min(high, 1.0)) if shares and fit == "loose" else (low, high)
