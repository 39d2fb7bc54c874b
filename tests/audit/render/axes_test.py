import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spax.audit.render.axes import axis

repeatable = settings(deadline=None, derandomize=True, database=None)
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
FITS = ["exact", "level", "loose"]
REAL = st.floats(-1e30, 1e30, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-30)


def number(label):
    """What a tick says."""
    factor, _, power = label.rpartition("10")
    if power and power[0] in "⁻⁰¹²³⁴⁵⁶⁷⁸⁹":
        return float(factor.strip("·") or 1) * 10.0 ** int(power.translate(SUPERSCRIPTS))
    return float(label)


@pytest.mark.parametrize("fit", FITS)
@repeatable
@given(values=st.lists(REAL, min_size=1, max_size=5))
def test_a_linear_axis_is_linear_and_its_ticks_tell_the_truth(fit, values):
    scale = axis(values, 50.0, 400.0, log=False, fit=fit)
    assert scale.low <= min(values)
    assert max(values) <= scale.high
    middle = (scale.low + scale.high) / 2
    for value, place in ((scale.low, 50.0), (middle, 225.0), (scale.high, 400.0)):
        assert scale(value) == pytest.approx(place, abs=1e-6)
    ticks = scale.ticks()
    assert len({label for _, label in ticks}) == len(ticks) <= 12
    for place, label in ticks:
        shown = number(label)
        assert 50.0 <= place <= 400.0
        exact = 50 + 350 * (shown - scale.low) / (scale.high - scale.low)
        off = 350 * 1e-5 * abs(shown) / (scale.high - scale.low)  # labels have six digits
        assert place == pytest.approx(exact, abs=1e-6 + off)


@repeatable
@given(values=st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=5))
def test_on_a_logarithmic_axis_ratios_are_distances(values):
    scale = axis(values, 50.0, 400.0, log=True, fit="exact")
    assert scale.low <= min(values)
    assert max(values) <= scale.high
    assert scale(math.sqrt(scale.low) * math.sqrt(scale.high)) == pytest.approx(225.0)
    for place, label in scale.ticks():
        exact = math.log(number(label) / scale.low) / math.log(scale.high / scale.low)
        assert place == pytest.approx(50 + 350 * exact, abs=1e-4)


def test_a_pixel_axis_that_points_up_maps_upwards():
    up = axis([0.0, 1.0], 300.0, 10.0, log=False, fit="level")
    assert (up(0.0), up(0.5), up(1.0)) == (300.0, 155.0, 10.0)


def test_infinity_has_a_place_of_its_own():
    scale = axis([1.0, math.inf, 3.0], 0.0, 100.0, log=False, fit="exact")
    assert scale(3.0) == scale.end < scale(math.inf) < 100.0
    assert scale.ticks()[-1] == (scale(math.inf), "∞")
    assert scale.breaks() == [scale.end]
    assert scale(-math.inf) is None
    assert scale(math.nan) is None


def test_zero_has_a_place_of_its_own_where_it_has_no_logarithm():
    scale = axis([0.0, 0.1, 10.0], 0.0, 100.0, log=True, fit="exact")
    assert 0.0 < scale(0.0) < scale.start == scale(0.1)
    assert scale.ticks()[0] == (scale(0.0), "0")
    below = axis([-1.0, 0.1], 0.0, 100.0, log=True, fit="exact")
    assert below.ticks()[0] == (below(-1.0), "≤ 0")
    assert axis([0.1, 10.0], 0.0, 100.0, log=True, fit="exact").start == 0.0


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[math.inf], [math.nan, math.inf], [math.inf] * 2])
def test_no_scale_is_invented_where_all_is_infinite(values, log):
    scale = axis(values, 0.0, 100.0, log=log, fit="level")
    assert [label for _, label in scale.ticks()] == ["∞"]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.25, 4.7, 1e-12, 1e12, -3.0])
def test_a_single_value_lies_on_the_axis(value, log, fit):
    scale = axis([value], 0.0, 100.0, log=log, fit=fit)
    assert 0.0 <= scale(value) <= 100.0


def test_shares_are_shown_from_zero_to_one():
    scale = axis([0.7, 0.95], 0.0, 100.0, log=False, fit="level")
    assert (scale.low, scale.high) == (0.0, 1.0)
