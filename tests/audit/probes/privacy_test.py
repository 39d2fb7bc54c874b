"""What a receipt allows, in closed form, and receipts that cannot be the model's."""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from spax import dp
from spax.audit import AuditError, Model
from spax.audit.probes import membership, privacy
from spax.dp.accounting import rdp
from tests.audit import linear
from tests.audit.probes.reading import LINEAR, figure, figures, memorising, probe, verdict

MEMBERS = 60


def receipt(records=MEMBERS, steps=10, unit="record", noise_multiplier=20.0):
    state = dp.init_privacy(dp.Poisson(0.5, records, records), unit=unit)
    _, spent = rdp.update(
        state.spent, noise_multiplier=noise_multiplier, sampling_rate=0.5, steps=steps
    )
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


def test_the_account_and_what_it_allows():
    privacy_state = receipt()
    section = probe(privacy, dataclasses.replace(LINEAR, privacy=privacy_state))
    account = figure(section, "epsilon")
    assert account.settings["delta"] == 1e-5  # below 1 / (10 n)
    assert account.value == float(dp.epsilon(privacy_state, 1e-5))
    assert (account.settings["adjacency"], account.settings["unit"]) == ("add_remove", "record")
    assert account.settings["sampler"] == "poisson"
    assert account.settings["releases"] == 10
    bound = figure(section, "membership_advantage_bound")
    assert bound.note.startswith("measured")
    assert verdict(section, "privacy") == "ok"
    (plot,) = section.plots
    assert plot.series[0].x == (account.value,)


def test_delta_shrinks_with_many_records():
    many = dataclasses.replace(LINEAR, privacy=receipt(records=1_000_000))
    assert figure(probe(privacy, many), "epsilon").settings["delta"] == 1e-7


def test_a_receipt_that_the_attack_refutes_fails():
    data = linear.data()
    liar = Model(memorising(data), privacy=receipt(steps=1, noise_multiplier=50.0))
    section = probe(privacy, liar, data)
    assert figure(section, "epsilon").value < 0.5
    assert verdict(section, "privacy") == "failure"


def test_a_model_without_a_promise_is_said_to_have_none():
    section = probe(privacy, {"m": LINEAR, "p": Model(linear.logits_fn, privacy=receipt())})
    assert figure(section, "epsilon").value == math.inf
    assert verdict(section, "privacy") == "note"
    assert section.plots[0].series[0].x == (math.inf,)


def test_no_noise_and_no_members():
    silent = Model(linear.logits_fn, privacy=receipt(noise_multiplier=0.0))
    assert verdict(probe(privacy, silent), "privacy") == "failure"
    unknown = dataclasses.replace(LINEAR, privacy=receipt())
    section = probe(privacy, unknown, linear.data(members=False))
    assert verdict(section, "privacy") == "note"
    assert "not measured" in figure(section, "membership_advantage_bound").note


def test_another_receipt_is_refused():
    with pytest.raises(AuditError, match=r"must be the spax\.dp\.PrivacyState.*got float"):
        probe(privacy, Model(linear.logits_fn, privacy=3.0))


def damaged(**changes):
    whole = receipt()
    spent = dataclasses.replace(whole.spent, **changes.pop("spent", {}))
    return dataclasses.replace(whole, spent=spent, **changes)


@pytest.mark.parametrize(
    "broken",
    [
        damaged(spent={"total": receipt().spent.total * jnp.nan}),
        damaged(spent={"total": -receipt().spent.total}),
        damaged(spent={"total": 0 * receipt().spent.total, "carry": 0 * receipt().spent.carry}),
        damaged(steps=jnp.int32(0)),
        damaged(steps=jnp.int32(-5)),
        damaged(overflow=jnp.float32(-1)),
    ],
    ids=["NaN", "negative", "nothing spent", "no release", "releases < 0", "overflow < 0"],
)
def test_a_damaged_receipt_promises_nothing(broken):
    section = probe(privacy, Model(linear.logits_fn, privacy=broken))
    assert verdict(section, "privacy") == "failure"


def test_a_receipt_of_several_trainings_is_refused():
    many = damaged(steps=jnp.int32([1, 2]))
    with pytest.raises(AuditError, match=r"one training.*\(2,\)"):
        probe(privacy, Model(linear.logits_fn, privacy=many))
