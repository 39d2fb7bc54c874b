import math

import pytest

from spax.audit import AuditError, AuditReport, Measurement, Section, Verdict, fail_under


def report(*measurements, doubted=()):
    verdicts = tuple(Verdict(name, "robustness", "failure", "masked") for name in doubted)
    section = Section("s", "S", measurements=measurements, verdicts=verdicts)
    return AuditReport("Audit", ("a", "b"), {}, {}, {}, (section,))


def clean(value, model="a"):
    return Measurement(model, "clean_accuracy", value, "")


def robust(value, eps=0.1, model="a", attack="worst"):
    return Measurement(model, "robust_accuracy", value, "", settings={"attack": attack, "eps": eps})


def median(value, model="a"):
    return Measurement(model, "distance_median", value, "")


def failures(text, *measurements, doubted=()):
    return fail_under.failures([fail_under.parse(text)], report(*measurements, doubted=doubted))


@pytest.mark.parametrize(
    ("text", "model", "metric", "eps", "least"),
    [
        ("clean=0.9", "", "clean", None, 0.9),
        ("robust@0.1=0.5", "", "robust", 0.1, 0.5),
        ("robust@51/255=50%", "", "robust", 0.2, 0.5),
        (" mine : robust @ 0.1 = 1 ", "mine", "robust", 0.1, 1.0),
        ("a:b:cw=2.5", "a:b", "cw", None, 2.5),
    ],
)
def test_gates_are_read(text, model, metric, eps, least):
    gate = fail_under.parse(text)
    assert (gate.text, gate.model, gate.metric) == (text, model, metric)
    assert (gate.eps, gate.least) == (pytest.approx(eps), pytest.approx(least))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "clean",
        "clean=",
        "clean=high",
        "clean=nan",
        "clean=inf",
        "clean=1.5",
        "clean=50",
        "clean=101%",
        "clean=-0.1",
        "clean@0.1=0.5",
        "cw@0.1=0.5",
        "robust=0.5",
        "robust@=0.5",
        "robust@0=0.5",
        "robust@-1=0.5",
        "robust@nan=0.5",
        "robust@1/0=0.5",
        "auc=0.5",
        "robust@0.1>0.5",
    ],
)
def test_what_is_no_gate_says_how_to_write_one(text):
    with pytest.raises(AuditError, match=r"--fail-under .*(clean=|write)") as error:
        fail_under.parse(text)
    assert "\n" not in str(error.value)


def test_a_figure_passes_from_the_least_on():
    assert not failures("clean=0.9", clean(0.9))
    assert not failures("cw=2", median(math.inf))
    (line,) = failures("clean=0.9", clean(0.85))
    assert "clean=0.9" in line
    assert "a has 0.85" in line
    assert "0.05 less" in line


@pytest.mark.parametrize("value", [None, math.nan])
@pytest.mark.parametrize("text", ["clean=0", "cw=0", "robust@0.1=0"])
def test_what_was_not_measured_does_not_pass(value, text):
    figures = clean(value), median(value), robust(value)
    assert len(failures(text, *figures)) == 1
    assert "not measured" in failures(text, *figures)[0]
    assert "not measured" in failures(text)[0]


def test_robust_means_the_worst_attack_at_that_radius():
    others = robust(1.0, eps=0.05), robust(1.0, attack="fgsm"), robust(1.0, attack="pgd")
    assert len(failures("robust@0.1=0.5", *others, robust(0.4))) == 1
    assert not failures("robust@0.1=0.5", robust(0.0, eps=0.2), robust(0.5))
    # 0.3 and what 0.1 * 3 gives
    assert not failures("robust@0.3=0.5", robust(0.5, eps=0.1 * 3))


@pytest.mark.parametrize("figure", [robust(1.0), median(math.inf)])
def test_robustness_that_is_not_trusted_does_not_pass(figure):
    text = "robust@0.1=0.5" if figure.name == "robust_accuracy" else "cw=0.5"
    (line,) = failures(text, figure, doubted=("a",))
    assert "not trustworthy" in line
    assert not failures(text, figure, doubted=("b",))
    assert not failures("clean=0.5", clean(1.0), doubted=("a",))


def test_a_gate_is_about_its_model_or_about_all():
    figures = clean(0.9, "a"), clean(0.1, "b")
    assert not failures("a:clean=0.5", *figures)
    assert len(failures("b:clean=0.5", *figures)) == 1
    (line,) = failures("clean=0.5", *figures)
    assert ": b has 0.1" in line
    assert len(failures("clean=0.95", *figures)) == 2


def test_a_gate_about_nobody_is_found_before_the_audit():
    gates = [fail_under.parse("clean=0.5"), fail_under.parse("c:clean=0.5")]
    fail_under.check_names(gates[:1], ("a", "b"))
    with pytest.raises(AuditError, match=r"no model 'c'; the models are a, b"):
        fail_under.check_names(gates, ("a", "b"))
