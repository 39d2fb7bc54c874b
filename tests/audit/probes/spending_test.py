"""Epsilon over the steps: three accountants of the same releases, in the order they must stand."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from spax import dp
from spax.audit.probes.spending import plot, spending
from spax.dp.sgd import charging

DELTA = 1e-5


def receipt(sampling, steps, noise_multiplier=3.0):
    privacy, charge = dp.init_privacy(sampling), charging(sampling, noise_multiplier)
    for _ in range(steps):
        privacy = charge(privacy)
    return privacy


def exact_gaussian(mu):
    """The least epsilon of a mu-GDP release at DELTA, by bisection of its closed form."""
    low, high = 0.0, 50.0
    for _ in range(80):
        e = (low + high) / 2
        delta = norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu)
        low, high = (e, high) if delta > DELTA else (low, e)
    return high


@pytest.mark.slow
def test_the_lines_stand_in_order_and_end_at_what_the_receipt_says():
    sampling = dp.Poisson(0.2, 100, 100)
    privacy = receipt(sampling, 20)
    found = spending("m", privacy, DELTA)
    renyi, moments, pld = (np.array(s.y) for s in found.series)
    assert found.series[0].x[-1] == 20
    assert (pld <= renyi).all()
    assert (renyi <= moments).all()
    assert renyi[-1] == pytest.approx(float(dp.epsilon(privacy, DELTA)), rel=1e-4)
    assert [m.value for m in found.measurements] == [renyi[-1], moments[-1], pld[-1]]
    (drawn,) = plot([found])
    assert drawn.series == found.series


@pytest.mark.slow
def test_epochs_of_shuffled_batches_are_releases_of_all_records():
    """Against the closed form of one Gaussian release: sensitivity 2, an epoch each."""
    privacy = receipt(dp.Shuffled(25, 100), 8)
    _, _, pld = spending("m", privacy, DELTA).series
    exact = exact_gaussian(math.sqrt(2) * 2 / 3.0)
    assert exact <= pld.y[-1] <= exact * 1.01


@pytest.mark.parametrize("changes", [{"steps": jnp.int32(0)}, {"least_noise": jnp.float32(0)}])
def test_there_is_nothing_to_show_without_releases_or_without_noise(changes):
    privacy = dataclasses.replace(receipt(dp.Poisson(0.5, 10, 10), 1), **changes)
    assert spending("m", privacy, DELTA) == ((), ())
    assert plot([spending("m", privacy, DELTA)]) == ()
