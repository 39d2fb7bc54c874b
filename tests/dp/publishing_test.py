"""Publishing: costs of reshuffled epochs, the paper's figures, and budgets that are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.dp import publishing
from spax.dp.accounting import rdp


def simple_epsilon(rho, delta=1e-5):
    """Bun and Steinke 2016, Proposition 1.3."""
    return rho + 2 * np.sqrt(rho * np.log(1 / delta))


@pytest.mark.parametrize(
    ("epochs", "rho", "epsilon"), [(100, 1.388889, 9.386432), (400, 5.555556, 21.550642)]
)
def test_epochs_of_reshuffled_batches_cost_what_the_paper_says(epochs, rho, epsilon):
    found = float(publishing.rho_reshuffle(jnp.full((epochs, 7), 6.0)))
    assert found == pytest.approx(rho, rel=1e-6)
    assert found >= epochs / 72
    assert simple_epsilon(found) == pytest.approx(epsilon, rel=1e-6)


def test_the_dearest_batch_of_an_epoch_counts():
    sigma = jnp.array([[2.0, 1.0, 4.0], [3.0, 3.0, 5.0]])
    found = float(publishing.rho_reshuffle(sigma))
    assert found == pytest.approx(1 / 2 + 1 / 18, rel=1e-6)
    assert found >= 1 / 2 + 1 / 18
    assert np.isinf(jax.jit(publishing.rho_reshuffle)(jnp.zeros((2, 2))))


@pytest.mark.parametrize("steps", [1_000, 10_000])
def test_the_papers_bound_for_random_sampling_is_its_own_and_looser_than_renyis(steps):
    settings = {"noise_multiplier": 6.0, "sampling_rate": 0.01, "steps": steps}
    found = publishing.sampling_epsilon(**settings, delta=1e-5)
    if steps == 10_000:
        assert found == pytest.approx(1.158801, rel=1e-6)
    _, spent = rdp.update(rdp.init(), **settings)
    assert float(rdp.epsilon(spent, 1e-5)) < found


def test_few_moments_are_to_be_had_where_delta_is_tiny():
    """Beyond the best order, the bound is linear in the number of steps."""
    settings = {"noise_multiplier": 1.0, "sampling_rate": 0.05, "delta": 1e-12}
    first, second, third = (
        publishing.sampling_epsilon(**settings, steps=n) for n in (100, 200, 300)
    )
    assert third - second == pytest.approx(second - first)
    assert second - first == pytest.approx(100 * 0.0025 * (np.log(20) + 1))


def test_schedules_in_closed_form():
    t = np.arange(0, 12, 3)
    for schedule, expected in (
        (publishing.time_decay(10.0, rate=0.2), 10 / (1 + 0.2 * t)),
        (publishing.exponential_decay(10.0, rate=0.1), 10 * np.exp(-0.1 * t)),
        (publishing.step_decay(10.0, factor=0.5, period=4), 10 * 0.5 ** (t // 4)),
        (
            publishing.polynomial_decay(10.0, end=2.0, power=3.0, period=8),
            8 * (1 - np.minimum(t, 8) / 8) ** 3 + 2,
        ),
    ):
        found = jax.jit(jax.vmap(schedule))(jnp.asarray(t))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_constant_schedule_costs_what_constant_noise_does():
    schedule = publishing.step_decay(3.0, factor=1.0, period=1)
    sigma = jnp.stack([jnp.full(4, schedule(e)) for e in range(10)])
    assert float(publishing.rho_reshuffle(sigma)) == pytest.approx(10 / 18, rel=1e-6)


def test_noise_falls_where_accuracy_stops_to_rise():
    decay = publishing.validation_decay(8.0, period=2, threshold=0.01, factor=0.5)
    state, seen = decay.init(), []
    for accuracy in (0.1, 0.5, 0.1, 0.6, 0.9, 0.605, 0.9, 0.9):
        sigma, state = decay.update(state, accuracy)
        seen.append(float(sigma))
    # Decisions at 0.5 (the first), 0.6 (a rise), 0.605 (none) and 0.9 (a rise).
    assert seen == [8, 8, 8, 8, 8, 4, 4, 4]
    assert int(state.checks) == 8


def test_training_within_a_budget_never_exceeds_it():
    """Ever less noise, asked for step by step in a loop on the device."""
    budget = 0.75
    schedule = publishing.exponential_decay(5.0, rate=0.1)

    @jax.jit
    def run():
        def affordable(carry):
            spent, t = carry
            return publishing.within_budget(spent, schedule(t), budget)

        def step(carry):
            spent, t = carry
            return spent + 0.5 / schedule(t) ** 2, t + 1

        return jax.lax.while_loop(affordable, step, (jnp.float32(0), 0))

    spent, steps = run()
    exact = np.cumsum(0.5 / np.asarray(jax.vmap(schedule)(jnp.arange(100)), np.float64) ** 2)
    assert int(steps) == np.sum(exact <= budget)
    assert float(spent) <= budget
    assert not publishing.within_budget(0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: publishing.rho_reshuffle(jnp.ones(3)), r"got shape \(3,\)"),
        (lambda: publishing.rho_reshuffle(jnp.zeros((2, 2))), "noise_multipliers"),
        (
            lambda: publishing.sampling_epsilon(
                noise_multiplier=2.0, sampling_rate=0.1, steps=1, delta=1e-5
            ),
            "got sampling_rate=0.1",
        ),
        (
            lambda: publishing.sampling_epsilon(
                noise_multiplier=0.5, sampling_rate=0.1, steps=1, delta=1e-5
            ),
            "noise_multiplier",
        ),
        (lambda: publishing.time_decay(0.0, rate=1.0), "noise_multiplier"),
        (lambda: publishing.exponential_decay(1.0, rate=-1.0), "rate"),
        (lambda: publishing.step_decay(1.0, factor=1.5, period=1), "factor"),
        (lambda: publishing.polynomial_decay(1.0, end=0.0, power=1.0, period=1), "end"),
        (
            lambda: publishing.validation_decay(1.0, period=0, threshold=0.0, factor=0.5),
            "period",
        ),
        (lambda: publishing.within_budget(-1.0, 1.0, 1.0), "spent"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
