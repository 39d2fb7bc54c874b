"""Robust accuracy of the linear model, which is known in closed form."""

import dataclasses

import jax
import numpy as np
import pytest

from spax.audit import Budget, Model
from spax.audit.probes import robustness
from spax.datasets import Dataset
from spax.typing import Stochastic
from tests.audit import linear
from tests.audit.probes.reading import BUDGET, LINEAR, figures, probe


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "worst"])
def test_robust_accuracy_of_a_linear_model_is_the_closed_form(attack):
    data = linear.data()
    section = probe(robustness, LINEAR, data)
    found = {
        m.settings["eps"]: m.value
        for m in figures(section, "robust_accuracy")
        if m.settings["attack"] == attack
    }
    assert list(found) == list(BUDGET.eps)
    for eps, value in found.items():
        assert value == pytest.approx(linear.robust_accuracy(data.x_test, data.y_test, eps))
    (headline,) = [m for m in section.measurements if m.headline]
    assert (headline.settings["attack"], headline.settings["eps"]) == ("worst", 0.05)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms_too(norm):
    """The dual norm decides: the radius moves the score by eps |w|_2, or eps max |w|."""
    data, eps = linear.data(), {"l2": (0.1, 0.2), "l1": (0.2, 0.4)}[norm]
    budget = dataclasses.replace(BUDGET, norm=norm, eps=eps, steps=40)
    section = probe(robustness, LINEAR, data, budget)
    w = linear.W.astype(np.float64)
    reach = np.linalg.norm(w) if norm == "l2" else np.abs(w).max()
    s = linear.scores(data.x_test)
    right = (s > 0) == (data.y_test == 1)
    for e in eps:
        worst = [
            m.value
            for m in figures(section, "robust_accuracy")
            if m.settings["attack"] == "worst" and m.settings["eps"] == e
        ]
        # The attack may come to lie a rounding short of the boundary, never beyond the ball.
        exact = (right & (np.abs(s) > e * reach)).mean()
        assert exact <= worst[0] <= (right & (np.abs(s) > 0.98 * e * reach)).mean()


def test_wider_bounds_scale_the_problem():
    data = linear.data()
    wide = Dataset(None, None, 255 * data.x_test, data.y_test, "wide", (0.0, 255.0))
    model = Model(lambda x: linear.logits_fn(x / 255))
    budget = dataclasses.replace(BUDGET, eps=tuple(255 * e for e in BUDGET.eps))
    here, there = probe(robustness, LINEAR), probe(robustness, model, wide, budget)
    for one, other in zip(here.measurements, there.measurements, strict=True):
        assert one.value == pytest.approx(other.value, abs=1 / 40)


@pytest.mark.slow
def test_a_stochastic_model_is_attacked_through_its_draws():
    def drawn(x, key):
        return linear.logits_fn(x + 0.001 * jax.random.normal(key, x.shape))

    section = probe(robustness, Model(Stochastic(drawn)))
    plain = probe(robustness, LINEAR)
    for noisy, exact in zip(section.measurements, plain.measurements, strict=True):
        assert noisy.value <= exact.value + 0.1


def test_a_budget_without_radii_takes_those_of_its_norm():
    budget = Budget(norm="l2").for_bounds((0.0, 1.0))
    assert budget.headline_eps == 0.75
