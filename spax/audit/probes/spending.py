"""How epsilon grows with the steps of a training, under three accountants."""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np

from spax.audit.sections import Measurement, Plot, Series
from spax.dp import PrivacyState
from spax.dp.accounting import moments, pld, rdp
from spax.dp.accounting.pairs import joined, split
from spax.dp.sgd import accounted_as

__all__ = ["Spending", "plot", "spending"]

_POINTS = 8
_LEAST_NOISE = 0.02  # of the PLD accountant


class Spending(NamedTuple):
    """What a model's receipt comes to.

    Args:
      series: epsilon over steps, a line an accountant.
      measurements: the last of each.
    """

    series: tuple[Series, ...]
    measurements: tuple[Measurement, ...]


def spending(name: str, receipt: PrivacyState, delta: float) -> Spending:
    """Epsilon after every so many releases: by Renyi divergences, by PLD, and as it was in 2016.

    All releases are taken to have the smallest noise multiplier of any, so that nothing is told too
    small where it changed; batches that overflowed are left out.

    Args:
      name: of the model.
      receipt: of one training.
      delta: in (0, 1).

    Returns:
      `Spending`; empty where nothing was released, or without noise.
    """
    steps, noise = int(receipt.steps), float(receipt.least_noise)
    if steps < 1 or not 0 < noise < math.inf:
        return Spending((), ())
    sampling, spent = receipt.sampling, receipt.spent
    sampler, period = accounted_as(sampling)
    rate = 1.0 if sampler == "full_batch" else sampling.rate
    at = np.unique(np.geomspace(1, steps, _POINTS).round().astype(int))
    charged = -(-at // period)
    start = rdp.init(sampler=sampler, adjacency=spent.adjacency, unit=spent.unit)
    once, _ = rdp.update(start, noise_multiplier=noise, sampling_rate=rate)
    states = [rdp.add(start, _times(once, int(t))) for t in charged]
    found = {
        "Rényi divergences": [float(rdp.epsilon(state, delta)) for state in states],
        "the moments accountant of 2016": [float(moments.epsilon(s, delta)) for s in states],
    }
    if sampler in ("poisson", "full_batch") and noise >= _LEAST_NOISE:
        mechanism = pld.gaussian(noise_multiplier=noise, sampling_rate=rate)
        empty = pld.init([mechanism], sampler=sampler, adjacency=spent.adjacency, unit=spent.unit)
        read = jax.jit(pld.epsilon)
        found["privacy loss distributions"] = [
            float(read(pld.update(empty, steps=int(t))[1], delta)) for t in charged
        ]
    series = [
        Series(f"{name}: {how}", tuple(map(float, at)), tuple(values))
        for how, values in found.items()
    ]
    settings = {"noise_multiplier": noise, "rate": rate, "releases": steps, "delta": delta}
    rows = [
        Measurement(
            name,
            "accounted_epsilon_bound",
            values[-1],
            f"Epsilon of as many releases, all with the least noise of any, by {how}, rounded up; "
            "batches that overflowed are left out.",
            settings={"accountant": how, **settings},
        )
        for how, values in found.items()
    ]
    return Spending(tuple(series), tuple(rows))


def _times(cost: rdp.RdpCost, count: int) -> rdp.RdpCost:
    """The cost of so many releases alike."""
    with jax.enable_x64(True):
        high, low = split(joined(cost.high, cost.low) * count)
    return dataclasses.replace(cost, high=high, low=low)


def plot(found: list[Spending]) -> tuple[Plot, ...]:
    """The picture of all models that promise anything; none if no model does."""
    series = tuple(s for one in found for s in one.series)
    if not series:
        return ()
    return (
        Plot(
            "Epsilon over the training",
            "releases",
            "epsilon spent",
            series,
            log="xy",
            caption="The same releases, accounted for in three ways: privacy loss distributions "
            "are nearly exact, the others are bounds.",
        ),
    )
