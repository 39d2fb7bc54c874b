"""The PLD accountant against exact values, closed forms and dp-accounting."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.dp.accounting import composition, gdp, pld
from tests.dp.accounting.generated_reference import cases

ROWS = json.loads(pathlib.Path(__file__).with_name("generated_reference.json").read_text())
EXACT = [row[:5] for row in ROWS if row[4] is not None]


def used(mechanism, steps=1, **kind):
    return pld.update(pld.init([mechanism], **kind), steps=steps)[1]


@jax.jit
def _traced(sigma, q, steps, log_delta):
    """The same composition with its numbers traced, so that it compiles once."""
    one = pld.Steps(sigma[None], q[None], steps[None], (), jnp.zeros(0))
    return pld._both(one, log_delta, pld._SIZE)


def traced(q, sigma, steps, delta):
    with jax.enable_x64(True):
        return [float(v) for v in _traced(*map(jnp.float64, (sigma, q, steps, np.log(delta))))]


# So many steps of so little that the grid is wide beside the losses of most of them.
LOOSE = {(1e-5, 1.0, 100_000, 1e-6): 0.03, (7.39e-5, 0.956, 64_349, 1.52e-10): 0.16}


def check(rows):
    for *numbers, exact in rows:
        ours, lower = traced(*numbers)
        slack = LOOSE.get(tuple(numbers), 0.01)
        # The reference is exact to 1e-7.
        assert exact * (1 - 1e-6) - 1e-9 <= ours <= exact * (1 + slack) + 1e-4, numbers
        assert lower <= exact * (1 + 1e-6) + 1e-9, numbers


def test_the_reference_covers_over_two_hundred_settings():
    assert [tuple(row[:4]) for row in ROWS] == cases()
    assert len(EXACT) >= 200
    q, sigma, steps, delta, _ = np.array(EXACT).T
    assert q.max() == 1
    assert q.min() == 1e-5
    assert sigma.min() == 0.2
    assert sigma.max() == 50
    assert steps.max() == 100_000
    assert delta.min() == 1e-10


def test_epsilon_is_the_exact_one_rounded_up_a_little():
    check(EXACT[::16])


@pytest.mark.slow
def test_epsilon_is_the_exact_one_at_all_generated_settings():
    check(EXACT)


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "delta", "known"),
    [
        (0.01, 4.0, 10_000, 1e-5, 0.94700),
        (256 / 60_000, 1.1, 14_062, 1e-5, 2.38169),
        (250 / 60_000, 1.3, 3_600, 1e-5, 0.85303),
        (0.01, 4.0, 1_000, 1e-5, 0.27217),
        (0.01, 1.0, 1_000, 1e-5, 1.82824),
        (0.02, 0.8, 500, 1e-5, 4.66801),
        (4096 / 50_000, 3.0, 2_440, 1e-5, 6.48568),
        (0.001, 0.6, 10_000, 1e-6, 3.15223),
        (1.0, 10.0, 100, 1e-5, 4.37718),
        (0.01, 2.0, 2_000, 1e-5, 0.90004),
    ],
)
def test_known_values_of_another_library(q, sigma, steps, delta, known):
    """dp-accounting's, at a grid of 1e-4: upper bounds themselves."""
    assert traced(q, sigma, steps, delta)[0] == pytest.approx(known, abs=1e-3)


def test_the_state_gives_what_its_numbers_give():
    state = used(pld.gaussian(noise_multiplier=2.0, sampling_rate=0.05), 300)
    found = pld.epsilon_with_error(state, 1e-6)
    assert float(found.epsilon) == pytest.approx(traced(0.05, 2.0, 300, 1e-6)[0], rel=1e-6)
    assert not found.from_rdp
    assert 0 < float(found.error) < 0.05 * float(found.epsilon)
    assert float(pld.epsilon(state, 1e-6)) == float(found.epsilon)
    # Delta is its inverse, and there is nothing to pay for what is not used.
    assert float(pld.delta(state, found.epsilon)) == pytest.approx(1e-6, rel=2e-3)
    empty = pld.init(state.mechanisms)
    assert float(pld.epsilon(empty, 1e-6)) == 0
    assert float(pld.delta(empty, 0.0)) == 0


@pytest.mark.slow
def test_mechanisms_with_closed_forms():
    laplace = used(pld.laplace(1.0))
    exact = 1 + 2 * np.log1p(-0.01)
    assert exact <= float(pld.epsilon(laplace, 0.01)) <= exact + 1e-4
    hundred = used(pld.laplace(10.0), 100)
    assert 4.2203 <= float(pld.epsilon(hundred, 1e-5)) <= 4.2204
    for e, k, delta in ((0.1, 100, 1e-5), (1.0, 10, 1e-3)):
        state = used(pld.randomized_response(e), k)
        least = float(composition.optimal(e, 0.0, k, delta))
        assert least * (1 - 1e-6) <= float(pld.epsilon(state, delta)) <= least * 1.001


