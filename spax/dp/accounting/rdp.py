"""Renyi differential privacy of Gaussian releases on sampled batches, and its conversion.

All arithmetic runs in a local 64-bit island. What leaves it is rounded up: sums are kept as pairs
of float32, exact to 48 bits, and the epsilon that is read out is never below the bound it states.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.checks import check_choice, check_number, is_concrete
from spax.dp.accounting import divergences
from spax.dp.accounting.divergences import ORDERS
from spax.dp.accounting.pairs import joined, rounded_up, split, sum_of_pairs
from spax.dp.accounting.rdp_search import calibrate
from spax.typing import Array, Number

__all__ = [
    "ORDERS",
    "RdpCost",
    "RdpState",
    "add",
    "calibrate",
    "delta",
    "epsilon",
    "epsilon_and_order",
    "fixed_size_gaussian",
    "full_batch_gaussian",
    "init",
    "max_steps",
    "subsampled_gaussian",
    "update",
]

# What there is a bound for: how batches are drawn, and what neighbouring data sets are.
_KINDS: dict[tuple[str, str], Callable[[Array, Array], Array]] = {
    ("poisson", "add_remove"): divergences.poisson,
    ("fixed_size", "replace"): divergences.fixed_size,
    ("full_batch", "add_remove"): lambda sigma, q: divergences.full_batch(sigma, 1.0),
    ("full_batch", "replace"): lambda sigma, q: divergences.full_batch(sigma, 2.0),
}


def _static(default: str) -> str:
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RdpState:
    """The Renyi divergence spent so far, at every order of ``ORDERS``.

    Args:
      total: float32 ``[orders]``, rounded sum.
      carry: float32 ``[orders]``, what the rounding of ``total`` left over.
      sampler: static: how batches were drawn, see `init`.
      adjacency: static: what neighbouring data sets are, see `init`.
      unit: static: whose data one unit is, ``"record"``.
    """

    total: Array
    carry: Array
    sampler: str = _static("poisson")
    adjacency: str = _static("add_remove")
    unit: str = _static("record")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RdpCost:
    """The Renyi divergence of one or several releases; unpacks to ``(high, low)``.

    Args:
      high: float32 ``[orders]``.
      low: float32 ``[orders]``; the divergence is the sum of the two, rounded up.
      sampler: static: how batches are drawn; `add` compares it with the state's.
      adjacency: static, as ``sampler``.
    """

    high: Array
    low: Array
    sampler: str = _static("poisson")
    adjacency: str = _static("add_remove")

    def __iter__(self) -> Iterator[Array]:
        """The two parts."""
        return iter((self.high, self.low))


def init(
    *, sampler: str = "poisson", adjacency: str = "add_remove", unit: str = "record"
) -> RdpState:
    """The state in which nothing has been spent.

    Args:
      sampler: how batches will be drawn: ``"poisson"``, each unit on its own; ``"fixed_size"``,
        a set of fixed size without replacement, afresh for each batch; ``"full_batch"``, all units
        in all of them. There is no bound for shuffled batches here.
      adjacency: neighbouring data sets differ by one unit ``"add_remove"`` or by one ``"replace"``.
        Poisson sampling has a bound for the first, fixed size for the second.
      unit: whose data one unit is: ``"record"`` or a name of your own, such as ``"user"``.

    Returns:
      An `RdpState`.

    Raises:
      ValueError: on a pair of sampler and adjacency that this accountant has no bound for.

    Example:
      >>> float(epsilon(init(), 1e-5))
      0.0
    """
    if (sampler, adjacency) not in _KINDS:
        known = ", ".join(f"{s!r} with {a!r}" for s, a in _KINDS)
        raise ValueError(
            f"the RDP accountant has bounds for sampler and adjacency {known} "
            f"(got sampler={sampler!r}, adjacency={adjacency!r})"
        )
    zero = jnp.zeros(ORDERS.shape, jnp.float32)
    return RdpState(zero, zero, sampler, adjacency, unit)


def subsampled_gaussian(*, noise_multiplier: Number, sampling_rate: Number = 1.0) -> RdpCost:
    """Renyi divergence of one Poisson-subsampled Gaussian release, at every order of ``ORDERS``.

    Takes about half a second: with constant numbers call it once, outside the loop.

    Args:
      noise_multiplier: noise standard deviation over l2 sensitivity, >= 0; scalar, may be traced.
      sampling_rate: probability with which each unit takes part, in [0, 1]; may be traced.

    Returns:
      An `RdpCost`, in nats.

    Guarantees:
      At least the divergence of order a between the mechanism on data sets that differ by one
      added or removed unit. noise_multiplier = 0 gives inf, sampling_rate = 0 gives 0, and
      traced numbers out of range give inf.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> high, low = subsampled_gaussian(noise_multiplier=2.0)
      >>> bool(np.allclose(high, ORDERS / 8))  # a / (2 sigma^2)
      True

    References:
      I. Mironov, K. Talwar, L. Zhang, Renyi differential privacy of the sampled Gaussian
      mechanism, 2019, arXiv:1908.10530, Section 3.3. For fractional orders the integral itself is
      taken by quadrature, not their series, whose terms alternate.
    """
    return _release("poisson", "add_remove", noise_multiplier, sampling_rate)


def fixed_size_gaussian(*, noise_multiplier: Number, sampling_rate: Number) -> RdpCost:
    """A bound on the divergence of one Gaussian release on a set drawn without replacement.

    Args:
      noise_multiplier: noise standard deviation over the clip norm, >= 0.
        (Replacing a unit moves a sum by twice the clip norm; this is taken account of here.)
      sampling_rate: size of the set over the number of units, in [0, 1].

    Returns:
      An `RdpCost`, in nats.

    Guarantees:
      At least the divergence of order a between the mechanism on data sets of the same size that
      differ by one replaced unit. It grows fast with the order where the noise is small: expect
      little amplification below a noise_multiplier of about 4.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> cost = fixed_size_gaussian(noise_multiplier=8.0, sampling_rate=0.01)
      >>> state = add(init(sampler="fixed_size", adjacency="replace"), cost)
      >>> bool(epsilon(state, 1e-5) < 0.3)
      True

    References:
      Y.-X. Wang, B. Balle, S. Kasiviswanathan, Subsampled Renyi differential privacy and analytical
      moments accountant, 2019, arXiv:1808.00087, Theorem 9 (integer orders; between them, and from
      1 to 2, the chords of a convex function).
    """
    return _release("fixed_size", "replace", noise_multiplier, sampling_rate)


def full_batch_gaussian(*, noise_multiplier: Number, adjacency: str = "add_remove") -> RdpCost:
    """Renyi divergence of one Gaussian release in which every unit takes part.

    Args:
      noise_multiplier: noise standard deviation over the clip norm, >= 0.
      adjacency: ``"add_remove"``, where a sum moves by the clip norm, or ``"replace"``,
        by twice it.

    Returns:
      An `RdpCost`, in nats.

    Raises:
      ValueError: if a concrete noise_multiplier is below 0, or on another adjacency.

    Example:
      >>> high, low = full_batch_gaussian(noise_multiplier=2.0, adjacency="replace")
      >>> bool(np.allclose(high, ORDERS / 2))  # a 2^2 / (2 sigma^2)
      True

    References:
      I. Mironov, Renyi differential privacy, 2017, arXiv:1702.07476, Proposition 7.
    """
    check_choice("adjacency", adjacency, ("add_remove", "replace"))
    return _release("full_batch", adjacency, noise_multiplier, 1.0)


def _release(sampler: str, adjacency: str, noise_multiplier: Number, rate: Number) -> RdpCost:
    check_number("noise_multiplier", noise_multiplier, low=0, scalar=True)
    check_number("sampling_rate", rate, low=0, high=1, scalar=True)
    # Of numbers that are known, the cost is too, whatever is being traced: it may be kept.
    known = is_concrete((noise_multiplier, rate))
    with jax.ensure_compile_time_eval() if known else nullcontext(), jax.enable_x64(True):
        divergence = _divergence(sampler, adjacency, noise_multiplier, rate)
        return RdpCost(*split(divergence), sampler, adjacency)


def _divergence(sampler: str, adjacency: str, sigma: Number, q: Number) -> Array:
    """One release, in 64 bits."""
    if is_concrete((sigma, q)):
        # As they are, in 64 bits: 0.01 rounded to 32 bits is a smaller rate.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            return _COMPILED[sampler, adjacency](np.float64(sigma), np.float64(q))
    kind = _KINDS[sampler, adjacency]
    return kind(jnp.asarray(sigma, jnp.float64), jnp.asarray(q, jnp.float64))


_COMPILED = {kind: jax.jit(function) for kind, function in _KINDS.items()}


def add(state: RdpState, cost: RdpCost) -> RdpState:
    """Adds the cost of one release: cheap, for use in loops.

    Args:
      state: what was spent before.
      cost: of the release, as `subsampled_gaussian` gives it.

    Returns:
      The new state.

    Raises:
      ValueError: if the cost is that of another sampler or adjacency than the state's.

    Example:
      >>> cost = subsampled_gaussian(noise_multiplier=4.0, sampling_rate=0.01)
      >>> bool(epsilon(add(init(), cost), 1e-5) > 0)
      True
    """
    of_cost, of_state = (cost.sampler, cost.adjacency), (state.sampler, state.adjacency)
    if of_cost != of_state:
        raise ValueError(
            f"the state is for sampler and adjacency {of_state[0]!r}, {of_state[1]!r} "
            f"(got a cost for {of_cost[0]!r}, {of_cost[1]!r})"
        )
    high, low = cost
    total, carry = sum_of_pairs((state.total, state.carry), (high, low))
    return dataclasses.replace(state, total=total, carry=carry)


def update(
    state: RdpState,
    *,
    noise_multiplier: Number,
    sampling_rate: Number = 1.0,
    steps: int | Array = 1,
) -> tuple[RdpCost, RdpState]:
    """Adds ``steps`` releases of one kind, or of several.

    Args:
      state: what was spent before; its type says how batches are drawn.
      noise_multiplier: noise standard deviation over l2 sensitivity, >= 0; scalar or ``[kinds]``.
      sampling_rate: share of the units that take part in a release, in [0, 1]; scalar or
        ``[kinds]``.
      steps: number of releases, whole numbers >= 0, scalar or ``[kinds]``; may be traced, and are
        then rounded up.

    Returns:
      ``(cost, state)``: the cost of all of them and the new state.

    Guarantees:
      Of a million kinds nothing is lost: equal ones are counted, the sum is taken in 64 bits. It
      takes about half a second for every kind that differs and samples.

    Raises:
      ValueError: if a concrete number is out of range, or shapes do not fit together; on a
        sampling_rate below 1 where the state's sampler is ``"full_batch"``.

    Example:
      >>> _, state = update(init(), noise_multiplier=4.0, sampling_rate=0.01, steps=10_000)
      >>> round(float(epsilon(state, 1e-5)), 3)
      1.035

    References:
      I. Mironov, Renyi differential privacy, 2017, arXiv:1702.07476, Proposition 1 (divergences of
      one order add up). M. Abadi et al., Deep learning with differential privacy, 2016,
      arXiv:1607.00133, Theorem 2 (the moments accountant).
    """
    check_number("noise_multiplier", noise_multiplier, low=0)
    check_number("sampling_rate", sampling_rate, low=0, high=1)
    check_number("steps", steps, low=0)
    if is_concrete(steps) and (np.asarray(steps) != np.floor(steps)).any():
        raise ValueError(f"steps must be a whole number (got steps={steps})")
    numbers = (noise_multiplier, sampling_rate, steps)
    shapes = {np.shape(number) for number in numbers} - {()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(
            "noise_multiplier, sampling_rate and steps must be scalars or arrays of one dimension "
            f"and of one length (got shapes {[np.shape(number) for number in numbers]})"
        )
    if state.sampler == "full_batch" and not (
        is_concrete(sampling_rate) and (np.asarray(sampling_rate) == 1).all()
    ):
        raise ValueError(f"a full batch has sampling_rate=1 (got {sampling_rate})")
    with jax.enable_x64(True):
        if is_concrete(numbers):
            total = _counted(state, *np.broadcast_arrays(*(np.atleast_1d(n) for n in numbers)))
        else:
            total = _added_up(state, *numbers)
        cost = RdpCost(*split(total), state.sampler, state.adjacency)
    return cost, add(state, cost)


def _counted(state: RdpState, sigma: np.ndarray, q: np.ndarray, steps: np.ndarray) -> Array:
    """The divergence of concrete releases: one calculation for all that are equal."""
    kinds: dict[tuple[float, float], int] = {}
    pairs, places = np.unique(np.stack([sigma, q]).astype(np.float64), axis=1, return_inverse=True)
    if steps.astype(np.float64).sum() >= 2.0**62:
        raise ValueError(f"steps must add up to less than 2^62 (got {steps.sum(dtype=float):g})")
    counts = np.zeros(pairs.shape[1], np.int64)
    np.add.at(counts, places.reshape(-1), steps.astype(np.int64))
    whole = (pairs[1] == 1) & (pairs[0] > 0)
    if whole.sum() > 1:
        # Without sampling 1 / sigma^2 adds up.
        spent = math.fsum(n / s**2 for n, s in zip(counts[whole], pairs[0][whole], strict=True))
        if spent > 0:
            kinds[1 / math.sqrt(spent) * (1 - 1e-12), 1.0] = 1
        pairs, counts = pairs[:, ~whole], counts[~whole]
    kinds |= {(s, r): int(n) for (s, r), n in zip(pairs.T, counts, strict=True)}
    total = jnp.zeros(ORDERS.shape)
    for (s, r), n in kinds.items():
        if n:
            total += n * _divergence(state.sampler, state.adjacency, s, r)
    return total


def _added_up(state: RdpState, *numbers: Number) -> Array:
    """The divergence of releases whose numbers are traced."""
    wide = [jnp.atleast_1d(jnp.asarray(number, jnp.float64)) for number in numbers]
    length = max(number.shape[0] for number in wide)
    wide = [jnp.broadcast_to(number, (length,)) for number in wide]

    def step(total: Array, kind: tuple[Array, ...]) -> tuple[Array, None]:
        sigma, q, steps = kind
        count = jnp.ceil(steps)
        # What is no count must not look like nothing.
        count = jnp.where(count >= 0, count, jnp.inf)
        once = _divergence(state.sampler, state.adjacency, sigma, q)
        return total + jnp.where(count > 0, once * jnp.maximum(count, 1), 0.0), None

    if all(is_concrete(number) for number in numbers[:2]) and length == 1:
        # One release, known before the loop.
        once = _divergence(state.sampler, state.adjacency, *(jnp.ravel(n)[0] for n in numbers[:2]))
        count = jnp.where(wide[2][0] >= 0, jnp.ceil(wide[2][0]), jnp.inf)
        return jnp.where(count > 0, once * jnp.maximum(count, 1), 0.0)
    return lax.scan(step, jnp.zeros(ORDERS.shape), tuple(wide))[0]


def epsilon(state: RdpState, delta: Number) -> Array:
    """The epsilon of (epsilon, delta)-differential privacy for what was spent.

    Args:
      state: what was spent.
      delta: in (0, 1); a traced value outside gives inf (<= 0) or 0 (>= 1).

    Returns:
      float32 scalar, >= 0, rounded up; 0 where nothing was spent, inf where there is no bound, or
      where the state is none (NaN or negative).

    Guarantees:
      All releases together are (epsilon, delta)-differentially private for one added or removed
      unit, if each sampled and added noise as was told to `update`.

    Raises:
      ValueError: if a concrete delta is outside (0, 1).

    Example:
      >>> _, state = update(init(), noise_multiplier=10.0, steps=100)
      >>> 4.72 < float(epsilon(state, 1e-5)) < 4.73
      True

    References:
      C. Canonne, G. Kamath, T. Steinke, The discrete Gaussian for differential privacy, 2020,
      arXiv:2004.00010, Proposition 12.
    """
    return epsilon_and_order(state, delta)[0]


def epsilon_and_order(state: RdpState, delta: Number) -> tuple[Array, Array]:
    """`epsilon`, and the order at which it is reached.

    Args:
      state: what was spent.
      delta: in (0, 1).

    Returns:
      ``(epsilon, order)``, float32 scalars. An order at the end of ``ORDERS`` says that a larger
      one might do better.

    Raises:
      ValueError: if a concrete delta is outside (0, 1).

    Example:
      >>> _, state = update(init(), noise_multiplier=10.0, steps=100)
      >>> bound, order = epsilon_and_order(state, 1e-5)
      >>> 4.72 < float(bound) < 4.73, 5.3 < float(order) < 5.6
      (True, True)
    """
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        spent, a = _spent(state), jnp.asarray(ORDERS)
        per_order = spent + _conversion(delta)
        per_order = jnp.where(jnp.isnan(per_order), jnp.inf, per_order)
        # (No argmin: it is lowered with the callers' precision, who may be outside of the island.)
        least = jnp.min(per_order)
        order = jnp.min(jnp.where(per_order == least, a, jnp.inf))
        bound = jnp.where(jnp.any(spent > 0), jnp.maximum(least, 0.0), 0.0)
        return rounded_up(bound), order.astype(jnp.float32)


def _conversion(delta: Number) -> Array:
    """What epsilon is above the divergence, at every order."""
    a, log_delta = jnp.asarray(ORDERS), jnp.log(jnp.asarray(delta, jnp.float64))
    return jnp.log1p(-1 / a) - (log_delta + jnp.log(a)) / (a - 1)


def max_steps(
    *, epsilon: Number, delta: Number, noise_multiplier: Number, sampling_rate: Number
) -> Array:
    """How many Poisson-sampled steps a budget lasts for, by this accountant.

    Args:
      epsilon: the budget, >= 0; scalar, may be traced, as all of these.
      delta: in (0, 1).
      noise_multiplier: noise standard deviation over l2 sensitivity, >= 0.
      sampling_rate: probability with which each unit takes part, in [0, 1].

    Returns:
      int32 scalar: the largest number of steps whose `epsilon` is at most the budget; at most
      ``2^31 - 1``.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> n = max_steps(epsilon=3.0, delta=1e-5, noise_multiplier=1.1, sampling_rate=256 / 60_000)
      >>> bool(14_000 < n < 25_000)
      True

    References:
      I. Mironov, Renyi differential privacy, 2017, arXiv:1702.07476, Proposition 1.
    """
    check_number("epsilon", epsilon, low=0, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    cost = subsampled_gaussian(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate)
    with jax.enable_x64(True):
        once = cost.high.astype(jnp.float64) + cost.low.astype(jnp.float64)
        # What is rounded on the way to a state and out of it again must not exceed the budget.
        left = jnp.asarray(epsilon, jnp.float64) * (1 - 3e-7) - _conversion(delta)
        count = jnp.floor(left / jnp.where(once > 0, once, 1.0) * (1 - 1e-12))
        count = jnp.where(once > 0, count, jnp.inf)
        most = jnp.max(jnp.where(jnp.isnan(count), 0.0, count))
        return jnp.clip(most, 0, 2**31 - 1).astype(jnp.int32)


def delta(state: RdpState, epsilon: Number) -> Array:
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
      >>> _, state = update(init(), noise_multiplier=10.0, steps=100)
      >>> float(delta(state, 5.0)) < 1e-5
      True

    References:
      C. Canonne, G. Kamath, T. Steinke, The discrete Gaussian for differential privacy, 2020,
      arXiv:2004.00010, Proposition 12.
    """
    check_number("epsilon", epsilon, low=0, scalar=True)
    with jax.enable_x64(True):
        spent, a = _spent(state), jnp.asarray(ORDERS)
        budget = jnp.asarray(epsilon, jnp.float64)
        log_delta = (a - 1) * (spent - budget + jnp.log1p(-1 / a)) - jnp.log(a)
        log_delta = jnp.where(jnp.isnan(log_delta), jnp.inf, log_delta)
        bound = jnp.exp(jnp.minimum(jnp.min(log_delta), 0.0))
        return jnp.minimum(rounded_up(jnp.where(jnp.any(spent > 0), bound, 0.0)), jnp.float32(1))


def _spent(state: RdpState) -> Array:
    """The divergences, infinite where they are none: what is damaged must not look like nothing."""
    divergence = joined(state.total, state.carry)
    if divergence.shape != ORDERS.shape:
        # The smallest epsilon of many states would be below that of most of them.
        raise ValueError(f"one state at a time; vmap over many (got shape {divergence.shape})")
    return jnp.where(divergence >= 0, divergence, jnp.inf)
