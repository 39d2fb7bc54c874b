import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from spax.audit import AuditReport
from spax.audit.render import terminal
from tests.audit.render import reports

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9|10)[0-8](?:;\d+)*m")


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def console(width=80, **options):
    return Console(file=io.StringIO(), width=width, **({"_environ": {}} | options))


def printed(report, width=80, folder=None, **options):
    out = console(width, **options)
    terminal.print_report(report, out, folder)
    return out.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_model_and_figure_is_there(width):
    out = printed(reports.report(), width)
    lines = out.split("\n")
    assert max(map(cell_len, lines)) <= width
    for name in reports.NAMES:
        assert any(line.startswith(name) for line in lines)
    for said in ("clean", "robust @ 0.1", "epsilon", "[96.2, 99.3]", "[84.7, 90.8]"):
        assert said in out
    for said in ("97.8 %", "87.8 %¹", "∞²", "4.74³"):
        assert said in out.replace("\xa0", " ")
    for note in ("¹ not trustworthy: gradients are masked", "² no promise", "³ at delta = 1e-05"):
        assert note in lines
    assert "failure  plain, robustness not trustworthy: gradients die" in out
    assert "95 % confidence intervals" in out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_figures_stand_under_their_heads(width):
    """The head of a column, a figure and its interval end at the same place."""
    lines = printed(reports.report(), width).split("\n")
    head = next(i for i, line in enumerate(lines) if line.startswith("model"))
    ends = {m.end() for m in re.finditer(r"value|interval|clean|robust @ 0\.1", lines[head])}
    row = lines[head + 1].replace("\xa0", " ")
    assert row.index("97.8 %") + len("97.8 %") in ends
    interval = next(line for line in lines if "[96.2, 99.3]" in line)
    assert interval.index("[96.2, 99.3]") + len("[96.2, 99.3]") in ends


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("terminal_", [True, False])
def test_names_do_nothing_to_the_terminal(width, terminal_):
    out = printed(reports.hostile(), width, force_terminal=terminal_)
    for code in re.findall(r"\x1b[^m]*m?", out):
        assert terminal_
        assert re.fullmatch(r"\x1b\[[0-9;]*m", code)  # colours and weights, of our own
    rest = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert not [c for c in rest if not c.isprintable() and c not in "\n\xa0"]
    assert "[bold red]markup[/]" in rest
    assert '<script>alert("1")</script>' in rest.replace("\n", "") or width == 40
    assert max(map(cell_len, rest.split("\n"))) <= width


def test_colours_are_left_out_where_they_are_not_wanted():
    coloured = printed(reports.report(), force_terminal=True, color_system="standard")
    assert COLOUR.search(coloured)
    plain = printed(
        reports.report(),
        force_terminal=True,
        color_system="standard",
        _environ={"NO_COLOR": "1"},
    )
    assert not COLOUR.search(plain)
    assert "\x1b" not in printed(reports.report())


def test_what_an_encoding_lacks_is_written_otherwise():
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, "ascii"), width=80, _environ={})
    terminal.print_report(reports.report(title="模"), out)
    out.file.flush()
    shown = raw.getvalue().decode("ascii")
    assert "inf*2" in shown
    assert "*1 not trustworthy" in shown
    assert "97.8 %" in shown


def test_the_path_is_on_one_line_however_long():
    path = "a folder/" * 30 + "report"
    assert f"Report: {path}/report.html\n" in printed(reports.report(), folder=path)


def test_there_may_be_nothing_to_show():
    assert printed(AuditReport("Empty", (), {}, {}, {}, ())).split() == ["Empty"]


def lines_of(clock):
    out = console()
    return terminal.console_progress(out, clock=clock), lambda: out.file.getvalue().splitlines()


def test_progress_is_a_plain_line_for_each_stage_with_the_time_left():
    clock = Clock()
    progress, lines = lines_of(clock)
    progress.start(100.0)
    for i, stage in enumerate(("training", "attacks", "privacy")):
        progress.advance(25.0 if i else 0.0, stage)
        progress.advance(0.0, stage)
        clock.now += 50.0  # each unit takes two seconds
    progress.finish()
    assert lines() == [
        "  0 %, 1 min 40 s left: training",
        " 25 %, 2 min 18 s left: attacks",  # 75 * (50 + 5) / (25 + 5)
        " 50 %, 1 min 35 s left: privacy",  # 50 * (100 + 5) / (50 + 5)
    ]


def test_lines_come_at_sensible_intervals():
    clock = Clock()
    progress, lines = lines_of(clock)
    progress.start(1000.0)
    for i in range(100):
        progress.advance(0.01, f"step {i}")
        clock.now += 0.1
    assert len(lines()) == 10  # one a second
    progress.advance(20.0, "the next stage")
    assert lines()[-1].endswith("the next stage")  # at once, since much has been done


def test_at_the_end_nothing_is_left_even_if_too_much_was_done():
    progress, lines = lines_of(Clock())
    progress.start(2.0)
    progress.advance(5.0, "writing\x1b[2J\nthe report")
    assert lines() == ["100 %, 0 s left: writing�[2J the report"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3725, "1 h 02 min")]
)
def test_the_time_left_is_in_words(seconds, shown):
    clock = Clock()
    progress, lines = lines_of(clock)
    progress.start(seconds)
    progress.advance(0.0, "all")
    assert f"{shown} left" in lines()[0]


def test_a_terminal_gets_a_bar_that_goes_away():
    out = console(force_terminal=True, force_interactive=True)
    clock = Clock()
    progress = terminal.console_progress(out, clock=clock)
    progress.finish()  # before it began: nothing
    progress.start(10.0)
    clock.now += 5.0
    progress.advance(5.0, "[bold]names\x07")
    progress.finish()
    progress.finish()
    progress.advance(1.0, "too late")
    shown = out.file.getvalue()
    assert "[bold]names�" in shown
    assert "50 %" in shown
    assert "5 s left" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased
    assert "\x1b[?25h" in shown  # the cursor is back


def test_a_terminal_that_cannot_redraw_gets_lines():
    out = console(force_terminal=True, _environ={"TERM": "dumb"})
    progress = terminal.console_progress(out, clock=Clock())
    progress.start(2.0)
    progress.advance(1.0, "half")
    progress.finish()
    assert out.file.getvalue() == " 50 %, 1 s left: half\n"
