"""Plots as SVG, written by hand: small, and the same on every run."""

import dataclasses
import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from spax.audit.render.axes import Axis, Fit, axis
from spax.audit.render.text import clean, escaped
from spax.audit.sections import Plot, Series

__all__ = ["svg"]

# After Okabe and Ito, whose colours colour-blind readers tell apart; the page has lighter ones for
# dark mode. Markers differ as well, so that nothing depends on colour alone.
COLOURS = ("#0b62a8", "#c44e00", "#00795c", "#a8437f", "#8a6d00", "#3f7fb5")
_WIDTH, _PLOT_HEIGHT = 420.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 12.0, 12.0, 48.0
_FONT, _LETTER = 13, 7.1  # size of the text, and about the width of one of its letters
_FEW = 12  # lines of so few points mark them all
_APART = 64.0  # pixels between the markers of the others
_MOST_LETTERS = 44

_Point = tuple[float, float]
_T = TypeVar("_T")


def svg(plot: Plot, *, prefix: str = "plot") -> str:
    """A plot as an SVG element with a title and a description for those who do not see it.

    Colours are the CSS variables ``--series-0`` ... ``--series-5``, ``--ink``, ``--muted``,
    ``--grid`` and ``--paper`` of the page, with defaults. Where a value is not a number there is no
    point, and a line has a gap. What a scale does not know, infinity or zero on a logarithmic one,
    is drawn in a place of its own at the edge, with its own tick; a line does not go to infinity.

    Args:
      plot: the plot.
      prefix: what the ids inside start with; two plots of one page must differ in it.

    Returns:
      The element.

    Example:
      >>> svg(Plot("t", "x", "y", (Series("a", (0.0, 1.0), (0.0, 1.0)),)))[:4]
      '<svg'
    """
    prefix = "".join(c if c.isascii() and c.isalnum() else "-" for c in prefix)
    drawn = [_Drawn(s, i) for i, s in enumerate(plot.series)]
    scattered = bool(drawn) and all(d.series.style == "points" for d in drawn)
    right, bottom = _WIDTH - _RIGHT, _PLOT_HEIGHT - _BOTTOM
    widths = (v for s in plot.series for v in s.x)
    heights = (v for s in plot.series for v in (*s.y, *s.low, *s.high))
    log_x, log_y = "x" in plot.log, "y" in plot.log
    x = axis(widths, _LEFT, right, log=log_x, fit="level" if scattered else "exact")
    fit_y: Fit = "loose" if scattered else "exact" if log_y else "level"
    y = axis(heights, bottom, _TOP, log=log_y, fit=fit_y)
    named_beside = scattered and _fit_beside(plot.series)
    legend, height = ("", _PLOT_HEIGHT) if named_beside else _legend(drawn)
    marks = [d.marks(x, y) for d in drawn]
    parts = [_frame(plot, x, y), *(d.band(x, y) for d in drawn), *marks]
    if not any(marks):
        parts.append(_label((_LEFT + right) / 2, (_TOP + bottom) / 2, "no data", anchor="middle"))
    if named_beside:
        parts.append(_names_beside(drawn, x, y))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" role="img" '
        f'aria-labelledby="{prefix}-title {prefix}-desc" font-size="{_FONT}" '
        'font-family="system-ui, sans-serif">'
        f'<title id="{prefix}-title">{escaped(plot.title)}</title>'
        f'<desc id="{prefix}-desc">{escaped(_description(plot))}</desc>'
        f"{''.join(parts)}{legend}</svg>"
    )


def _description(plot: Plot) -> str:
    said = [f"{plot.y_label} over {plot.x_label}."]
    for s in plot.series:
        points = list(zip(s.x, s.y, strict=False))
        ends = dict.fromkeys((*points[:1], *points[-1:]))
        where = " to ".join(f"{b:.3g} at {a:.3g}" for a, b in ends) or "no points"
        said.append(f"{s.label}: {where}.")
    return " ".join(said)


