import dataclasses
import itertools
import math

import pytest

from spax.audit import AuditError, Budget
from spax.audit.budget import BUDGETS


def test_radii_are_a_set_in_order():
    assert Budget(eps=(0.3, 0.1, 0.3, 1)).eps == (0.1, 0.3, 1.0)


@pytest.mark.parametrize(
    ("eps", "headline"), [((1,), 1), ((1, 2), 2), ((1, 2, 3), 2), ((1, 2, 3, 4), 3)]
)
def test_the_headline_is_the_middle_radius_the_upper_of_two(eps, headline):
    assert Budget(eps=eps).headline_eps == headline


def test_there_is_no_headline_without_radii():
    with pytest.raises(AuditError, match="for_bounds"):
        _ = Budget().headline_eps


@pytest.mark.parametrize("bad", [(0.0,), (-0.1, 0.1), (math.nan,), (math.inf,)])
def test_radii_are_positive_numbers(bad):
    with pytest.raises(AuditError, match=r"eps must be .* > 0 \(got"):
        Budget(eps=bad)


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(Budget) if isinstance(f.default, int)]
)
@pytest.mark.parametrize("bad", [0, -1, 2.5, None])
def test_counts_are_whole_numbers(field, bad):
    with pytest.raises(AuditError, match=f"{field} must be a whole number >= 1"):
        Budget(**{field: bad})


def test_the_norm_is_known():
    with pytest.raises(AuditError, match=r"norm must be one of linf, l2, l1 \(got 'l3'\)"):
        Budget(norm="l3")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_default_radii_scale_with_the_box_and_chosen_ones_do_not(norm):
    unit = Budget(norm=norm).for_bounds((0.0, 1.0)).eps
    assert Budget(norm=norm).for_bounds((-1.0, 1.0)).eps == pytest.approx([2 * e for e in unit])
    assert Budget(norm=norm, eps=(0.7,)).for_bounds((0.0, 255.0)).eps == (0.7,)


def test_each_budget_spends_no_less_than_the_one_before_on_anything():
    assert list(BUDGETS) == ["quick", "standard", "full"]
    for less, more in itertools.pairwise(BUDGETS.values()):
        for field in dataclasses.fields(Budget):
            if isinstance(field.default, int):
                assert getattr(more, field.name) >= getattr(less, field.name), field.name


@pytest.mark.parametrize("bad", [0.0, 1.1, math.nan, 1, None])
def test_the_share_asked_for_is_a_share(bad):
    with pytest.raises(AuditError, match=r"robust_share must be in \(0, 1\]"):
        Budget(robust_share=bad)


def test_who_listens_is_no_part_of_the_budget():
    heard = []
    told = dataclasses.replace(Budget(), tell=lambda share, text: heard.append((share, text)))
    told.say(0.5, "half")
    Budget().say(0.5, "nobody hears this")
    assert heard == [(0.5, "half")]
    assert told == Budget()
    assert "tell" not in told.settings()
    assert told.settings()["steps"] == told.steps
