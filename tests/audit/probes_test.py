"""The standard probes, on models whose figures are known in closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax import dp
from spax.audit import AuditError, Budget, Model
from spax.audit.probes import STANDARD, clean, distance, masking, membership, privacy, robustness
from spax.datasets import Dataset
from spax.dp.accounting import rdp
from spax.leakage import advantage_bound
from spax.typing import Stochastic
from tests.audit import linear

KEY = jax.random.key(0)
LINEAR = Model(None, linear.apply_fn, linear.W)
BUDGET = dataclasses.replace(
    linear.TINY, distance_examples=40, distance_steps=60, distance_rounds=5, masking_examples=40
)


def probe(section, models, data=None, budget=BUDGET):
    models = models if isinstance(models, dict) else {"m": models}
    return section(models, linear.data() if data is None else data, budget, KEY)


def figures(section, name, model="m"):
    return [m for m in section.measurements if m.name == name and m.model == model]


def figure(section, name, model="m"):
    (found,) = figures(section, name, model)
    return found


def verdict(section, name, model="m"):
    (found,) = [v for v in section.verdicts if v.name == name and v.model == model]
    return found.level


def test_the_standard_probes_are_all_of_them():
    assert (clean, robustness, distance, masking, membership, privacy) == STANDARD


# Clean accuracy


def test_clean_accuracy_has_the_exact_interval():
    data = linear.data()
    section = probe(clean, LINEAR, data)
    share = figure(section, "clean_accuracy")
    right = np.mean((linear.scores(data.x_test) > 0) == data.y_test)
    assert share.value == pytest.approx(right)
    exact = stats.binomtest(round(40 * right), 40).proportion_ci(method="exact")
    assert (share.low, share.high) == pytest.approx(tuple(exact), abs=1e-9)
    assert figure(section, "training_accuracy").settings["examples"] == 50  # max_scored
    assert not figures(probe(clean, LINEAR, linear.data(members=False)), "training_accuracy")


def test_predictions_that_are_not_numbers_are_wrong():
    def broken(x):
        return jnp.where(jnp.arange(len(x))[:, None] < 0, 0.0, linear.logits_fn(x) * jnp.nan)

    assert figure(probe(clean, Model(broken)), "clean_accuracy").value == 0
    section = probe(robustness, Model(broken))
    assert {m.value for m in figures(section, "robust_accuracy")} == {0}


# Robust accuracy


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


def test_a_stochastic_model_is_attacked_through_its_draws():
    def drawn(x, key):
        return linear.logits_fn(x + 0.001 * jax.random.normal(key, x.shape))

    section = probe(robustness, Model(Stochastic(drawn)))
    plain = probe(robustness, LINEAR)
    for noisy, exact in zip(section.measurements, plain.measurements, strict=True):
        assert noisy.value <= exact.value + 0.1


# Distance


def test_distances_of_a_linear_model_are_those_to_its_plane():
    data = linear.data()
    section = probe(distance, LINEAR, data, dataclasses.replace(BUDGET, distance_steps=150))
    s = linear.scores(data.x_test)
    right = (s > 0) == (data.y_test == 1)
    exact = np.sort(np.abs(s[right]) / np.linalg.norm(linear.W))
    for name, level in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75)):
        found = figure(section, f"distance_{name}")
        at = exact[math.ceil(level * len(exact)) - 1]
        assert at * (1 - 1e-4) <= found.value <= at * 1.05
        assert found.low <= found.value <= found.high
    (grid,) = section.images
    assert grid.row_labels == ("clean", "m")
    assert (grid.pixels.min(), grid.pixels.max()) >= (0, 0)
    assert grid.pixels.max() <= 1


def test_a_model_that_is_never_right_has_no_distance():
    wrong = Model(lambda x: -linear.logits_fn(x))
    data = linear.data()
    right = (linear.scores(data.x_test) > 0) == (data.y_test == 1)
    data = Dataset(None, None, data.x_test[right], data.y_test[right], "right")
    section = probe(distance, wrong, data)
    assert figure(section, "distance_median").value is None
    assert not section.images


# Masking


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
    "logits out of scale": (lambda x: 1e6 * linear.logits_fn(x), None),
    "probabilities": (lambda x: jax.nn.softmax(linear.logits_fn(x)), "probabilities"),
}


@pytest.mark.parametrize("how", MASKED)
def test_masked_gradients_are_found_out(how):
    logits_fn, check = MASKED[how]
    section = probe(masking, Model(logits_fn))
    if check is None:  # what the attack overcomes is no masking
        base = figures(section, "checked_robust_accuracy")[0]
        data = linear.data()
        exact = linear.robust_accuracy(data.x_test, data.y_test, BUDGET.headline_eps)
        trusted = verdict(section, "robustness") == "ok"
        assert not trusted or base.value <= exact + 0.05
        return
    assert verdict(section, "robustness") == "failure"
    assert verdict(section, check) == "failure"
    (text,) = [v.text for v in section.verdicts if v.name == "robustness"]
    assert text.startswith("robustness not trustworthy")


def test_probabilities_are_attacked_by_their_logarithm():
    section = probe(masking, Model(MASKED["probabilities"][0]))
    (log,) = [
        m for m in figures(section, "checked_robust_accuracy") if m.settings["attack"] == "log"
    ]
    data = linear.data()
    assert log.value == linear.robust_accuracy(data.x_test, data.y_test, BUDGET.headline_eps)


def test_points_made_on_another_model_count_against_a_masked_one():
    """Rounded finely, the neighbour's gradients are as good as its own would be."""
    section = probe(masking, {"masked": Model(rounded), "open": LINEAR})
    assert verdict(section, "robustness", "masked") == "failure"
    assert verdict(section, "robustness", "open") == "ok"
    assert verdict(section, "black_box", "masked") == "failure"


