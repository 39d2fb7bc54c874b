"""Gradients that are hidden, in the ways that papers have seen, and in every norm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.audit import Model
from spax.audit.probes import masking
from spax.audit.probes.masking import _beats, _frequent
from spax.checks import are_probabilities
from tests.audit import linear
from tests.audit.probes.reading import BUDGET, LINEAR, figure, figures, probe, verdict


def test_a_linear_model_is_trusted():
    section = probe(masking, LINEAR)
    assert {v.level for v in section.verdicts} == {"ok"}
    assert figure(section, "whole_box_success").value == 1
    assert figure(section, "dead_gradients").value == 0


def rounded(x):
    return linear.logits_fn(jnp.round(x * 50) / 50)


@jax.custom_vjp
def _backwards(x):
    return x


_backwards.defvjp(lambda x: (x, None), lambda _, g: (-g,))

MASKED = {
    "rounding": (rounded, "gradients"),
    "a gradient of the wrong sign": (lambda x: linear.logits_fn(_backwards(x)), "black_box"),
    "probabilities": (lambda x: jax.nn.softmax(linear.logits_fn(x)), "probabilities"),
}


@pytest.mark.parametrize("how", MASKED)
def test_masked_gradients_are_found_out(how):
    logits_fn, check = MASKED[how]
    section = probe(masking, Model(logits_fn))
    assert verdict(section, "masking") == "failure"
    assert verdict(section, check) == "failure"
    (text,) = [v.text for v in section.verdicts if v.name == "masking"]
    assert text.startswith("gradients are masked")


def test_probabilities_are_attacked_by_their_logarithm():
    section = probe(masking, Model(MASKED["probabilities"][0]))
    data = linear.data()
    found = {
        m.settings["eps"]: m.value
        for m in figures(section, "checked_robust_accuracy")
        if m.settings["attack"] == "log"
    }
    assert found == {
        eps: linear.robust_accuracy(data.x_test, data.y_test, eps)
        for eps in (BUDGET.headline_eps, BUDGET.eps[-1])
    }


def test_what_is_masked_at_the_largest_radius_alone_is_found_out():
    """Gradients of the wrong sign: within a small ball nothing could be gained by better ones."""
    budget = dataclasses.replace(BUDGET, eps=(1e-6, 2e-6, 0.1))
    model = Model(MASKED["a gradient of the wrong sign"][0])
    assert verdict(probe(masking, model, budget=budget), "black_box") == "failure"


def test_few_examples_give_no_trust():
    data = linear.data()
    few = dataclasses.replace(data, x_test=data.x_test[:6], y_test=data.y_test[:6])
    (found,) = [v for v in probe(masking, LINEAR, few).verdicts if v.name == "masking"]
    assert (found.level, found.text) == ("warning", "6 examples are too few to see masking by")


@pytest.mark.slow
def test_points_made_on_another_model_count_against_a_masked_one():
    """Rounded finely, the neighbour's gradients are as good as its own would be."""
    section = probe(masking, {"masked": Model(rounded), "open": LINEAR})
    assert verdict(section, "masking", "masked") == "failure"
    assert verdict(section, "masking", "open") == "ok"
    assert verdict(section, "black_box", "masked") == "failure"


def test_no_gradient_is_a_sign():
    section = probe(masking, Model(lambda x: jax.lax.stop_gradient(linear.logits_fn(x))))
    assert verdict(section, "gradients") == "failure"
    assert verdict(section, "masking") == "failure"


@pytest.mark.slow
def test_a_softmax_that_has_saturated_is_not_trusted():
    """Its gradient is rounding noise, or zero, as the compiler likes."""
    section = probe(masking, Model(lambda x: jax.nn.softmax(1e4 * linear.logits_fn(x))))
    assert verdict(section, "probabilities") == "failure"
    assert verdict(section, "masking") == "failure"


@pytest.mark.slow
def test_logits_of_any_scale_are_attacked_as_well():
    """float32 rounds their softmax to 0 and 1, and the gradient keeps its direction."""
    data = linear.data()
    section = probe(masking, Model(lambda x: 1e4 * linear.logits_fn(x)), data)
    assert verdict(section, "masking") == "ok"
    exact = linear.robust_accuracy(data.x_test, data.y_test, BUDGET.headline_eps)
    base = figures(section, "checked_robust_accuracy")[0]
    assert (base.settings["attack"], base.value) == ("pgd", exact)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_an_open_model_is_trusted_in_other_norms(norm):
    eps = {"l2": (0.1, 0.2), "l1": (0.2, 0.4)}[norm]
    budget = dataclasses.replace(BUDGET, norm=norm, eps=eps, steps=20)
    section = probe(masking, LINEAR, budget=budget)
    assert {v.level for v in section.verdicts} == {"ok"}


@pytest.mark.slow
def test_alone_there_is_nothing_to_transfer():
    one, two = probe(masking, LINEAR), probe(masking, {"m": LINEAR, "n": LINEAR})
    attacks = [
        {m.settings.get("attack") for m in figures(s, "checked_robust_accuracy")}
        for s in (one, two)
    ]
    assert attacks[1] - attacks[0] == {"transfer"}


def test_a_rival_beats_by_more_than_chance():
    """McNemar: of k discordant pairs all on one side, chance explains 2 ** -k."""
    base = np.zeros(40, bool)
    for gained in range(12):
        rival = np.arange(40) < gained
        assert _beats(rival, base) == (gained > 0 and 0.5**gained < 0.01)
    assert not _beats(base, base)
    assert not _beats(base, ~base)


def test_a_share_is_frequent_when_the_interval_says_so():
    """Clopper-Pearson: k of 100 exceeds 1 % with confidence 97.5 % from k = 4 on."""
    assert [_frequent(np.arange(100) < k) for k in range(6)] == [False] * 4 + [True] * 2


def test_probabilities_are_known_by_their_rows():
    p = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    assert are_probabilities(p)
    for other in (np.log(p + 1e-3), p - [[0.3, -0.3]], 2 * p, p * np.nan):
        assert not are_probabilities(other)
    assert not are_probabilities(np.asarray(jnp.asarray(p).at[0].set(jnp.array([0.2, 0.4]))))
