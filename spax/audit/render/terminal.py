"""The report and the progress of the audit on a terminal, or as plain lines where there is none."""

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
from spax.audit.render.text import clean, conclusions, figure, headlines, interval, label
from spax.audit.sections import AuditReport, Measurement

__all__ = ["console_progress", "print_report"]

_STYLES = {"ok": "green", "note": "blue", "warning": "yellow", "failure": "bold red"}


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
        table = _summary(columns, found, console)
        # Too many columns for the width, or names too long: the table on its side.
        if Extent.get(console, console.options, table).minimum > console.width:
            table = _sideways(columns, found, console)
        console.print(table)
        console.print(_safe("In brackets: 95 % confidence intervals.", console, "dim"))
    verdicts = conclusions(report)
    if verdicts:
        console.print()
    for verdict in verdicts:
        line = _safe(f"{verdict.level:<8}", console, _STYLES.get(verdict.level, ""))
        subject = f"{verdict.model or 'the data'}, {label(verdict.name).lower()}: "
        line.append(_safe(subject + verdict.text, console))
        console.print(line)
    if folder is not None:
        page = os.path.join(os.fspath(folder), "report.html")
        console.print()
        # One line however long, so that it can be copied.
        console.print(_safe(f"Report: {page}", console), soft_wrap=True)


def _safe(text: str, console: Console, style: str = "") -> Text:
    """Text as it is, no markup and no control characters, in what the console can encode."""
    text, encoding = clean(text).replace("\n", " "), console.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.replace("∞", "inf").replace("\xa0", " ")
        text = text.encode(encoding, "replace").decode(encoding)
    return Text(text, style=style, overflow="fold")


def _cell(m: Measurement | None, console: Console) -> Text:
    if m is None:
        return _safe("-", console)
    cell = _safe(figure(m), console, "bold")
    if interval(m):
        cell.append("\n").append(_safe(interval(m), console, "dim"))
    return cell


def _table(heads: list[Text]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", vertical="top", overflow="fold")
    return table


def _summary(
    columns: list[str], found: dict[str, dict[str, Measurement]], console: Console
) -> Table:
    table = _table([_safe("model", console), *(_safe(c, console) for c in columns)])
    for model, figures in found.items():
        name = _safe(model or "the data", console)
        table.add_row(name, *(_cell(figures.get(c), console) for c in columns))
    return table


def _sideways(
    columns: list[str], found: dict[str, dict[str, Measurement]], console: Console
) -> Table:
    table = _table([_safe(text, console) for text in ("model", "figure", "value", "interval")])
    for model, figures in found.items():
        for i, column in enumerate(c for c in columns if c in figures):
            m = figures[column]
            name = "" if i else model or "the data"
            table.add_row(*(_safe(t, console) for t in (name, column, figure(m), interval(m))))
    return table


def console_progress(console: Console, *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """How far the audit is: a bar with the time left, or a plain line for each stage.

    Args:
      console: a rich console; the bar is shown where it is a terminal.
      clock: seconds, for the time left.
    """
    return _BarProgress(console, clock) if console.is_terminal else _Lines(console, clock)


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
    """A plain line whenever what runs changes."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self.console, self.clock = console, clock
        self.state = _Clock(0.0, clock)
        self.said = ""

    def start(self, total: float) -> None:
        self.state, self.said = _Clock(total, self.clock), ""

    def advance(self, units: float, text: str) -> None:
        self.state.advance(units)
        if text == self.said:
            return
        self.said = text
        line = f"{100 * self.state.share:3.0f} %, {_duration(self.state.left)} left: {text}"
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
