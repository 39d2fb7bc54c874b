"""Zero-concentrated differential privacy: Gaussian releases, and reshuffled batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_choice, check_number
from spax.dp.accounting.gdp import Approximate
from spax.dp.accounting.pairs import joined, rounded_up, split, sum_of_pairs
from spax.typing import Array, Number

__all__ = [
    "ZcdpState",
    "add",
    "calibrate",
    "delta",
    "epsilon",
    "init",
    "reshuffled_rho",
    "sampled_epsilon",
    "update",
]

SENSITIVITY = {"add_remove": 1.0, "zero_out": 1.0, "replace": 2.0}
# a - 1 of the orders tried, in units of the best one.
_NEAR = np.exp(np.linspace(-3, 3, 3001))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ZcdpState:
    """The rho spent so far.

    Args:
      total: float32 scalar, rounded sum.
      carry: float32 scalar, what the rounding of ``total`` left over.
      adjacency: static: what neighbouring data sets are.
      unit: static: whose data one unit is.
    """

    total: Array
    carry: Array
    adjacency: str = dataclasses.field(default="add_remove", metadata={"static": True})
    unit: str = dataclasses.field(default="record", metadata={"static": True})


def init(*, adjacency: str = "add_remove", unit: str = "record") -> ZcdpState:
    """The state in which nothing has been spent.

    Args:
      adjacency: ``"add_remove"`` or ``"zero_out"``, where one unit moves a sum by the clip norm, or
        ``"replace"``, by twice it.
      unit: whose data one unit is: ``"record"`` or a name of your own, such as ``"user"``.

    Returns:
      A `ZcdpState`.

    Raises:
      ValueError: on another adjacency.

    Example:
      >>> float(epsilon(init(), 1e-5))
      0.0
    """
    check_choice("adjacency", adjacency, SENSITIVITY)
    zero = jnp.zeros((), jnp.float32)
    return ZcdpState(zero, zero, adjacency, unit)


def add(state: ZcdpState, rho: Number) -> tuple[Array, ZcdpState]:
    """Adds rho of a mechanism that is known to be rho-zCDP.

    A mechanism that is epsilon-differentially private has ``epsilon^2 / 2``, the exponential
    mechanism ``epsilon^2 / 8``.

    Args:
      state: what was spent before.
      rho: >= 0; a traced one below 0 counts as infinite.

    Returns:
      ``(rho, state)``: what was added, float32, rounded up, and the new state.

    Raises:
      ValueError: if a concrete rho < 0.

    Example:
      >>> rho, state = add(init(), 0.5)
      >>> round(float(epsilon(state, 1e-5)), 4)
      4.7284

    References:
      M. Bun, T. Steinke, Concentrated differential privacy, 2016, arXiv:1605.02065, Lemma 2.3.
    """
    check_number("rho", rho, low=0, scalar=True)
    with jax.enable_x64(True):
        value = jnp.asarray(rho, jnp.float64)
        value = jnp.where(value >= 0, value, jnp.inf)
        pair = split(value * (1 + 1e-12))
        told = rounded_up(value)
    total, carry = sum_of_pairs((state.total, state.carry), pair)
    return told, dataclasses.replace(state, total=total, carry=carry)


def update(
    state: ZcdpState, *, noise_multiplier: Number, steps: int | Array = 1
) -> tuple[Array, ZcdpState]:
    """Adds Gaussian releases in which every unit may take part.

    Sampling amplifies nothing in plain zCDP: use `rdp` or `pld` for sampled batches.

    Args:
      state: what was spent before.
      noise_multiplier: noise standard deviation over the clip norm, >= 0; scalar or ``[kinds]``.
      steps: number of releases, >= 0; scalar or ``[kinds]``.

    Returns:
      ``(rho, state)``: what was added, float32, rounded up, and the new state.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> rho, state = update(init(), noise_multiplier=6.0, steps=100)
      >>> round(float(rho), 6)
      1.388889

    References:
      M. Bun, T. Steinke, Concentrated differential privacy, 2016, arXiv:1605.02065, Propositions
      1.6 and 1.7.
    """
    check_number("noise_multiplier", noise_multiplier, low=0)
    check_number("steps", steps, low=0)
    with jax.enable_x64(True):
        once = _rho(noise_multiplier, SENSITIVITY[state.adjacency])
        count = jnp.ceil(jnp.asarray(steps, jnp.float64))
        count = jnp.where(count >= 0, count, jnp.inf)
        return add(state, jnp.sum(jnp.where(count > 0, once * count, 0.0)))


def _rho(noise_multiplier: Number, sensitivity: float) -> Array:
    sigma = jnp.asarray(noise_multiplier, jnp.float64)
    rho = sensitivity**2 / (2 * jnp.where(sigma > 0, sigma, 1.0) ** 2)
    return jnp.where(sigma > 0, rho, jnp.inf)


def reshuffled_rho(noise_multipliers: Array, *, adjacency: str = "replace") -> Array:
    """The rho of epochs over disjoint batches: each unit is in one batch of an epoch.

    The noise may follow any schedule that does not look at the data. Nothing is gained by the
    order being random, and nothing is assumed of it but that it does not look at the data either.

    Args:
      noise_multipliers: ``[epochs, batches]``: noise standard deviation over the clip norm, >= 0.
      adjacency: as of `init`; without ``"replace"`` or ``"zero_out"`` a unit more would move the
        others between batches, so that ``"add_remove"`` is refused.

    Returns:
      float32 scalar, rounded up: the sum over the epochs of the largest rho of a batch.

    Guarantees:
      All batches of all epochs together are rho-zCDP.

    Raises:
      ValueError: if a concrete noise multiplier is below 0, on another shape or adjacency.

    Example:
      >>> round(float(reshuffled_rho(jnp.full((100, 60), 6.0), adjacency="zero_out")), 5)
      1.38889

    References:
      L. Yu, L. Liu, C. Pu, M. Gursoy, S. Truex, Differentially private model publishing for deep
      learning, 2019, arXiv:1904.02200, Theorem 1 (random reshuffling).
    """
    check_number("noise_multipliers", noise_multipliers, low=0)
    check_choice("adjacency", adjacency, ("replace", "zero_out"))
    if jnp.ndim(noise_multipliers) != 2:
        raise ValueError(
            "noise_multipliers must have shape [epochs, batches] "
            f"(got {jnp.shape(noise_multipliers)})"
        )
    with jax.enable_x64(True):
        rho = _rho(noise_multipliers, SENSITIVITY[adjacency])
        return rounded_up(jnp.sum(jnp.max(rho, axis=1)) * (1 + 1e-12))


def sampled_epsilon(
    *, noise_multiplier: Number, sampling_rate: Number, steps: int | Array, delta: Number
) -> Approximate:
    """The published figure for random sampling, to reproduce the paper: no guarantee.

    It drops terms of higher order, under two conditions. Outside them it is infinite. For a
    guarantee, and a smaller one, use `rdp` or `pld`.

    Args:
      noise_multiplier: sigma, >= 1 for the figure to hold.
      sampling_rate: q, at most ``1 / (16 sigma)``.
      steps: number of batches, >= 0.
      delta: in (0, 1).

    Returns:
      `Approximate`: its ``estimate`` is a float32 scalar.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> bound = sampled_epsilon(
      ...     noise_multiplier=6.0, sampling_rate=0.01, steps=10_000, delta=1e-5
      ... )
      >>> round(float(bound.estimate), 4)
      1.1588

    References:
      L. Yu, L. Liu, C. Pu, M. Gursoy, S. Truex, Differentially private model publishing for deep
      learning, 2019, arXiv:1904.02200, Theorem 2 (random sampling).
    """
    check_number("noise_multiplier", noise_multiplier, low=0, low_open=True, scalar=True)
    check_number("sampling_rate", sampling_rate, low=0, high=1, low_open=True, scalar=True)
    check_number("steps", steps, low=0, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        sigma, q, k, d = (
            jnp.asarray(v, jnp.float64) for v in (noise_multiplier, sampling_rate, steps, delta)
        )
        holds = (sigma >= 1) & (q <= 1 / (16 * sigma))
        r = k * q * q / (sigma * sigma)
        u = sigma * sigma * jnp.log(1 / (q * sigma)) + 1
        log_delta = jnp.log(d)
        small = r + 2 * jnp.sqrt(-r * log_delta)
        large = r * u - log_delta / (u - 1)
        bound = jnp.where(log_delta >= -r * (u - 1) ** 2, small, large)
        return Approximate(rounded_up(jnp.where(holds, bound, jnp.inf)))


def _spent(state: ZcdpState) -> Array:
    """Rho in 64 bits; what is damaged must not look like nothing."""
    rho = joined(state.total, state.carry)
    if rho.ndim:
        raise ValueError(f"one state at a time; vmap over many (got shape {rho.shape})")
    return jnp.where(rho >= 0, rho, jnp.inf)


def epsilon(state: ZcdpState, delta: Number, *, tight: bool = True) -> Array:
    """The epsilon of (epsilon, delta)-differential privacy for what was spent.

    Gaussian releases alone have a smaller one, by `gdp`, which is exact for them.

    Args:
      state: what was spent.
      delta: in (0, 1).
      tight: static; False: the formula of the paper, ``rho + 2 sqrt(rho log(1 / delta))``.

    Returns:
      float32 scalar, rounded up; 0 where nothing was spent.

    Guarantees:
      All releases together are (epsilon, delta)-differentially private for the state's adjacency.

    Raises:
      ValueError: if a concrete delta is outside (0, 1).

    Example:
      >>> _, state = add(init(), 0.1)
      >>> [round(float(epsilon(state, 1e-6, tight=tight)), 4) for tight in (False, True)]
      [2.4508, 2.1419]

    References:
      M. Bun, T. Steinke, Concentrated differential privacy, 2016, arXiv:1605.02065, Proposition
      1.3. C. Canonne, G. Kamath, T. Steinke, The discrete Gaussian for differential privacy, 2020,
      arXiv:2004.00010, Proposition 12 (tight).
    """
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        rho, log_delta = _spent(state), jnp.log(jnp.asarray(delta, jnp.float64))
        bound = rho + 2 * jnp.sqrt(-rho * log_delta)
        if tight:
            bound = jnp.minimum(bound, _tight(rho, log_delta))
        bound = jnp.where(bound > -jnp.inf, bound, jnp.inf)  # nor NaN
        bound = jnp.where(rho > 0, bound, 0.0)
        return rounded_up(jnp.maximum(bound, 0.0) * (1 + 1e-12))


def _tight(rho: Array, log_delta: Array) -> Array:
    """The least of the bound over many orders about the one that is best without its logarithms."""
    t = jnp.sqrt(-log_delta / jnp.where((rho > 0) & jnp.isfinite(rho), rho, 1.0)) * _NEAR
    a = 1 + t
    return jnp.min(rho * a + jnp.log(t) - jnp.log1p(t) - (log_delta + jnp.log(a)) / t)


def delta(state: ZcdpState, epsilon: Number) -> Array:
    """The delta of (epsilon, delta)-differential privacy for what was spent.

    Args:
      state: what was spent.
      epsilon: >= 0.

    Returns:
      float32 scalar in [0, 1], rounded up.

    Guarantees:
      As of `epsilon`.

    Raises:
      ValueError: if a concrete epsilon < 0.

    Example:
      >>> _, state = add(init(), 0.1)
      >>> round(float(delta(state, 2.141939)), 9)
      1e-06

    References:
      C. Canonne, G. Kamath, T. Steinke, The discrete Gaussian for differential privacy, 2020,
      arXiv:2004.00010, Proposition 12.
    """
    check_number("epsilon", epsilon, low=0, scalar=True)
    with jax.enable_x64(True):
        rho, budget = _spent(state), jnp.asarray(epsilon, jnp.float64)
        rho_ = jnp.where((rho > 0) & jnp.isfinite(rho), rho, 1.0)
        # The best order is near (epsilon + rho) / (2 rho); any will do.
        t = jnp.maximum((budget - rho_) / (2 * rho_), 1e-3) * _NEAR
        a = 1 + t
        exponent = jnp.min(t * (rho * a - budget + jnp.log(t) - jnp.log1p(t)) - jnp.log(a))
        exponent = jnp.where(jnp.isnan(exponent), 0.0, exponent)
        bound = jnp.where(rho > 0, jnp.exp(jnp.minimum(exponent, 0.0)) * (1 + 1e-9), 0.0)
        return jnp.minimum(rounded_up(bound), jnp.float32(1))


def calibrate(
    *, epsilon: Number, delta: Number, steps: int | Array = 1, adjacency: str = "add_remove"
) -> tuple[Array, Array]:
    """The noise at which Gaussian releases cost at most epsilon, in closed form.

    ``rho = (sqrt(log(1 / delta) + epsilon) - sqrt(log(1 / delta)))^2``: by the formula of the paper
    all of the budget is spent; the epsilon returned is the tight one and smaller.

    Args:
      epsilon: the budget, > 0.
      delta: in (0, 1).
      steps: number of releases, >= 1.
      adjacency: as of `init`.

    Returns:
      ``(noise_multiplier, epsilon)``, float32 scalars; the noise over the clip norm.

    Guarantees:
      As of `epsilon`. Traced numbers out of range give NaN or infinite noise.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> noise, spent = calibrate(epsilon=3.0, delta=1e-5)
      >>> 1.6 < float(noise) < 1.8, float(spent) < 3.0
      (True, True)

    References:
      M. Bun, T. Steinke, Concentrated differential privacy, 2016, arXiv:1605.02065, Proposition
      1.3.
    """
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    check_number("steps", steps, low=1, scalar=True)
    state = init(adjacency=adjacency)
    with jax.enable_x64(True):
        log = -jnp.log(jnp.asarray(delta, jnp.float64))
        budget = jnp.asarray(epsilon, jnp.float64)
        # The difference of the roots without cancelling.
        rho = (budget / (jnp.sqrt(log + budget) + jnp.sqrt(log))) ** 2
        noise = SENSITIVITY[adjacency] * jnp.sqrt(jnp.asarray(steps, jnp.float64) / (2 * rho))
        told = rounded_up(noise * (1 + 1e-7))
    _, state = update(state, noise_multiplier=told, steps=steps)
    return told, _epsilon(state, delta)


_epsilon = epsilon
