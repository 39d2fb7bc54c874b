"""The noise that a budget asks for, by the RDP accountant: `calibrate`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.checks import check_number, is_concrete
from spax.dp.accounting.divergences import LEAST_SIGMA, SAFETY, quick_log_excess
from spax.dp.accounting.pairs import place_of_least
from spax.dp.accounting.roots import falling_root
from spax.typing import Array, Number

__all__ = ["calibrate"]

# a - 1 of the orders that the search looks at, with few nodes and with many.
_RATIO = 1.7
_LOW = np.log(1e-2) + np.log(_RATIO) * np.arange(20)
_HIGH = _LOW[-1] + np.log(_RATIO) * np.arange(1, 13)
_LOW_NODES, _NODES = 1024, 4096
_ABOUT = np.linspace(-0.48, 0.48, 13)
_NEAR = np.linspace(-0.08, 0.08, 9)
_MOST_SIGMA = 1e6
# What rounding to 32 bits and back may take.
_MARGIN = 1 - 3e-7


def calibrate(
    *, epsilon: Number, delta: Number, sampling_rate: Number, steps: int | Array
) -> tuple[Array, Array]:
    """The least noise at which all steps together cost at most epsilon, by the RDP accountant.

    Takes some tens of milliseconds once compiled. Nothing is rounded to the unsafe side: the noise
    is tried, at orders near the best one, before it is returned.

    Args:
      epsilon: the budget, > 0; scalar, may be traced, as all of these.
      delta: in (0, 1).
      sampling_rate: with which each unit takes part in a step, on its own, in (0, 1].
      steps: number of steps, >= 1; rounded up.

    Returns:
      ``(noise_multiplier, epsilon)``, float32 scalars: the noise and the epsilon that it achieves,
      at most the budget. ``(inf, 0)`` where no noise up to a million suffices.

    Guarantees:
      ``steps`` Poisson-sampled Gaussian releases of this noise are (epsilon, delta)-differentially
      private, epsilon as returned, for adding or removing one unit. The noise is at most a
      thousandth above the least one that this accountant can vouch for, unless epsilon is below
      some hundredths, where it may be more. The epsilon is exact at its order; that of a state
      is interpolated between orders and may be a thousandth higher. Traced numbers out
      of range give ``(inf, 0)``.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> noise, spent = calibrate(epsilon=3.0, delta=1e-5, sampling_rate=256 / 60_000, steps=4680)
      >>> round(float(noise), 3), 2.995 < float(spent) <= 3.0
      (0.802, True)

    References:
      I. Mironov, K. Talwar, L. Zhang, Renyi differential privacy of the sampled Gaussian
      mechanism, 2019, arXiv:1908.10530. C. Canonne, G. Kamath, T. Steinke, The discrete Gaussian
      for differential privacy, 2020, arXiv:2004.00010, Proposition 12.
    """
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    check_number("sampling_rate", sampling_rate, low=0, high=1, low_open=True, scalar=True)
    check_number("steps", steps, low=1, scalar=True)
    numbers = (epsilon, delta, sampling_rate, steps)
    with jax.enable_x64(True):
        if is_concrete(numbers):
            # As they are, in 64 bits: 0.01 rounded to 32 bits is a smaller rate.
            with jax.ensure_compile_time_eval():
                return _compiled(*(np.float64(number) for number in numbers))
        return _calibrate(*(jnp.asarray(number, jnp.float64) for number in numbers))


def _calibrate(epsilon: Array, delta: Array, q: Array, steps: Array) -> tuple[Array, Array]:
    valid = (epsilon > 0) & (delta > 0) & (delta < 1) & (q > 0) & (q <= 1) & (steps >= 1)
    budget = jnp.where(valid, epsilon, 1.0) * _MARGIN
    log_delta = jnp.log(jnp.where(valid, delta, 0.5))
    q, steps = jnp.where(valid, q, 0.5), jnp.ceil(jnp.where(valid, steps, 1.0))

    def excess(spent: Array) -> Array:
        return jnp.log(jnp.maximum(spent, 1e-300)) - jnp.log(budget)

    def rough(log_s: Array) -> tuple[Array, Array]:
        spent, place = _roughly(jnp.exp(log_s), q, steps, log_delta)
        return excess(spent), place

    low, high = np.log(LEAST_SIGMA), np.log(_MOST_SIGMA)
    found, place = falling_root(rough, low, high, tolerance=1e-3, limit=high)

    def sure(log_s: Array) -> tuple[Array, tuple[Array, Array]]:
        # The noise as it will be told, in 32 bits.
        noise = jnp.exp(log_s).astype(jnp.float32)
        spent = _near(noise.astype(jnp.float64), q, steps, log_delta, place)
        return excess(spent), (noise, spent)

    _, (noise, spent) = falling_root(
        sure, jnp.maximum(found - 0.015, low), found + 1e-3, tolerance=2e-5, limit=high
    )
    valid &= spent <= budget
    above = jnp.nextafter(spent.astype(jnp.float32), jnp.float32(np.inf))
    return jnp.where(valid, noise, jnp.float32(np.inf)), jnp.where(valid, above, jnp.float32(0))


_compiled = jax.jit(_calibrate)


def _bound(t: Array, s: Array, q: Array, steps: Array, log_delta: Array, nodes: int) -> Array:
    """The epsilon at order ``1 + t``, infinite where the nodes are too few for it."""
    a = 1 + t
    r = jnp.where(q < 1, q, 0.5)
    divergence = jnp.logaddexp(quick_log_excess(a, s, r, nodes), 0.0) / t
    whole = a / (2 * s * s)
    # See `log_excess_by_quadrature`: the places to look at are known up to here.
    seen = (s >= LEAST_SIGMA) & ((s < 2.1) | (a <= (nodes / 8 - 24) * s)) & ~jnp.isnan(divergence)
    divergence = jnp.where(seen & (q < 1), jnp.minimum(divergence, whole), whole)
    return steps * divergence * SAFETY + jnp.log1p(-1 / a) - (log_delta + jnp.log(a)) / t


def _roughly(s: Array, q: Array, steps: Array, log_delta: Array) -> tuple[Array, Array]:
    """The least epsilon over few orders, and the logarithm of a - 1 where it is."""

    def at(places: Array, nodes: int) -> Array:
        values = jax.vmap(lambda p: _bound(jnp.exp(p), s, q, steps, log_delta, nodes))(places)
        return jnp.where(jnp.isnan(values), jnp.inf, values)

    low, high = jnp.asarray(_LOW), jnp.asarray(_HIGH)
    values = at(low, _LOW_NODES)
    large = place_of_least(values) >= len(_LOW) - 2
    values = jnp.concatenate(
        [values, lax.cond(large, lambda: at(high, _NODES), lambda: jnp.full(len(_HIGH), jnp.inf))]
    )
    # About the best of them there may be a bend.
    near = jnp.concatenate([low, high])[place_of_least(values)] + jnp.asarray(_ABOUT)
    finer = lax.cond(large, lambda: at(near, _NODES), lambda: at(near, _LOW_NODES))
    best = place_of_least(finer)
    return jnp.maximum(jnp.minimum(finer[best], jnp.min(values)), 0.0), near[best]


def _near(s: Array, q: Array, steps: Array, log_delta: Array, place: Array) -> Array:
    """The least epsilon over orders about a place, exact to `SAFETY`."""
    t = jnp.exp(place + jnp.asarray(_NEAR))
    values = jax.vmap(lambda t: _bound(t, s, q, steps, log_delta, _NODES))(t)
    return jnp.maximum(jnp.min(jnp.where(jnp.isnan(values), jnp.inf, values)), 0.0)