def _letters(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WFA" else 1 for c in text)


def _short(text: str, most: int = _MOST_LETTERS) -> str:
    """The text, cut where it is wider than so many letters."""
    text = clean(text)
    if _letters(text) <= most:
        return text
    widths = itertools.accumulate(map(_letters, text))
    return text[: sum(width < most for width in widths)] + "…"


def _label(x: float, y: float, text: str, *, anchor: str = "start", ink: str = "muted") -> str:
    """Text that stays readable where it crosses a line."""
    colour = {"muted": "var(--muted,#59636e)", "ink": "var(--ink,#1f2328)"}[ink]
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour};'
        f'stroke:var(--paper,#fff);stroke-width:3;paint-order:stroke">{escaped(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"


def _frame(plot: Plot, x: Axis, y: Axis) -> str:
    """Grid lines, ticks and the names of the axes."""
    right, bottom = _WIDTH - _RIGHT, _PLOT_HEIGHT - _BOTTOM
    grid, texts = [], []
    for place, text in x.ticks():
        grid.append(_line(place, _TOP, place, bottom))
        texts.append(_label(place, bottom + 17, text, anchor="middle"))
    for place, text in y.ticks():
        grid.append(_line(_LEFT, place, right, place))
        texts.append(_label(_LEFT - 7, place + 4.5, text, anchor="end"))
    breaks = [_line(place, _TOP, place, bottom) for place in x.breaks()]
    breaks += [_line(_LEFT, place, right, place) for place in y.breaks()]
    middle = (_LEFT + right) / 2
    texts.append(_label(middle, bottom + 38, _short(plot.x_label), anchor="middle", ink="ink"))
    centre = (_TOP + bottom) / 2
    texts.append(
        f'<g transform="translate(14 {centre:.1f}) rotate(-90)">'
        f"{_label(0, 0, _short(plot.y_label, 32), anchor='middle', ink='ink')}</g>"
    )
    axes = _line(_LEFT, bottom, right, bottom) + _line(_LEFT, _TOP, _LEFT, bottom)
    return (
        f'<path d="{"".join(grid)}" style="fill:none;stroke:var(--grid,#e4e7eb)"/>'
        f'<path d="{"".join(breaks)}" style="fill:none;stroke:var(--muted,#59636e);'
        'stroke-dasharray:1 3"/>'
        f'<path d="{axes}" style="fill:none;stroke:var(--muted,#59636e)"/>{"".join(texts)}'
    )


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A series with the colour and the marker of its place."""

    series: Series
    place: int

    @property
    def colour(self) -> str:
        if self.series.style == "dashed":  # something to compare with, not a model
            return "var(--muted,#59636e)"
        i = self.place % len(COLOURS)
        return f"var(--series-{i},{COLOURS[i]})"

    def places(self, heights: Sequence[float], x: Axis, y: Axis) -> list[_Point | None]:
        """Pixels of the points, None where there is none; only single ones may be infinite."""
        found: list[_Point | None] = []
        for a, b in zip(self.series.x, heights, strict=False):
            left, top = x(a), y(b)
            infinite = self.series.style != "points" and math.inf in (a, b)
            found.append(None if left is None or top is None or infinite else (left, top))
        return found

    def path(self, places: Sequence[_Point]) -> str:
        if self.series.style == "steps":
            corners = [((b[0], a[1]), b) for a, b in itertools.pairwise(places)]
            places = [places[0], *itertools.chain.from_iterable(corners)]
        return "L".join(f"{a:.1f} {b:.1f}" for a, b in places)

    def band(self, x: Axis, y: Axis) -> str:
        """The interval: an area around a line, a bar through a point."""
        low = self.places(self.series.low, x, y)
        high = self.places(self.series.high, x, y)
        ends = [(a, b) if a and b else None for a, b in zip(low, high, strict=False)]
        parts = []
        for run in _runs(ends):
            if self.series.style == "points":
                bars = "".join(_line(*a, *b) for a, b in run)
                style = f"fill:none;stroke:{self.colour};stroke-width:1.5;stroke-opacity:.7"
                parts.append(f'<path d="{bars}" style="{style}"/>')
                continue
            below = self.path([a for a, _ in run]).split("L")
            area = f"M{self.path([b for _, b in run])}L{'L'.join(reversed(below))}Z"
            parts.append(
                f'<path d="{area}" style="fill:{self.colour};fill-opacity:.15;stroke:none"/>'
            )
        return "".join(parts)

    def marks(self, x: Axis, y: Axis) -> str:
        """The line with its markers, or the points."""
        parts = []
        few = self.series.style != "steps" and len(self.series.y) <= _FEW
        for run in _runs(self.places(self.series.y, x, y)):
            alone = len(run) == 1
            if self.series.style != "points" and not alone:
                parts.append(self.stroke("M" + self.path(run)))
            if self.series.style == "points" or alone:
                marked: Iterable[_Point] = run
            elif self.series.style == "dashed":
                marked = ()
            else:
                marked = run if few else _spread(run, 16.0 * (1 + self.place % 4))
            parts += [self.marker(a, b) for a, b in marked]
        return "".join(parts)

    def stroke(self, path: str) -> str:
        dashes = ";stroke-dasharray:5 4" if self.series.style == "dashed" else ""
        width = 1.5 if dashes else 2
        return (
            f'<path d="{path}" style="fill:none;stroke:{self.colour};stroke-width:{width:g};'
            f'stroke-linejoin:round{dashes}"/>'
        )

    def marker(self, a: float, b: float) -> str:
        """A disc, a square, a triangle or a diamond, by the place."""
        r = 4.8 if self.series.style == "points" else 3.6
        shapes = (
            f"M{a - r:.1f} {b:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
            f"M{a - r:.1f} {b - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
            f"M{a:.1f} {b - 1.3 * r:.1f}l{1.2 * r:.1f} {2.1 * r:.1f}h{-2.4 * r:.1f}Z",
            f"M{a:.1f} {b - 1.35 * r:.1f}l{1.35 * r:.1f} {1.35 * r:.1f}l{-1.35 * r:.1f} "
            f"{1.35 * r:.1f}l{-1.35 * r:.1f} {-1.35 * r:.1f}Z",
        )
        shape = shapes[self.place % len(shapes)]
        return f'<path d="{shape}" style="fill:{self.colour};stroke:var(--paper,#fff)"/>'

    def sample(self, a: float, b: float) -> str:
        """What the legend shows: a piece of the line, with its marker."""
        style = self.series.style
        piece = "" if style == "points" else self.stroke(_line(a, b, a + 22, b))
        return piece + ("" if style == "dashed" else self.marker(a + 11, b))


def _runs(items: Iterable[_T | None]) -> Iterator[list[_T]]:
    """What lies between the gaps."""
    run: list[_T] = []
    for item in items:
        if item is not None:
            run.append(item)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _spread(run: Sequence[_Point], first: float) -> Iterator[_Point]:
    """Points at about equal distances along a line, the first so many pixels from its start."""
    walked, wanted = 0.0, first
    for before, here in itertools.pairwise(run):
        walked += math.dist(before, here)
        if walked >= wanted:
            yield here
            wanted = walked + _APART


def _legend(drawn: Sequence[_Drawn]) -> tuple[str, float]:
    """The legend below the plot, as many rows as it takes, and the height of the whole."""
    if not drawn:
        return "", _PLOT_HEIGHT
    parts, left, top = [], _LEFT, _PLOT_HEIGHT + 12
    for d in drawn:
        text = _short(d.series.label)
        width = 28 + _LETTER * _letters(text) + 14
        if left > _LEFT and left + width > _WIDTH:
            left, top = _LEFT, top + 20
        parts.append(d.sample(left, top - 4.5) + _label(left + 28, top, text, ink="ink"))
        left += width
    return "".join(parts), top + 10


def _fit_beside(series: Sequence[Series]) -> bool:
    """Whether names stand beside the points and not in a legend: one each, and few."""
    return len(series) <= 6 and all(len(s.x) == 1 for s in series)


def _names_beside(drawn: Sequence[_Drawn], x: Axis, y: Axis) -> str:
    """Each point's name on the side that has room, moved where it would cover another."""
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for d in drawn:
        text = _short(d.series.label, 24)
        width = _LETTER * _letters(text)
        for a, b in filter(None, d.places(d.series.y, x, y)):
            on_right = a + 10 + width <= _WIDTH
            left = a + 10 if on_right else a - 10 - width
            top = max(b + 4.5, _TOP + 10)
            while any(abs(top - t) < 15 and left < r and s < left + width for s, r, t in taken):
                top += 15
            taken.append((left, left + width, top))
            anchor = "start" if on_right else "end"
            parts.append(_label(left if on_right else a - 10, top, text, anchor=anchor, ink="ink"))
    return "".join(parts)
