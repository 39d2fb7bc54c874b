"""The report and the progress of the audit on a terminal, or as plain lines where there is none."""

import math
import os
import time
from collections.abc import Callable

from rich.console import Console
from rich.measure import Measurement as Extent
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from spax.audit.progress import Progress
from spax.audit.render.text import clean, conclusions, figure, headlines, interval, level, sentence
from spax.audit.sections import AuditReport, Measurement, Verdict

__all__ = ["console_progress", "print_report"]

_STYLES = {"ok": "green", "note": "blue", "warning": "yellow", "failure": "bold red"}
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# What takes the place of signs that an encoding may lack.
_PLAIN = str.maketrans(
    {"∞": "inf", "\xa0": " ", **{chr(k): f"*{chr(v)}" for v, k in _SUPERSCRIPTS.items()}}
)
_ANY_WIDTH = 1_000_000


def print_report(
    report: AuditReport, console: Console, folder: str | os.PathLike[str] | None = None
) -> None:
    """Prints the summary: a row a model, the verdicts, and where the whole report lies.

    Args:
      report: the report.
      console: a rich console; no control sequences where it is not a terminal.
      folder: where the report was written, if it was.
    """
    columns, found = headlines(report)
    console.print()
    console.print(_safe(report.title, console, "bold"))
    if columns and found:
        console.print()
        notes = _Notes()
        tables = [_summary(columns, found, console, notes, gap) for gap in (2, 1)]
        anyhow = console.options.update(max_width=_ANY_WIDTH)
        fitting = [t for t in tables if Extent.get(console, anyhow, t).maximum <= console.width]
        # Too many columns for the width, or names too long: the table on its side.
        console.print(fitting[0] if fitting else _sideways(columns, found, console, notes))
        console.print()
        console.print(_safe("In brackets: 95 % confidence intervals.", console, "dim"))
        for note, mark in notes.marks.items():
            console.print(_safe(f"{mark} {note}", console, "dim"))
    verdicts = conclusions(report)
    if verdicts:
        console.print()
        console.print(_judged(verdicts, console))
    if folder is not None:
        page = os.path.join(os.fspath(folder), "report.html")
        console.print()
        # One line however long, so that it can be copied.
        console.print(_safe(f"Report: {page}", console), soft_wrap=True)


def _safe(text: str, console: Console, style: str = "") -> Text:
    """Text as it is, no markup and no control characters, in what the console can encode."""
    text, encoding = clean(text).replace("\n", " "), console.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return Text(text, style=style, overflow="fold")


class _Notes:
    """Remarks beside figures, numbered as they come."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}

    def __call__(self, m: Measurement) -> str:
        if not m.note:
            return ""
        return self.marks.setdefault(m.note, str(len(self.marks) + 1).translate(_SUPERSCRIPTS))


def _table(heads: list[Text], gap: int, *, names: int = 1) -> Table:
    """A table without lines, whose first columns, so many of them, are names."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_edge=False)
    for i, head in enumerate(heads):
        table.add_column(
            head, justify="left" if i < names else "right", vertical="top", overflow="fold"
        )
    return table


def _summary(
    columns: list[str],
    found: dict[str, dict[str, Measurement]],
    console: Console,
    notes: _Notes,
    gap: int,
) -> Table:
    """A row a model: its figures, and below them their intervals."""
    table = _table([_safe(text, console) for text in ("model", *columns)], gap)
    for model, figures in found.items():
        cells = [_safe(model or "the data", console)]
        for column in columns:
            cell = _safe("-", console)
            if (m := figures.get(column)) is not None:
                cell = _safe(figure(m) + notes(m), console, "bold")
                cell.append("\n").append(_safe(interval(m), console, "not bold dim"))
            cells.append(cell)
        table.add_row(*cells)
    return table


def _sideways(
    columns: list[str], found: dict[str, dict[str, Measurement]], console: Console, notes: _Notes
) -> Table:
    """A row a figure."""
    heads = [_safe(text, console) for text in ("model", "figure", "value", "interval")]
    table = _table(heads, 2, names=2)
    for model, figures in found.items():
        shown = [(column, figures[column]) for column in columns if column in figures]
        for i, (column, m) in enumerate(shown):
            name = "" if i else model or "the data"
            words = (name, column, figure(m) + notes(m), interval(m))
            table.add_row(*(_safe(text, console) for text in words))
        if not shown:
            table.add_row(_safe(model or "the data", console))
    return table


def _judged(verdicts: list[Verdict], console: Console) -> Table:
    """The verdicts, each level in a column of its own."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict in verdicts:
        about, text = sentence(verdict)
        subject = f"{verdict.model or 'the data'}, {about}"
        word = level(verdict)
        table.add_row(_safe(word, console, _STYLES[word]), _safe(subject + text, console))
    return table


def console_progress(console: Console, *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """How far the audit is: a bar with the time left, or a plain line for each stage.

    Args:
      console: a rich console; the bar is shown where it is a terminal that can redraw.
      clock: seconds, for the time left.
    """
    return _BarProgress(console, clock) if console.is_interactive else _Lines(console, clock)


class _Clock:
    """The time left, from what has been done so far and, at first, from what a unit should take."""

    _WEIGHT = 5.0  # so many units are believed to take a second each

    def __init__(self, total: float, clock: Callable[[], float]) -> None:
        self.total, self.done, self.now = max(total, 1e-9), 0.0, clock
        self.begun = self.latest = clock()

    def advance(self, units: float) -> None:
        self.done = min(self.done + max(units, 0.0), self.total)
        self.latest = self.now()

    @property
    def share(self) -> float:
        return self.done / self.total

    @property
    def left(self) -> float:
        """Seconds, counting down between two advances."""
        spent = self.latest - self.begun
        pace = (spent + self._WEIGHT) / (self.done + self._WEIGHT)
        return max((self.total - self.done) * pace - (self.now() - self.latest), 0.0)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Lines:
    """A plain line when what runs changes, unless the last one is as new."""

    _PAUSE = 1.0  # seconds without a line if not a whole percent was done either

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self.console, self.clock = console, clock
        self.start(0.0)

    def start(self, total: float) -> None:
        self.state = _Clock(total, self.clock)
        self.said, self.percent, self.since = "", "", -math.inf

    def advance(self, units: float, text: str) -> None:
        self.state.advance(units)
        percent, now = f"{100 * self.state.share:3.0f} %", self.clock()
        if text == self.said or (percent == self.percent and now - self.since < self._PAUSE):
            return
        self.said, self.percent, self.since = text, percent, now
        line = f"{percent}, {_duration(self.state.left)} left: {text}"
        self.console.print(_safe(line, self.console), soft_wrap=True)

    def finish(self) -> None:
        pass


class _Left(ProgressColumn):
    """The time left."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        return Text(f"{_duration(task.fields['state'].left)} left", style="dim")


class _BarProgress:
    """A bar that disappears at the end."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self.console, self.clock = console, clock
        self.bar: Bar | None = None

    def start(self, total: float) -> None:
        self.finish()
        self.state = _Clock(total, self.clock)
        self.bar = Bar(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            _Left(Column(min_width=11, no_wrap=True)),
            # Never interpreted: a model's name may look like markup.
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1)),
            console=self.console,
            transient=True,
            expand=True,
        )
        self.task = self.bar.add_task("", total=self.state.total, state=self.state)
        self.bar.start()

    def advance(self, units: float, text: str) -> None:
        if self.bar is None:
            return
        self.state.advance(units)
        shown = _safe(text, self.console).plain
        self.bar.update(self.task, completed=self.state.done, description=shown)

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
