"""Private model publishing: what epochs of reshuffled batches cost, and budgets that change.

Costs are in zero-concentrated differential privacy (rho), which adds up.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_count, check_number
from spax.dp.accounting import zcdp
from spax.typing import Array, Number

__all__ = [
    "ValidationDecay",
    "ValidationDecayState",
    "exponential_decay",
    "polynomial_decay",
    "rho_reshuffle",
    "sampling_epsilon",
    "step_decay",
    "time_decay",
    "validation_decay",
    "within_budget",
]

Schedule = Callable[[int | Array], Array]


def rho_reshuffle(noise_multipliers: Array) -> Array:
    """The zCDP cost of epochs over disjoint batches: ``sum_e max_i 1 / (2 sigma_ei^2)``.

    A record is in one batch of an epoch, so that batches of one epoch compose in parallel; the most
    expensive counts.

    Args:
      noise_multipliers: ``[E, I]``: of batch i of epoch e, > 0, over the sensitivity of a sum.
        Traced values that are not > 0 give inf.

    Returns:
      float32 scalar rho, rounded up.

    Guarantees:
      rho-zCDP for replacing one record if sums are clipped to C and noise multipliers are over
      2 C, or for zeroing one out if they are over C; the number of records is public. The order of
      records must not depend on the data. (It needs no amplification, and has none: an accountant
      of Poisson sampling gives no bound for these batches.)

    Raises:
      ValueError: on another shape, or concrete numbers out of range.

    Example:
      >>> round(float(rho_reshuffle(jnp.full((100, 10), 6.0))), 6)
      1.388889

    References:
      L. Yu, L. Liu, C. Pu, M. E. Gursoy, S. Truex, Differentially private model publishing for
      deep learning, 2019, arXiv:1904.02200.
    """
    check_number("noise_multipliers", noise_multipliers, low=0, low_open=True)
    if jnp.ndim(noise_multipliers) != 2 or 0 in jnp.shape(noise_multipliers):
        raise ValueError(
            "noise_multipliers must have shape [epochs, batches] "
            f"(got shape {jnp.shape(noise_multipliers)})"
        )
    return zcdp.reshuffled_rho(noise_multipliers, adjacency="zero_out")


def sampling_epsilon(
    *, noise_multiplier: float, sampling_rate: float, steps: int, delta: float
) -> float:
    """The paper's epsilon of random sampling, for comparison with it: *not* a proved bound.

    It drops terms of higher order of the moments accountant. What is to be claimed comes from
    `spax.dp.accounting.rdp`, which is lower as well.

    Args:
      noise_multiplier: sigma >= 1.
      sampling_rate: q, with ``0 < q <= 1 / (16 sigma)``.
      steps: >= 0.
      delta: in (0, 1).

    Returns:
      epsilon.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> epsilon = sampling_epsilon(
      ...     noise_multiplier=6.0, sampling_rate=0.01, steps=10_000, delta=1e-5)
      >>> round(epsilon, 6)
      1.158801

    References:
      L. Yu, L. Liu, C. Pu, M. E. Gursoy, S. Truex, 2019, arXiv:1904.02200.
    """
    check_number("noise_multiplier", noise_multiplier, low=1, scalar=True)
    check_number("sampling_rate", sampling_rate, low=0, low_open=True, scalar=True)
    check_count("steps", steps, 0)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    sigma, q = float(noise_multiplier), float(sampling_rate)
    if q > 1 / (16 * sigma):
        raise ValueError(
            f"sampling_rate must be <= 1 / (16 sigma) = {1 / (16 * sigma):g} "
            f"(got sampling_rate={q:g})"
        )
    rho = steps * q**2 / sigma**2
    bound = sigma**2 * math.log(1 / (q * sigma)) + 1
    if delta >= math.exp(-rho * (bound - 1) ** 2):
        return rho + 2 * math.sqrt(rho * math.log(1 / delta))
    return rho * bound - math.log(delta) / (bound - 1)


def _checked_start(noise_multiplier: Number) -> Array:
    check_number("noise_multiplier", noise_multiplier, low=0, low_open=True, scalar=True)
    return jnp.asarray(noise_multiplier, jnp.float32)


def time_decay(noise_multiplier: Number, *, rate: Number) -> Schedule:
    """``sigma_0 / (1 + rate t)``.

    Args:
      noise_multiplier: sigma_0 > 0.
      rate: >= 0.

    Returns:
      ``schedule(t) -> float32``; t is usually the epoch.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> float(time_decay(10.0, rate=0.5)(2))
      5.0

    References:
      L. Yu, L. Liu, C. Pu, M. E. Gursoy, S. Truex, 2019, arXiv:1904.02200.
    """
    start = _checked_start(noise_multiplier)
    check_number("rate", rate, low=0, scalar=True)
    return lambda t: start / (1 + jnp.asarray(rate, jnp.float32) * jnp.asarray(t, jnp.float32))


def exponential_decay(noise_multiplier: Number, *, rate: Number) -> Schedule:
    """``sigma_0 exp(-rate t)``.

    Args:
      noise_multiplier: sigma_0 > 0.
      rate: >= 0.

    Returns:
      ``schedule(t) -> float32``; t is usually the epoch.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> round(float(exponential_decay(10.0, rate=0.1)(10)), 4)
      3.6788

    References:
      L. Yu, L. Liu, C. Pu, M. E. Gursoy, S. Truex, 2019, arXiv:1904.02200.
    """
    start = _checked_start(noise_multiplier)
    check_number("rate", rate, low=0, scalar=True)
    return lambda t: start * jnp.exp(-jnp.asarray(rate, jnp.float32) * jnp.asarray(t, jnp.float32))


def step_decay(noise_multiplier: Number, *, factor: Number, period: int) -> Schedule:
    """``sigma_0 factor^floor(t / period)``.

    Args:
      noise_multiplier: sigma_0 > 0.
      factor: in (0, 1].
      period: >= 1.

    Returns:
      ``schedule(t) -> float32``; t is usually the epoch.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> float(step_decay(8.0, factor=0.5, period=10)(25))
      2.0

    References:
      L. Yu, L. Liu, C. Pu, M. E. Gursoy, S. Truex, 2019, arXiv:1904.02200.
    """
    start = _checked_start(noise_multiplier)
    check_number("factor", factor, low=0, high=1, low_open=True, scalar=True)
    check_count("period", period)

    def schedule(t: int | Array) -> Array:
        times = jnp.floor(jnp.asarray(t, jnp.float32) / period)
        return start * jnp.asarray(factor, jnp.float32) ** times

    return schedule


def polynomial_decay(
    noise_multiplier: Number, *, end: Number, power: Number, period: int
) -> Schedule:
    """``(sigma_0 - end) (1 - t / period)^power + end``, and ``end`` from ``period`` on.

    Args:
      noise_multiplier: sigma_0 > 0.
      end: > 0.
      power: > 0.
      period: >= 1.

    Returns:
      ``schedule(t) -> float32``; t is usually the epoch.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> float(polynomial_decay(10.0, end=2.0, power=1.0, period=4)(2))
      6.0

    References:
      L. Yu, L. Liu, C. Pu, M. E. Gursoy, S. Truex, 2019, arXiv:1904.02200.
    """
    start = _checked_start(noise_multiplier)
    check_number("end", end, low=0, low_open=True, scalar=True)
    check_number("power", power, low=0, low_open=True, scalar=True)
    check_count("period", period)

    def schedule(t: int | Array) -> Array:
        share = 1 - jnp.minimum(jnp.asarray(t, jnp.float32), period) / period
        last = jnp.asarray(end, jnp.float32)
        return (start - last) * share ** jnp.asarray(power, jnp.float32) + last

    return schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ValidationDecayState:
    """Where the noise stands.

    Args:
      noise_multiplier: float32 scalar.
      checks: int32 scalar: accuracies seen.
      reference: float32 scalar: the accuracy of the last decision.
    """

    noise_multiplier: Array
    checks: Array
    reference: Array


class ValidationDecay(NamedTuple):
    """A schedule that looks at accuracies.

    Args:
      init: ``init() -> state``.
      update: ``update(state, accuracy) -> (noise_multiplier, state)``.
    """

    init: Callable[[], ValidationDecayState]
    update: Callable[[ValidationDecayState, Number], tuple[Array, ValidationDecayState]]


def validation_decay(
    noise_multiplier: Number, *, period: int, threshold: Number, factor: Number
) -> ValidationDecay:
    """Less noise whenever accuracy has stopped to rise: every ``period`` checks.

    If accuracy has not risen by more than ``threshold`` since the last decision, the noise
    multiplier is multiplied by ``factor``.

    Args:
      noise_multiplier: at the start, > 0.
      period: checks from one decision to the next, >= 1.
      threshold: the least rise that counts.
      factor: in (0, 1).

    Returns:
      A `ValidationDecay`.

    Guarantees:
      None by itself: accuracies must come from public data, or be noised and charged. What each
      step costs then depends on releases before it, which adds up all the same as long as stopping
      is decided by a filter: `within_budget`.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> decay = validation_decay(8.0, period=1, threshold=0.01, factor=0.5)
      >>> sigma, state = decay.update(decay.init(), 0.9)
      >>> sigma, state = decay.update(state, 0.9)
      >>> float(sigma)
      4.0

    References:
      L. Yu, L. Liu, C. Pu, M. E. Gursoy, S. Truex, 2019, arXiv:1904.02200.
    """
    start = _checked_start(noise_multiplier)
    check_count("period", period)
    check_number("threshold", threshold, scalar=True)
    check_number("factor", factor, low=0, high=1, low_open=True, high_open=True, scalar=True)

    def init() -> ValidationDecayState:
        return ValidationDecayState(start, jnp.int32(0), jnp.float32(-np.inf))

    def update(state: ValidationDecayState, accuracy: Number) -> tuple[Array, ValidationDecayState]:
        check_number("accuracy", accuracy, scalar=True)
        value = jnp.asarray(accuracy, jnp.float32)
        checks = state.checks + 1
        decides = checks % period == 0
        stalls = decides & (value - state.reference <= jnp.asarray(threshold, jnp.float32))
        sigma = state.noise_multiplier * jnp.where(stalls, jnp.asarray(factor, jnp.float32), 1.0)
        reference = jnp.where(decides, value, state.reference)
        return sigma, ValidationDecayState(sigma, checks, reference)

    return ValidationDecay(init, update)


def within_budget(spent: Number, noise_multiplier: Number, budget: Number) -> Array:
    """Whether one more release keeps the total within a budget: a zCDP filter.

    Args:
      spent: rho of all releases before, >= 0.
      noise_multiplier: of the release in question, >= 0.
      budget: rho, >= 0, fixed before the first release.

    Returns:
      bool scalar: ``spent + 1 / (2 sigma^2) <= budget``, rounded to the safe side.

    Guarantees:
      If every release is asked for like this, also with noise multipliers chosen by what was
      released before, and there is none after the first refusal, all of them are budget-zCDP.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> bool(within_budget(0.4, 2.0, 0.6)), bool(within_budget(0.5, 2.0, 0.6))
      (True, False)

    References:
      V. Feldman, T. Zrnic, Individual privacy accounting via a Renyi filter, 2021,
      arXiv:2008.11193.
    """
    check_number("spent", spent, low=0, scalar=True)
    check_number("noise_multiplier", noise_multiplier, low=0, scalar=True)
    check_number("budget", budget, low=0, scalar=True)
    with jax.enable_x64(True):
        before, sigma, limit = (
            jnp.asarray(v, jnp.float64) for v in (spent, noise_multiplier, budget)
        )
        cost = jnp.where(sigma > 0, 0.5 / jnp.square(sigma), jnp.inf)
        return (before + cost) * (1 + 1e-9) <= limit
