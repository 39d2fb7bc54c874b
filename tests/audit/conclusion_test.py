import re

import pytest

from spax.audit import Budget, Measurement, Section, Verdict
from spax.audit.conclusion import conclude

BUDGET = Budget(eps=(0.1, 0.2))  # the headline's radius: 0.2


def section(*figures):
    """Robust accuracy with its lower end, by attack and radius."""
    rows = (
        Measurement("m", "robust_accuracy", value, "", low, 1.0, {"attack": attack, "eps": eps})
        for value, low, attack, eps in figures
    )
    return Section("figures", "Figures", measurements=tuple(rows))


def checked(level, *failed):
    verdicts = [Verdict("m", "masking", level, "the checks said so")]
    verdicts += [Verdict("m", name, "failure", name) for name in failed]
    verdicts += [Verdict("m", "longer_attack", "ok", "fine")]
    return Section("masking", "Masking", verdicts=tuple(verdicts))


@pytest.mark.parametrize(
    ("figures", "checks", "level", "said"),
    [
        (((0.8, 0.7, "pgd", 0.2),), "ok", "ok", "robust: 80.0 % stay right under pgd"),
        (((0.8, 0.4, "pgd", 0.2),), "ok", "warning", "not robust: .*at least 40.0 % surely"),
        (((0.4, 0.3, "pgd", 0.2),), "ok", "warning", "not robust: 40.0 %"),
        # The smallest figure decides, and other radii say nothing.
        (((0.8, 0.7, "pgd", 0.2), (0.2, 0.1, "Square", 0.2)), "ok", "warning", "under Square"),
        (((0.8, 0.7, "pgd", 0.2), (0.2, 0.1, "Square", 0.1)), "ok", "ok", "under pgd"),
        (((0.8, 0.7, "pgd", 0.2),), "warning", "warning", "not known: .*the checks said so"),
        (((0.8, 0.7, "pgd", 0.2),), None, "warning", "not known: .*no masking check ran"),
    ],
)
def test_one_verdict_with_its_reasons(figures, checks, level, said):
    sections = [section(*figures), *([checked(checks)] if checks else [])]
    (verdict,) = conclude(["m"], sections, BUDGET).verdicts
    assert (verdict.name, verdict.level) == ("robustness", level)
    assert re.search(said, verdict.text), verdict.text


def test_a_failed_check_is_named_and_outweighs_every_figure():
    sections = [section((0.9, 0.85, "pgd", 0.2)), checked("failure", "black_box", "whole_box")]
    (verdict,) = conclude(["m"], sections, BUDGET).verdicts
    assert verdict.level == "failure"
    assert verdict.text.startswith("robustness not trustworthy: 90.0 %")
    assert verdict.text.endswith("failed: black box, whole box")


def test_there_is_no_verdict_without_a_figure():
    assert conclude(["m"], [checked("ok")], BUDGET) is None
