import dataclasses
import json

import jax
import numpy as np
import pytest

from spax.audit import AuditError, Measurement, Model, Section, Verdict, run
from spax.audit.probes import clean, membership, privacy, robustness
from spax.audit.render import to_json
from spax.audit.run import STANDARD, expected_units
from tests.audit import linear

KEY = jax.random.key(0)
MODELS = {"one": Model(None, linear.apply_fn, linear.W), "two": Model(linear.logits_fn)}
ONE = {"one": MODELS["one"]}


def audit(**changes):
    given = {"probes": (), "budget": linear.TINY, "key": KEY} | changes
    models, data = given.pop("models", MODELS), given.pop("data", linear.data())
    return run(models, data, **given)


def quiet(models, data, budget, key):
    return Section("quiet", "Says nothing as it goes")


def talkative(models, data, budget, key):
    for share in (0.2, 0.6, 0.6, 0.4, 2.0):  # forth, back, and too far
        budget.say(share, "talking")
    return Section("talkative", "Talks")


def failing(models, data, budget, key):
    budget.say(0.5, "about to fail")
    raise RuntimeError("a bug in a probe")


class Watching:
    def __init__(self):
        self.totals, self.units, self.texts, self.finished = [], [], [], 0

    def start(self, total):
        self.totals.append(total)

    def advance(self, units, text):
        self.units.append(units)
        self.texts.append(text)

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("probes", [(), (quiet,), (talkative, quiet), (clean, talkative)])
def test_progress_adds_up_to_what_was_announced(probes):
    watching = Watching()
    audit(probes=probes, progress=watching)
    assert watching.totals == [expected_units(probes)]
    assert min(watching.units) >= 0
    assert sum(watching.units) == pytest.approx(expected_units(probes))
    assert watching.finished == 1
    assert set(watching.texts) >= {probe.__name__ for probe in probes}


def test_progress_ends_when_a_probe_fails():
    watching = Watching()
    with pytest.raises(RuntimeError, match="a bug in a probe"):
        audit(probes=(quiet, failing), progress=watching)
    assert watching.finished == 1
    assert sum(watching.units) < expected_units((quiet, failing))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"key": 0}, r"jax\.random\.key\(0\).*got key=0"),
        ({"key": jax.random.split(KEY)}, r"got key=an array of shape \(2,\)"),
        ({"probes": quiet}, "probes must be a sequence of functions"),
        ({"probes": None}, "probes must be a sequence of functions"),
    ],
)
def test_what_is_no_key_and_no_probe_is_said_in_one_line(wrong, said):
    with pytest.raises(AuditError, match=said):
        audit(**wrong)


def test_sections_come_in_the_order_of_the_probes_each_with_its_key():
    keys = {}

    def noting(name):
        def probe(models, data, budget, key):
            keys[name] = jax.random.key_data(key).tolist()
            return Section(name, name)

        return probe

    report = audit(probes=(noting("a"), noting("b"), noting("c")))
    assert [section.name for section in report.sections] == ["a", "b", "c"]
    expected = [jax.random.key_data(jax.random.fold_in(KEY, i)).tolist() for i in range(3)]
    assert list(keys.values()) == expected


def test_a_probe_gets_the_models_the_data_and_a_budget_with_radii():
    def probe(models, data, budget, key):
        assert list(models) == ["one", "two"]
        assert data.name == "linear"
        assert budget.eps
        assert budget == dataclasses.replace(linear.TINY, eps=budget.eps)
        return Section("seen", "Seen")

    without = dataclasses.replace(linear.TINY, eps=())
    assert audit(probes=(probe,), budget=without).settings["budget"]["eps"]


def test_the_report_says_what_it_was_made_with():
    report = audit(probes=(quiet,), title="Mine")
    assert (report.title, report.models) == ("Mine", ("one", "two"))
    assert report.settings["probes"] == ["quiet"]
    assert report.settings["budget"]["steps"] == linear.TINY.steps
    assert report.data["test_examples"] == 40
    assert report.versions["jax"] == jax.__version__
    assert set(report.timings["seconds"]) == {"inspection", "quiet"}
    assert report.timings["started"] <= report.timings["finished"]


