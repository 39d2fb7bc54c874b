"""The strongest attacks against a closed form, wherever AutoAttack is defined and where not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.audit import Model
from spax.audit.model import closure
from spax.audit.probes import strongest
from spax.typing import Stochastic
from tests.audit import linear
from tests.audit.probes.reading import BUDGET, LINEAR, figures, probe

BUDGET = dataclasses.replace(
    BUDGET, strong_examples=40, strong_steps=20, strong_queries=400, query_draws=16
)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def within(norm, eps):
    """Accuracy of the linear model when every input may move so far."""
    data = linear.data()
    s = linear.scores(data.x_test)
    right = (s > 0) == (data.y_test == 1)
    reach = eps * np.linalg.norm(linear.W.astype(np.float64), DUAL[norm])
    return float((right & (np.abs(s) > reach)).mean())


def robust(section, attack):
    (found,) = [m for m in figures(section, "robust_accuracy") if m.settings["attack"] == attack]
    return found.value


@pytest.mark.parametrize(
    ("norm", "eps", "names"),
    [
        ("linf", 0.05, {"AutoAttack", "Square"}),
        pytest.param("l2", 0.15, {"AutoAttack", "Square"}, marks=pytest.mark.slow),
        pytest.param("l1", 0.1, {"APGD-CE", "FAB", "SPSA"}, marks=pytest.mark.slow),
    ],
)
def test_a_linear_model_keeps_what_the_closed_form_says(norm, eps, names):
    budget = dataclasses.replace(BUDGET, norm=norm, eps=(eps,))
    section = probe(strongest, LINEAR, budget=budget)
    exact = within(norm, eps)
    assert 0.1 < exact < within(norm, 0.0)  # the case says something
    assert robust(section, "strongest") == pytest.approx(exact)
    attacks = {m.settings["attack"] for m in figures(section, "robust_accuracy")}
    assert names <= attacks
    assert all(robust(section, attack) >= exact - 1e-9 for attack in attacks)


@pytest.mark.slow
def test_a_model_that_draws_is_attacked_through_averaged_gradients():
    drawn = Model(
        Stochastic(lambda x, key: linear.logits_fn(x) + 1e-3 * jax.random.normal(key, (len(x), 2)))
    )
    section = probe(strongest, drawn, budget=dataclasses.replace(BUDGET, eps=(0.05,)))
    assert robust(section, "strongest") == pytest.approx(within("linf", 0.05), abs=0.03)
    assert all(m.settings["eot_draws"] == BUDGET.eot_draws for m in section.measurements)
    attacks = {m.settings["attack"] for m in section.measurements}
    assert attacks == {"APGD-CE", "Square", "strongest"}


@pytest.mark.slow
def test_what_is_made_on_one_model_is_tried_on_all():
    """The negative of a model errs where the model is right, and its points help the other."""
    eps = 0.05
    orthogonal = np.zeros(16, np.float32)
    orthogonal[:2] = linear.W[1], -linear.W[0]
    models = {
        "model": LINEAR,
        "twice": Model(None, linear.apply_fn, 2 * linear.W),
        "other": Model(None, linear.apply_fn, orthogonal),
    }
    budget = dataclasses.replace(BUDGET, eps=(eps,), strong_queries=2, strong_steps=1)
    section = probe(strongest, models, budget=budget)
    share = {
        (m.settings["made on"], m.model): m.value
        for m in section.measurements
        if m.name == "transfer_success"
    }
    assert len(share) == 9
    white = 1 - within("linf", eps) / within("linf", 0.0)
    assert share["model", "model"] == pytest.approx(white)
    # PGD of one of them ends in the same corners as that of the other.
    assert share["twice", "model"] == pytest.approx(white)
    assert share["model", "twice"] == pytest.approx(white)
    assert share["other", "model"] < white


def test_a_bound_model_is_one_program_for_its_like():
    traces = []

    @jax.jit
    def run(f, x):
        traces.append(1)
        return f(x)

    x = jnp.ones((1, *linear.SHAPE))
    for scale in (1, 2):
        model = Model(None, linear.apply_fn, scale * linear.W)
        assert np.allclose(run(closure(model), x), scale * linear.logits_fn(x))
    assert len(traces) == 1
    run(closure(Model(None, lambda w, x: linear.apply_fn(w, x), linear.W)), x)
    assert len(traces) == 2
