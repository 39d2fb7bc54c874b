"""What a receipt allows, in closed form, and receipts that cannot be the model's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax import dp
from spax.audit import Model
from spax.audit.probes import membership, privacy
from spax.audit.probes.membership import scores
from spax.dp.accounting import rdp
from tests.audit import linear
from tests.audit.probes.reading import LINEAR, figure, figures, probe, verdict

MEMBERS = 60


def receipt(records=MEMBERS, steps=10, unit="record"):
    state = dp.init_privacy(dp.Poisson(0.5, records, records), unit=unit)
    _, spent = rdp.update(state.spent, noise_multiplier=20.0, sampling_rate=0.5, steps=steps)
    return dataclasses.replace(state, spent=spent, steps=jnp.int32(steps))


def private(*arguments, **changes):
    return dataclasses.replace(LINEAR, privacy=receipt(*arguments, **changes))


def test_the_bounds_are_the_corners_of_the_privacy_region():
    section = probe(privacy, private())
    e, d = figure(section, "epsilon").value, 1e-5
    (advantage,) = figures(section, "membership_advantage_bound")
    exact = (math.exp(e) - 1 + 2 * d) / (math.exp(e) + 1)
    assert advantage.value == pytest.approx(exact, rel=1e-9)
    rates = {m.settings["fpr"]: m.value for m in figures(section, "membership_tpr_bound")}
    assert list(rates) == [0.001, 0.01, 0.1]
    for f, value in rates.items():
        exact = min(math.exp(e) * f + d, 1 - math.exp(-e) * (1 - d - f), 1)
        assert value == pytest.approx(exact, rel=1e-9)


def test_what_was_measured_stands_beside_what_is_allowed():
    data = linear.data()
    promised, attacked = (probe(section, private(), data) for section in (privacy, membership))
    gain = figure(attacked, "membership_advantage")
    bound = figure(promised, "membership_advantage_bound")
    assert bound.note == f"measured {gain.value:.3f} ({gain.low:.3f} to {gain.high:.3f})"


def test_a_receipt_from_before_the_training_promises_nothing():
    before = dataclasses.replace(LINEAR, privacy=dp.init_privacy(dp.Poisson(0.5, 60, 60)))
    section = probe(privacy, before)
    assert figure(section, "epsilon").value == 0
    (found,) = section.verdicts
    assert found.level == "warning"
    assert "counts no release" in found.text


@pytest.mark.parametrize("members", [True, False])
def test_a_receipt_for_fewer_records_than_there_are_members_is_another_models(members):
    data = linear.data(members)
    section = probe(privacy, private(records=MEMBERS - 1), data)
    assert verdict(section, "privacy") == ("warning" if members else "note")


def test_a_receipt_by_user_counts_users_and_not_examples():
    section = probe(privacy, private(records=6, unit="user"))
    assert verdict(section, "privacy") == "ok"
    assert figure(section, "epsilon").settings["unit"] == "user"


def test_members_that_are_part_of_the_records_are_fine():
    assert verdict(probe(privacy, private(records=MEMBERS + 1)), "privacy") == "ok"


def test_the_area_is_that_of_mann_and_whitney():
    """On losses that are computed in 64 bits, log(1 + e^-m) of the margin m."""
    data = linear.data()
    budget = dataclasses.replace(linear.TINY, max_scored=MEMBERS)
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

    budget = dataclasses.replace(linear.TINY, max_scored=MEMBERS)
    inside, _ = scores({"m": Model(logits_fn)}, data, budget, jax.random.key(0))["m"]
    np.testing.assert_array_equal(np.isneginf(inside), data.x_train[:, 0, 0, 0] > 0.5)
    assert not np.isnan(inside).any()