def test_the_robust_accuracy_of_a_linear_model_is_its_closed_form():
    data = linear.data()
    report = audit(probes=(clean, robustness), data=data, models=ONE)
    measured = [m for section in report.sections for m in section.measurements]
    (share,) = (m for m in measured if m.name == "clean_accuracy")
    assert share.value == pytest.approx(0.9)  # a tenth of the labels is wrong
    worst = {m.settings["eps"]: m for m in measured if m.settings.get("attack") == "worst"}
    assert set(worst) == set(linear.TINY.eps)
    for eps, m in worst.items():
        truth = linear.robust_accuracy(data.x_test, data.y_test, eps)
        assert m.value == pytest.approx(truth)
        assert m.low <= truth <= m.high
    assert 0 < worst[0.05].value < 0.9  # the case says something


def test_the_same_key_gives_the_same_report_but_for_the_timings():
    probes = (clean, robustness, membership, privacy)

    def documents(key):
        document = json.loads(to_json(audit(probes=probes, key=key, models=ONE)))
        return document.pop("timings"), document

    timings, document = documents(jax.random.key(3))
    again, same = documents(jax.random.key(3))
    assert document == same
    assert list(document["settings"]["key"]) == [0, 3]
    assert set(timings) == set(again) == {"started", "finished", "seconds"}


def test_doubt_stands_beside_every_robustness_figure_of_that_model_alone():
    def figures(models, data, budget, key):
        rows = [
            Measurement(model, name, 0.5, "", note="old")
            for model in models
            for name in ("robust_accuracy", "distance_median", "clean_accuracy")
        ]
        return Section("figures", "Figures", measurements=tuple(rows))

    def doubts(models, data, budget, key):
        verdicts = (
            Verdict("one", "robustness", "failure", "masked"),
            Verdict("two", "robustness", "ok", "fine"),
            Verdict("two", "privacy", "failure", "another matter"),
        )
        return Section("doubts", "Doubts", verdicts=verdicts)

    report = audit(probes=(figures, doubts))
    doubted = {
        (m.model, m.name) for m in report.sections[0].measurements if "not trustworthy" in m.note
    }
    assert doubted == {("one", "robust_accuracy"), ("one", "distance_median")}
    assert all("old" in m.note for m in report.sections[0].measurements)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {}}, "at least one model"),
        ({"models": linear.logits_fn}, "dict of at least one model"),
        ({"models": {"": MODELS["one"]}}, "a string that is not empty"),
        ({"models": {3: MODELS["one"]}}, "got 3"),
        ({"models": {"mine": linear.logits_fn}}, r"wrap it: Model\(logits_fn\)"),
        ({"data": (np.zeros((2, 2)), np.zeros(2))}, "must be a spax.datasets.Dataset"),
        ({"budget": "huge"}, r"quick, standard, full, or a Budget \(got 'huge'\)"),
        ({"budget": 3}, r"got 3"),
        ({"key": None}, "key=jax.random.key"),
        ({"probes": (lambda models, data, budget, key: None,)}, "must return a .*got NoneType"),
    ],
)
def test_bad_input_is_said_on_one_line(changes, said):
    with pytest.raises(AuditError, match=said) as error:
        audit(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")]
)
def test_too_little_memory_is_said_with_the_remedy(error):
    def probe(models, data, budget, key):
        raise error

    with pytest.raises(AuditError, match="batches of 25 examples; lower the batch size"):
        audit(probes=(probe,))


def test_another_runtime_error_is_no_bad_input():
    def probe(models, data, budget, key):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        audit(probes=(probe,))


def test_every_standard_probe_has_its_share_of_the_progress():
    # An unknown one is a stranger's: 3 units.
    from spax.audit.run import _UNITS

    assert set(_UNITS) == {probe.__name__ for probe in STANDARD}
