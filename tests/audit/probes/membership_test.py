"""Members found by their loss, on models that know them by heart and on one that does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax.audit import Model
from spax.audit.probes import membership
from spax.audit.probes.membership import scores
from tests.audit import linear
from tests.audit.probes.reading import LINEAR, figure, figures, memorising, probe


def test_a_memorising_model_gives_its_members_away_and_a_fixed_one_does_not():
    data = linear.data()
    section = probe(membership, {"memory": Model(memorising(data)), "m": LINEAR}, data)
    assert figure(section, "membership_auc", "memory").low > 0.9
    fixed = figure(section, "membership_auc")
    assert fixed.low <= 0.5 <= fixed.high
    (rare,) = [m for m in figures(section, "membership_tpr") if m.settings["fpr"] == 0.01]
    assert rare.value is None
    assert "1000 non-members" in rare.note


def test_without_members_it_says_so():
    section = probe(membership, LINEAR, linear.data(members=False))
    assert not section.measurements
    assert "x_train" in section.text


def test_the_area_is_that_of_mann_and_whitney():
    """On losses that are computed in 64 bits, log(1 + e^-m) of the margin m."""
    data = linear.data()
    budget = dataclasses.replace(linear.TINY, max_scored=60)
    section = probe(membership, LINEAR, data, budget)

    def negative_loss(x, y):
        return -np.log1p(np.exp(-2 * linear.scores(x) * (2 * y - 1)))

    inside = negative_loss(data.x_train, data.y_train)
    outside = negative_loss(data.x_test, data.y_test)
    statistic = stats.mannwhitneyu(inside, outside).statistic
    area = figure(section, "membership_auc")
    assert area.value == pytest.approx(statistic / (len(inside) * len(outside)), abs=1e-9)
    gain = figure(section, "membership_advantage")
    found = [(s >= inside.mean()).mean() for s in (inside, outside)]
    assert gain.settings["threshold"] == pytest.approx(inside.mean(), rel=1e-5)
    assert gain.value == pytest.approx(found[0] - found[1], abs=1e-9)


def test_an_example_without_a_loss_is_the_least_likely_member():
    data = linear.data()

    def logits_fn(x):
        return jnp.where(x[:, 0, 0] > 0.5, jnp.nan, linear.logits_fn(x))

    budget = dataclasses.replace(linear.TINY, max_scored=60)
    inside, _ = scores({"m": Model(logits_fn)}, data, budget, jax.random.key(0))["m"]
    np.testing.assert_array_equal(np.isneginf(inside), data.x_train[:, 0, 0, 0] > 0.5)
    assert not np.isnan(inside).any()
