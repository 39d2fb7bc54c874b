"""Plots as SVG and grids of images as PNG, written by hand: small, and the same on every run."""

import base64
import dataclasses
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

from spax.audit.render.text import clean
from spax.audit.sections import Images, Plot, Series

__all__ = ["image_grid", "png", "svg"]

# Okabe and Ito's colours, which colour-blind readers tell apart; the page has lighter ones for
# dark mode. Markers differ as well, so that nothing depends on colour alone.
COLOURS = ("#0b62a8", "#c44e00", "#00795c", "#a8437f", "#8a6d00", "#3f7fb5")
_WIDTH, _PLOT_HEIGHT = 460.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 14.0, 12.0, 46.0
_LETTER = 6.3  # about the width of a letter at the size of the text
_FEW = 12  # lines of so few points show them
_MOST_LETTERS = 48


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Maps data onto pixels: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    beyond: float  # where infinite values are drawn

    def __call__(self, value: float) -> float:
        if math.isinf(value):
            return self.beyond if value > 0 else self.start
        low, high = self.low, self.high
        if self.log:  # what a logarithm does not know (zero) is drawn at the edge
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        share = (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if not self.log:
            return [(v, f"{v:.6g}") for v in _round_steps(self.low, self.high)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        inner = (1, 2, 5) if last - first <= 2 else (1,)
        skip = max(1, -(-(last - first) // 7))
        values = [m * 10.0**e for e in range(first, last + 1, skip) for m in inner]
        slack = 1 + 1e-9
        return [(v, _power(v)) for v in values if self.low / slack <= v <= self.high * slack]


def _round_steps(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range."""
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _power(value: float) -> str:
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    superscript = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    digit = round(value / 10.0**exponent)
    return f"10{superscript}" if digit == 1 else f"{digit}·10{superscript}"


def _axis(values: Iterable[float], start: float, end: float, log: bool, pad: bool) -> _Axis:
    """An axis for the values; shares get 0 to 1, infinite values a place beyond the end."""
    values = list(values)
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    beyond = end
    if any(math.isinf(v) and v > 0 for v in values):
        end -= 0.1 * (end - start)
    low, high = min(known, default=1.0 if log else 0.0), max(known, default=1.0)
    if log:
        low, high = low * (1 - 1e-9), high * (1 + 1e-9)
        if pad or high < 2 * low:
            low, high = low / 1.6, high * 1.6
    elif pad and low >= 0 and 0.5 < high <= 1:
        low, high = 0.0, 1.0
    else:
        margin = (0.08 if pad else 0.0) * (high - low)
        if high == low:
            margin = 0.5 * abs(high) or 0.5
        low, high = (low if low == 0 else low - margin), high + margin
    return _Axis(low, high, start, end, log, beyond)


def svg(plot: Plot, *, prefix: str = "plot") -> str:
    """A plot as an SVG element with a title and a description for those who do not see it.

    Colours are the CSS variables ``--series-0`` ... ``--series-5``, ``--ink``, ``--muted`` and
    ``--grid`` of the page, with defaults. Values that are not numbers are left out; on a
    logarithmic axis what is not positive is drawn at the edge.

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
    points = bool(drawn) and all(d.series.style == "points" for d in drawn)
    right, bottom = _WIDTH - _RIGHT, _PLOT_HEIGHT - _BOTTOM
    x = _axis((v for s in plot.series for v in s.x), _LEFT, right, "x" in plot.log, points)
    heights = (v for s in plot.series for v in (*s.y, *s.low, *s.high))
    y = _axis(heights, bottom, _TOP, "y" in plot.log, "y" not in plot.log)
    named_beside = points and all(len(s.x) == 1 for s in plot.series)
    legend, height = ("", _PLOT_HEIGHT) if named_beside else _legend(drawn)
    parts = [_frame(plot, x, y)]
    parts += [d.band(x, y) for d in drawn] + [d.marks(x, y) for d in drawn]
    if named_beside:
        parts.append(_names_beside(drawn, x, y))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" role="img" '
        f'aria-labelledby="{prefix}-title {prefix}-desc" font-size="12" '
        'font-family="system-ui, sans-serif">'
        f'<title id="{prefix}-title">{_text(plot.title)}</title>'
        f'<desc id="{prefix}-desc">{_text(_description(plot))}</desc>'
        f"{''.join(parts)}{legend}</svg>"
    )


def _description(plot: Plot) -> str:
    axes = f"{plot.y_label} over {plot.x_label}."
    said = [f"{s.label}: no points." for s in plot.series if not s.x]
    for s in plot.series:
        ends = list(dict.fromkeys(((s.x[0], s.y[0]), (s.x[-1], s.y[-1])))) if s.x and s.y else []
        if ends:
            where = " to ".join(f"{b:.3g} at {a:.3g}" for a, b in ends)
            said.append(f"{s.label}: {where}.")
    return " ".join([axes, *said])


def _text(text: object) -> str:
    return escape(clean(text))


def _short(text: str, most: int = _MOST_LETTERS) -> str:
    text = clean(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _label(x: float, y: float, text: str, *, anchor: str = "start", ink: str = "muted") -> str:
    colour = {"muted": "var(--muted,#59636e)", "ink": "var(--ink,#1f2328)"}[ink]
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour}">'
        f"{_text(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"


def _frame(plot: Plot, x: _Axis, y: _Axis) -> str:
    """Grid lines, ticks and the names of the axes."""
    right, bottom = _WIDTH - _RIGHT, _PLOT_HEIGHT - _BOTTOM
    grid, texts = [], []
    for value, text in x.ticks():
        grid.append(_line(x(value), _TOP, x(value), bottom))
        texts.append(_label(x(value), bottom + 16, text, anchor="middle"))
    for value, text in y.ticks():
        grid.append(_line(_LEFT, y(value), right, y(value)))
        texts.append(_label(_LEFT - 7, y(value) + 4, text, anchor="end"))
    if x.beyond != x.end:
        texts.append(_label(x.beyond, bottom + 16, "∞", anchor="end"))
    if y.beyond != y.end:
        texts.append(_label(_LEFT - 7, y.beyond + 4, "∞", anchor="end"))
    middle = (_LEFT + right) / 2
    texts.append(_label(middle, bottom + 36, _short(plot.x_label), anchor="middle", ink="ink"))
    centre = (_TOP + bottom) / 2
    texts.append(
        f'<g transform="translate(13 {centre:.1f}) rotate(-90)">'
        f"{_label(0, 0, _short(plot.y_label, 38), anchor='middle', ink='ink')}</g>"
    )
    axes = _line(_LEFT, bottom, right, bottom) + _line(_LEFT, _TOP, _LEFT, bottom)
    return (
        f'<path d="{"".join(grid)}" style="fill:none;stroke:var(--grid,#e4e7eb)"/>'
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

    def places(self, heights: Sequence[float], x: _Axis, y: _Axis) -> list[tuple[float, float]]:
        """Pixels of those points that are numbers; only points may lie at infinity."""
        pairs = zip(self.series.x, heights, strict=False)
        fits: Callable[[float], bool] = math.isfinite
        if self.series.style == "points":
            fits = lambda v: not math.isnan(v)  # noqa: E731
        return [(x(a), y(b)) for a, b in pairs if fits(a) and fits(b)]

    def path(self, places: Sequence[tuple[float, float]]) -> str:
        if self.series.style == "steps":
            corners = [(b[0], a[1]) for a, b in itertools.pairwise(places)]
            rest = [p for pair in zip(corners, places[1:], strict=False) for p in pair]
            places = [*places[:1], *rest]
        return "L".join(f"{a:.1f} {b:.1f}" for a, b in places)

    def band(self, x: _Axis, y: _Axis) -> str:
        """The interval: an area around a line, a bar through a point."""
        low = self.places(self.series.low, x, y)
        high = self.places(self.series.high, x, y)
        if not low or len(low) != len(high):
            return ""
        if self.series.style == "points":
            bars = "".join(_line(*a, *b) for a, b in zip(low, high, strict=True))
            return f'<path d="{bars}" style="fill:none;stroke:{self.colour};stroke-opacity:.6"/>'
        area = f"M{self.path(high)}L{'L'.join(self.path(low).split('L')[::-1])}Z"
        return f'<path d="{area}" style="fill:{self.colour};fill-opacity:.15;stroke:none"/>'

    def marks(self, x: _Axis, y: _Axis) -> str:
        places = self.places(self.series.y, x, y)
        if not places:
            return ""
        line = ""
        if self.series.style != "points":
            line = self.stroke("M" + self.path(places))
        if self.series.style == "points" or (self.series.style == "line" and len(places) <= _FEW):
            line += "".join(self.marker(a, b) for a, b in places)
        return line

    def stroke(self, path: str) -> str:
        dashes = ";stroke-dasharray:5 4" if self.series.style == "dashed" else ""
        width = 1.5 if dashes else 2
        return (
            f'<path d="{path}" style="fill:none;stroke:{self.colour};stroke-width:{width:g};'
            f'stroke-linejoin:round{dashes}"/>'
        )

    def marker(self, a: float, b: float) -> str:
        r = 4.5 if self.series.style == "points" else 3.4
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
        style, few = self.series.style, len(self.series.x) <= _FEW
        piece = "" if style == "points" else self.stroke(_line(a, b, a + 20, b))
        marked = style == "points" or (style == "line" and few)
        return piece + (self.marker(a + 10, b) if marked else "")


def _legend(drawn: Sequence[_Drawn]) -> tuple[str, float]:
    """The legend below the plot, as many rows as it takes, and the height of the whole."""
    parts, left, top = [], _LEFT, _PLOT_HEIGHT + 10
    for d in drawn:
        text = _short(d.series.label)
        width = 26 + _LETTER * len(text) + 16
        if left > _LEFT and left + width > _WIDTH:
            left, top = _LEFT, top + 19
        parts.append(d.sample(left, top - 4) + _label(left + 26, top, text, ink="ink"))
        left += width
    return "".join(parts), top + 10 if drawn else _PLOT_HEIGHT


def _names_beside(drawn: Sequence[_Drawn], x: _Axis, y: _Axis) -> str:
    """Each point's name on the side that has room, moved up where it would cover another."""
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for d in drawn:
        for a, b in d.places(d.series.y, x, y):
            text = _short(d.series.label, 28)
            width = _LETTER * len(text)
            on_right = a + 9 + width <= _WIDTH
            left = a + 9 if on_right else a - 9 - width
            b = max(b + 4, _TOP + 10)
            while any(abs(b - t) < 13 and left < r and s < left + width for s, r, t in taken):
                b += 13
            taken.append((left, left + width, b))
            anchor = "start" if on_right else "end"
            parts.append(_label(left if on_right else a - 9, b, text, anchor=anchor, ink="ink"))
    return "".join(parts)


def png(pixels: np.ndarray) -> bytes:
    """An image ``[H, W]`` or ``[H, W, C]``, C = 1, 3 or 4, of numbers in [0, 1] as a PNG file.

    Example:
      >>> png(np.zeros((2, 2)))[1:4]
      b'PNG'
    """
    values = np.nan_to_num(np.asarray(pixels, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    values = values[..., None] if values.ndim == 2 else values
    height, width, channels = values.shape
    kind = {1: 0, 3: 2, 4: 6}.get(channels)
    if kind is None or not values.size:
        raise ValueError(f"an image has 1, 3 or 4 channels (got pixels.shape={values.shape})")
    data = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8).reshape(height, -1)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), data], axis=1)  # filter 0 for each row

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def image_grid(images: Images) -> str:
    """A grid of images as an HTML table with its labels as text.

    Args:
      images: the grid.

    Returns:
      The table; the page's stylesheet gives it its looks.
    """
    rows = []
    for r, row in enumerate(np.asarray(images.pixels)):
        name = images.row_labels[r] if r < len(images.row_labels) else ""
        labels = images.cell_labels[r] if r < len(images.cell_labels) else ()
        cells = []
        for c, pixels in enumerate(row):
            said = _text(labels[c]) if c < len(labels) else ""
            source = base64.b64encode(png(pixels)).decode()
            cells.append(
                f'<td><img src="data:image/png;base64,{source}" alt="{_text(name)}: {said}">'
                f"<span>{said}</span></td>"
            )
        rows.append(f'<tr><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>')
    return f'<table class="images"><tbody>{"".join(rows)}</tbody></table>'