# Membership


def memorising(data):
    """Sure of exactly those examples that it was trained on."""
    seen = jnp.asarray(data.x_train.reshape(len(data.x_train), -1))
    labels = jax.nn.one_hot(data.y_train, 2)

    def logits_fn(x):
        gap = jnp.abs(x.reshape(len(x), 1, -1) - seen[None]).max(axis=2)
        known = (gap < 1e-6).astype(jnp.float32)
        return linear.logits_fn(x) + 30 * known @ (2 * labels - 1)

    return logits_fn


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


# Privacy


def receipt(noise_multiplier, steps=10, num_records=60):
    sampling = dp.Poisson(rate=0.5, capacity=num_records, num_records=num_records)
    _, spent = rdp.update(
        rdp.init(), noise_multiplier=noise_multiplier, sampling_rate=0.5, steps=steps
    )
    return dataclasses.replace(dp.init_privacy(sampling), spent=spent, steps=jnp.int32(steps))


def test_the_account_and_what_it_allows():
    privacy_state = receipt(20.0)
    section = probe(privacy, dataclasses.replace(LINEAR, privacy=privacy_state))
    account = figure(section, "epsilon")
    assert account.settings["delta"] == 1e-5  # below 1 / (10 n)
    assert account.value == float(dp.epsilon(privacy_state, 1e-5))
    assert (account.settings["adjacency"], account.settings["unit"]) == ("add_remove", "record")
    assert account.settings["sampler"] == "poisson"
    assert account.settings["releases"] == 10
    bound = figure(section, "membership_advantage_bound")
    assert bound.value == pytest.approx(float(advantage_bound(account.value, 1e-5)))
    assert bound.note.startswith("measured")
    assert verdict(section, "privacy") == "ok"
    (plot,) = section.plots
    assert plot.series[0].x == (account.value,)


def test_delta_shrinks_with_many_records():
    many = dataclasses.replace(LINEAR, privacy=receipt(20.0, num_records=1_000_000))
    assert figure(probe(privacy, many), "epsilon").settings["delta"] == 1e-7


def test_a_receipt_that_the_attack_refutes_fails():
    data = linear.data()
    liar = Model(memorising(data), privacy=receipt(50.0, steps=1))
    section = probe(privacy, liar, data)
    assert figure(section, "epsilon").value < 0.5
    assert verdict(section, "privacy") == "failure"


def test_a_model_without_a_promise_is_said_to_have_none():
    section = probe(privacy, {"m": LINEAR, "p": Model(linear.logits_fn, privacy=receipt(20.0))})
    assert figure(section, "epsilon").value == math.inf
    assert verdict(section, "privacy") == "note"
    assert section.plots[0].series[0].x == (math.inf,)


def test_no_noise_and_no_members():
    silent = Model(linear.logits_fn, privacy=receipt(0.0))
    assert verdict(probe(privacy, silent), "privacy") == "failure"
    unknown = dataclasses.replace(LINEAR, privacy=receipt(20.0))
    section = probe(privacy, unknown, linear.data(members=False))
    assert verdict(section, "privacy") == "note"
    assert "not measured" in figure(section, "membership_advantage_bound").note


def test_another_receipt_is_refused():
    with pytest.raises(AuditError, match=r"must be the spax\.dp\.PrivacyState.*got float"):
        probe(privacy, Model(linear.logits_fn, privacy=3.0))


def test_a_budget_without_radii_takes_those_of_its_norm():
    budget = Budget(norm="l2").for_bounds((0.0, 1.0))
    assert budget.headline_eps == 0.75
