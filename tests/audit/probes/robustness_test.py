"""What no attack may miss: errors that are there already, missing predictions, smaller radii."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.audit import Model
from spax.audit.probes import clean, masking, robustness, strongest
from spax.audit.probes.robustness import draws, wrong
from spax.typing import Stochastic
from tests.audit import linear
from tests.audit.probes.reading import BUDGET, LINEAR, figure, figures, probe, verdict

SHARES = ("robust_accuracy", "checked_robust_accuracy")


def all_shares(section):
    """Of the strongest attacks all together: AutoAttack alone counts no missing prediction."""
    found = [m for name in SHARES for m in figures(section, name)]
    together = [m for m in found if m.settings["attack"] == "strongest"]
    return [m.value for m in together or found]


def nearest(x):
    """Which test example is the nearest, and whether it is the very one."""
    gaps = jnp.abs(x.reshape(len(x), 1, -1) - linear.data().x_test.reshape(1, 40, -1)).max(axis=2)
    return jnp.argmin(gaps, axis=1), jnp.min(gaps, axis=1) < 1e-6


def wrong_on_the_test_examples_alone(x):
    """Right everywhere around them: who starts elsewhere and ascends the loss sees no error."""
    row, same = nearest(x)
    sign = 2 * jnp.asarray(linear.data().y_test)[row] - 1
    logit = jnp.where(same, -9.0, 9.0) * sign + 0 * x.sum(axis=(1, 2, 3))
    return jnp.stack([-logit, logit], axis=1)


def without_prediction_on_some(x):
    """NaN where the first pixel is bright."""
    return jnp.where(x[:, 0, 0] > 0.5, jnp.nan, linear.logits_fn(x))


def without_prediction_elsewhere(x):
    """NaN as soon as a test example is changed."""
    _, same = nearest(x)
    return jnp.where(same[:, None], linear.logits_fn(x), jnp.nan)


@pytest.mark.parametrize(
    "section", [robustness, masking, pytest.param(strongest, marks=pytest.mark.slow)]
)
def test_what_is_misclassified_as_it_is_is_not_robust(section):
    assert set(all_shares(probe(section, Model(wrong_on_the_test_examples_alone)))) == {0.0}


@pytest.mark.parametrize(
    "section", [robustness, masking, pytest.param(strongest, marks=pytest.mark.slow)]
)
def test_where_nothing_is_predicted_nothing_is_robust(section):
    model = Model(without_prediction_on_some)
    data = linear.data()
    right = (linear.scores(data.x_test) > 0) == (data.y_test == 1)
    predicted = data.x_test[:, 0, 0, 0] <= 0.5
    most = float((right & predicted).mean())
    assert 0 < most < right.mean()  # the case says something
    assert figure(probe(clean, model), "clean_accuracy").value == pytest.approx(most)
    assert max(all_shares(probe(section, model))) <= most + 1e-9


@pytest.mark.parametrize(
    "section", [robustness, masking, pytest.param(strongest, marks=pytest.mark.slow)]
)
def test_a_point_without_a_prediction_is_an_error_found(section):
    assert set(all_shares(probe(section, Model(without_prediction_elsewhere)))) == {0.0}


def test_gradients_that_are_not_finite_are_no_reason_for_trust():
    section = probe(masking, Model(lambda x: linear.logits_fn(x) * jnp.nan))
    assert set(all_shares(section)) == {0.0}
    assert verdict(section, "masking") == "failure"


def test_the_criterion_counts_a_missing_prediction_as_wrong():
    logits = jnp.array([[1.0, 0.0], [0.0, 1.0], [jnp.nan, 0.0], [1.0, jnp.nan]])
    assert wrong(logits, jnp.zeros(4, jnp.int32)).tolist() == [False, True, True, True]


def waves(s):
    return np.sin(40 * s) + s


def test_an_error_at_a_small_radius_counts_at_every_larger_one():
    """One step of FGSM goes too far on a wavy model; its errors are known in closed form."""
    data = linear.data()
    w = linear.W.astype(np.float64)
    s, sign = linear.scores(data.x_test), 2 * data.y_test - 1
    slope = 40 * np.cos(40 * s) + 1
    direction = -sign * np.sign(slope)  # in which the score of the label falls
    radii = np.array([0.004, 0.008, 0.012])
    reached = s + radii[:, None] * direction * np.abs(w).sum()
    right = waves(np.concatenate([s[None], reached])) * sign > 0
    by_itself, exact = right[1:].mean(axis=1), np.logical_and.accumulate(right)[1:].mean(axis=1)
    assert (np.diff(by_itself) > 0).any()  # the case says something

    def logits_fn(x):
        g = (x.reshape(len(x), -1) - 0.5) @ linear.W
        return jnp.stack([-(jnp.sin(40 * g) + g), jnp.sin(40 * g) + g], axis=1)

    budget = dataclasses.replace(BUDGET, eps=tuple(radii))
    found = figures(probe(robustness, Model(logits_fn), data, budget), "robust_accuracy")
    by_attack = {
        attack: [m.value for m in found if m.settings["attack"] == attack]
        for attack in ("fgsm", "pgd", "worst")
    }
    assert by_attack["fgsm"] == pytest.approx(exact)
    for values in by_attack.values():
        assert (np.diff(values) <= 0).all()
    assert (np.array(by_attack["worst"]) <= by_attack["fgsm"]).all()
    assert (np.array(by_attack["worst"]) <= by_attack["pgd"]).all()


def test_the_draws_of_a_gradient_are_among_the_settings_of_a_model_that_draws():
    drawn = Model(Stochastic(lambda x, key: linear.logits_fn(x + jax.random.normal(key, x.shape))))
    assert draws(drawn, BUDGET) == {"eot_draws": BUDGET.eot_draws}
    assert draws(LINEAR, BUDGET) == {}