@pytest.mark.slow
def test_a_full_batch_is_the_gaussian_mechanism_for_either_adjacency():
    for adjacency in ("add_remove", "replace"):
        kind = {"sampler": "full_batch", "adjacency": adjacency}
        state = used(pld.gaussian(noise_multiplier=4.0), 9, **kind)
        exact = gdp.update(gdp.init(adjacency=adjacency), noise_multiplier=4.0, steps=9)[1]
        low = float(gdp.epsilon(exact, 1e-5))
        assert low * (1 - 1e-6) <= float(pld.epsilon(state, 1e-5)) <= low * 1.001


def test_states_compose():
    a = used(pld.randomized_response(0.5), 3)
    b = pld.update(pld.init([pld.laplace(2.0), pld.randomized_response(0.5)]), 1, steps=4)[1]
    both = pld.compose(a, b)
    np.testing.assert_array_equal(both.counts, [7, 0])
    np.testing.assert_array_equal(pld.self_compose(both, 3).counts, [21, 0])
    with pytest.raises(ValueError, match="unit"):
        pld.compose(a, pld.init([pld.laplace(1.0)], unit="user"))


@pytest.mark.slow
def test_what_is_no_count_is_no_privacy():
    state = used(pld.randomized_response(0.5), 2**31 - 1)
    broken = [
        pld.update(state)[1],
        pld.self_compose(state, 2),
        pld.update(pld.update(state)[1], steps=2**31 - 1)[1],
        jax.jit(lambda i: pld.update(pld.init(state.mechanisms), i)[1])(5),
        jax.jit(lambda n: pld.update(pld.init(state.mechanisms), steps=n)[1])(-1),
    ]
    for wrong in broken:
        assert np.isinf(pld.epsilon(wrong, 1e-5))
        assert float(pld.delta(wrong, 1.0)) == 1


def test_training_stops_when_the_budget_is_spent():
    mechanism = pld.randomized_response(0.25)

    @jax.jit
    def run(budget):
        def going(state):
            return pld.epsilon(pld.update(state, steps=4)[1], 1e-3) <= budget

        return jax.lax.while_loop(going, lambda s: pld.update(s, steps=4)[1], pld.init([mechanism]))

    steps = int(run(3.0).counts[0])
    least = functools.partial(composition.optimal, 0.25, 0.0, delta=1e-3)
    assert float(least(k=steps)) <= 3.0 < float(least(k=steps + 4)) * 1.001


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epsilon", "q", "steps", "sigma"),
    [(3.0, 256 / 60_000, 4680, 0.7594), (1.0, 0.01, 1000, 1.4146)],
)
def test_calibrated_noise_is_known_and_safe(epsilon, q, steps, sigma):
    noise, reached = pld.calibrate(epsilon=epsilon, delta=1e-5, sampling_rate=q, steps=steps)
    assert float(noise) == pytest.approx(sigma, abs=2e-4)
    assert epsilon - 1e-3 < float(reached) <= epsilon
    assert traced(q, float(noise), steps, 1e-5)[0] <= float(reached)


@pytest.mark.slow
@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.02, 0.8, 500), (0.3, 5.0, 100)])
def test_it_is_below_a_finer_grid_of_another_library(q, sigma, steps):
    from dp_accounting.pld import privacy_loss_distribution

    for pessimistic in (True, False):
        theirs = privacy_loss_distribution.from_gaussian_mechanism(
            sigma,
            sampling_prob=q,
            value_discretization_interval=1e-5,
            pessimistic_estimate=pessimistic,
        ).self_compose(steps)
        ours = traced(q, sigma, steps, 1e-5)[0]
        bound = theirs.get_epsilon_for_delta(1e-5)
        assert ours <= bound * 1.001 if pessimistic else ours >= bound * (1 - 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pld.gaussian(noise_multiplier=0.0), "noise_multiplier"),
        (lambda: pld.gaussian(noise_multiplier=1.0, sampling_rate=0.0), "sampling_rate"),
        (lambda: pld.laplace(0.0), "scale"),
        (lambda: pld.randomized_response(-1.0), "epsilon0"),
        (lambda: pld.init([]), "got none"),
        (lambda: pld.init([pld.laplace(1.0)], sampler="shuffled"), "got sampler='shuffled'"),
        (lambda: pld.init([pld.laplace(1.0)], adjacency="replace"), "adjacency='replace'"),
        (
            lambda: pld.init(
                [pld.gaussian(noise_multiplier=1.0, sampling_rate=0.5)], sampler="full_batch"
            ),
            "sampling_rate=1",
        ),
        (lambda: used(pld.laplace(1.0), -1), "steps"),
        (lambda: used(pld.laplace(1.0), 0.5), "whole"),
        (lambda: pld.update(pld.init([pld.laplace(1.0)]), 1), "index"),
        (lambda: pld.epsilon(pld.init([pld.laplace(1.0)]), 0.0), "delta"),
        (lambda: pld.delta(pld.init([pld.laplace(1.0)]), -1.0), "epsilon"),
        (
            lambda: pld.calibrate(epsilon=0.0, delta=1e-5, sampling_rate=0.1, steps=1),
            "epsilon",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_something_else_is_no_mechanism():
    with pytest.raises(TypeError, match="got 1"):
        pld.init([1.0])
