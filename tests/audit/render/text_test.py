import math
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spax.audit import Measurement, Verdict
from spax.audit.render import text
from tests.audit.render import reports

repeatable = settings(deadline=None, derandomize=True, database=None)
SIZES = st.floats(1e-12, 1e12) | st.just(0.0)


def measured(value, name="auc", **fields):
    return Measurement("m", name, value, "What it is.", **fields)


def read(shown):
    return Decimal(shown.replace("\xa0%", "").replace(",", ""))


@repeatable
@given(SIZES)
def test_a_figure_is_right_to_three_digits(value):
    shown = read(text.figure(measured(value)))
    assert abs(shown - Decimal(repr(value))) <= Decimal("0.00501") * Decimal(repr(value))


@pytest.mark.parametrize("name", ["epsilon", "delta", "membership_tpr_bound"])
@repeatable
@given(value=SIZES)
def test_a_bound_is_never_written_smaller_than_it_is(name, value):
    shown = read(text.figure(measured(value, name)))
    assert Decimal(repr(value)) <= shown <= Decimal(repr(value)) * Decimal("1.0101")


@repeatable
@given(value=st.floats(0, 1), name=st.sampled_from(["auc", "membership_tpr_bound"]))
def test_a_share_is_a_percentage(value, name):
    shown = read(text.figure(measured(value, name, kind="share")))
    assert abs(shown - 100 * Decimal(repr(value))) <= (
        Decimal("0.1") if "bound" in name else Decimal("0.05")
    )
    if 1e-5 < value < 1 - 1e-5:
        assert shown > 0
        assert shown < 100 or "bound" in name  # rounded up, a bound may be


@repeatable
@given(
    ends=st.tuples(*2 * [st.floats(-1e6, 1e6, allow_subnormal=False)]).map(sorted),
    kind=st.sampled_from(["share", "number", "count"]),
)
def test_an_interval_is_never_written_narrower_than_it_is(ends, kind):
    low, high = ends
    shown = text.interval(measured(0.5, low=low, high=high, kind=kind))
    a, b = (Decimal(v.replace(",", "")) for v in shown.strip("[]").split(", "))
    unit = 100 if kind == "share" else 1
    assert a <= unit * Decimal(repr(low)) + Decimal("1e-12")
    assert unit * Decimal(repr(high)) <= b + Decimal("1e-12")


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (0.9777, "share", "97.8\xa0%"),
        (1.0, "share", "100.0\xa0%"),
        (0.9999, "share", "99.99\xa0%"),
        (0.0, "share", "0.0\xa0%"),
        (1257, "count", "1,257"),
        (0.5, "number", "0.500"),
        (4.7, "number", "4.70"),
        (math.inf, "number", "∞"),
        (-math.inf, "number", "-∞"),
        (None, "share", "not measurable"),
        (math.nan, "number", "not measurable"),
        (12345.6, "number", "12,346"),
        (1e-9, "number", "1e-9"),
    ],
)
def test_figures_are_written_as_people_do(value, kind, shown):
    assert text.figure(measured(value, kind=kind)) == shown


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.45, 0.55, "[0.450, 0.550]"),
        (-0.00919, 0.1148, "[-0.010, 0.115]"),
        (2.0, math.inf, "[2.00, ∞]"),
        (math.inf, math.inf, "[∞, ∞]"),
        (math.nan, 1.0, "[?, 1.00]"),
        (None, 1.0, ""),
    ],
)
def test_both_ends_of_an_interval_have_as_many_decimals(low, high, shown):
    assert text.interval(measured(0.5, low=low, high=high)) == shown


def test_there_is_no_interval_of_what_was_not_measured():
    assert text.interval(measured(None, low=0.0, high=1.0)) == ""


@repeatable
@given(st.text())
def test_clean_text_can_be_shown_anywhere(said):
    shown = text.clean(said)
    assert len(shown) == len(said)
    shown.encode()
    assert all(c.isprintable() or c in "\n\t\xa0" for c in shown)
    assert text.clean(shown) == shown
    if said.isprintable():
        assert shown == said


def test_rows_are_told_apart_by_as_few_settings_as_suffice():
    table = text.rows(tuple(reports.measurements()))
    assert [(row.name, row.setting) for row in table] == [
        ("clean_accuracy", ()),
        ("robust_accuracy", (("eps", "0.05"),)),
        ("robust_accuracy", (("eps", "0.1"),)),
        ("epsilon", ()),
        ("membership_tpr", ()),
    ]
    assert all(tuple(row.cells) == reports.NAMES for row in table)


def test_no_figure_is_lost_in_the_rows():
    alike = [measured(v) for v in (0.1, 0.2, 0.3)]
    found = text.rows([*alike, *reports.measurements()])
    cells = [id(m) for row in found for m in row.cells.values()]
    assert len(cells) == len(set(cells)) == 3 + len(list(reports.measurements()))


def test_verdicts_are_split_into_conclusions_and_grounds():
    a, b, c = (Verdict(m, n, "ok", "") for m, n in (("a", "all"), ("a", "one"), ("b", "all")))
    assert text.split([a, b, c, a]) == ([a, c], [b, a])


def test_a_setting_is_one_line_without_an_address():
    assert text.plain({"eps": (0.1, math.inf), "f": math.sqrt}) == "eps: 0.1, ∞, f: math.sqrt"
    assert "0x" not in text.plain(object())
