"""Noise by itself: how much of it, how well it is drawn, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.figures.common import KEY, rounded_up
from spax import dp
from spax.dp import publishing
from spax.dp.accounting import rdp

DRAWS = 100_000


def measure():
    """Figures of mechanisms, samplers and schedules."""
    return {
        "analytic": {"sigma": round(float(dp.analytic_noise_multiplier(1.0, 1e-5)), 4)},
        "discrete": discrete(),
        "factorization": factorization(),
        "federated": {"epsilon": federated()},
        "publishing": reshuffled(),
        "adam": {"second_moment": adam()},
    }


def discrete():
    """The variance of integer noise, whose exact value at sigma 1 is 0.99999979."""
    draw = jax.jit(lambda key: dp.discrete_gaussian(key, jnp.zeros(DRAWS), stddev=1.0, grid=1.0))
    return {"draws": DRAWS, "variance": round(float(np.var(np.asarray(draw(KEY)))), 3)}


def factorization():
    """Root mean square errors of 1024 running sums at noise multiplier 1."""
    steps = 1024
    digits = np.mean([t.bit_count() for t in range(1, steps + 1)])
    errors = {
        "independent": dp.factorization_error(np.ones(1), steps=steps),
        "tree": float(np.sqrt(steps.bit_length() * digits)),
        "root": dp.factorization_error(dp.toeplitz_sqrt(steps), steps=steps),
        "root_16": dp.factorization_error(dp.toeplitz_sqrt(steps, bands=16), steps=steps),
        "banded_16": dp.factorization_error(dp.optimize_banded(steps, bands=16), steps=steps),
    }
    return {name: round(error, 4) for name, error in errors.items()}


def federated():
    """The setting of the language models of McMahan et al., at delta 1e-9."""
    _, spent = rdp.update(
        rdp.init(unit="user"), noise_multiplier=1.0, sampling_rate=5000 / 763_430, steps=4120
    )
    return rounded_up(rdp.epsilon(spent, 1e-9))


def reshuffled():
    """100 epochs of reshuffled batches at noise multiplier 6."""
    rho = float(publishing.rho_reshuffle(jnp.full((100, 1), 6.0)))
    return {"rho": rounded_up(rho, 3), "epsilon": rounded_up(rho + 2 * np.sqrt(rho * np.log(1e5)))}


def adam():
    """The mean second moment of pure noise of variance 1, when the noise is taken out."""
    tx = dp.scale_by_adam_bias_corrected(noise_variance=1.0, b2=0.9)
    state = tx.init(jnp.zeros(DRAWS))
    for i in range(10):
        noise = dp.add_noise(jax.random.fold_in(KEY, i), jnp.zeros(DRAWS), 1.0)
        _, state = tx.update(noise, state)
    return round(float(jnp.mean(state.nu - state.noise)) / (1 - 0.9**10), 4)
