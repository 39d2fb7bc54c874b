"""Privacy loss distributions: the tight account, by FFT, with all that is rounded added to it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.checks import check_count, check_number, is_concrete
from spax.dp.accounting import rdp
from spax.dp.accounting.pairs import place_of_least, rounded_up, split
from spax.dp.accounting.pld_grid import (
    Composed,
    Gaussian,
    Laplace,
    Response,
    Steps,
    delta_at,
)
from spax.dp.accounting.pld_grid import compose as _composed
from spax.dp.accounting.roots import falling_root
from spax.typing import Array, Number

__all__ = [
    "PldEpsilon",
    "PldState",
    "calibrate",
    "compose",
    "delta",
    "epsilon",
    "epsilon_with_error",
    "gaussian",
    "init",
    "laplace",
    "randomized_response",
    "self_compose",
    "update",
]

Mechanism = Gaussian | Laplace | Response

_SIZE, _SEARCH_SIZE = 2**17, 2**13
_MOST_SIGMA = 1e4
# What rounding of delta, in 64 bits, may take.
_MARGIN = np.log1p(-1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PldState:
    """How often each mechanism was used.

    Args:
      counts: int32 ``[mechanisms]``.
      mechanisms: static: what they are, from `gaussian`, `laplace` and `randomized_response`.
      sampler: static: how batches were drawn, see `init`.
      adjacency: static: what neighbouring data sets are.
      unit: static: whose data one unit is.
    """

    counts: Array
    mechanisms: tuple[Mechanism, ...] = dataclasses.field(metadata={"static": True})
    sampler: str = dataclasses.field(default="poisson", metadata={"static": True})
    adjacency: str = dataclasses.field(default="add_remove", metadata={"static": True})
    unit: str = dataclasses.field(default="record", metadata={"static": True})


class PldEpsilon(NamedTuple):
    """An epsilon and what is known of it.

    Args:
      epsilon: float32 scalar: the guarantee.
      error: float32 scalar: the least epsilon is at most this far below.
      from_rdp: bool scalar: the losses did not fit a grid and the figure is that of `rdp`.
    """

    epsilon: Array
    error: Array
    from_rdp: Array


def gaussian(*, noise_multiplier: float, sampling_rate: float = 1.0) -> Gaussian:
    """The Gaussian mechanism on a Poisson sample, or on all of the data.

    Args:
      noise_multiplier: noise standard deviation over the clip norm, >= 0.02; a Python number.
      sampling_rate: probability with which each unit takes part, in (0, 1].

    Returns:
      What `init` takes.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> gaussian(noise_multiplier=1.1, sampling_rate=0.01)
      Gaussian(noise_multiplier=1.1, sampling_rate=0.01)

    References:
      Y. Zhu, J. Dong, Y.-X. Wang, Optimal accounting of differential privacy via characteristic
      function, 2022, arXiv:2106.08567, Theorem 11 (both directions are needed).
    """
    check_number("noise_multiplier", noise_multiplier, low=0.02, scalar=True)
    check_number("sampling_rate", sampling_rate, low=0, high=1, low_open=True, scalar=True)
    return Gaussian(float(noise_multiplier), float(sampling_rate))


def laplace(scale: float) -> Laplace:
    """The Laplace mechanism on all of the data, in one dimension.

    Args:
      scale: of the noise, over the l1 sensitivity, > 0.

    Returns:
      What `init` takes.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> laplace(10.0)
      Laplace(scale=10.0)
    """
    check_number("scale", scale, low=0, low_open=True, scalar=True)
    return Laplace(float(scale))


def randomized_response(epsilon0: float) -> Response:
    """Binary randomised response, and with it any mechanism that is ``epsilon0``-private.

    Args:
      epsilon0: > 0.

    Returns:
      What `init` takes.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> randomized_response(0.1)
      Response(epsilon0=0.1)

    References:
      P. Kairouz, S. Oh, P. Viswanath, The composition theorem for differential privacy, 2015,
      arXiv:1311.0776 (it dominates).
    """
    check_number("epsilon0", epsilon0, low=0, low_open=True, scalar=True)
    return Response(float(epsilon0))


def init(
    mechanisms: Sequence[Mechanism],
    *,
    sampler: str = "poisson",
    adjacency: str = "add_remove",
    unit: str = "record",
) -> PldState:
    """The state in which none of some mechanisms has been used.

    Args:
      mechanisms: those that will be: at least one, static.
      sampler: how batches will be drawn: ``"poisson"``, or ``"full_batch"``, all units in all of
        them.
      adjacency: neighbouring data sets differ by one unit ``"add_remove"``; with ``"full_batch"``
        also by one ``"replace"``, where a Gaussian's sum moves by twice the clip norm.
      unit: whose data one unit is: ``"record"`` or a name of your own, such as ``"user"``.

    Returns:
      A `PldState`.

    Raises:
      ValueError: without mechanisms, or where there is no bound for sampler and adjacency (fixed
        size has one in `rdp`; shuffled batches have none).
      TypeError: if something else than a mechanism is given.

    Example:
      >>> state = init([gaussian(noise_multiplier=4.0, sampling_rate=0.01)])
      >>> float(epsilon(state, 1e-5))
      0.0
    """
    known = (("poisson", "add_remove"), ("full_batch", "add_remove"), ("full_batch", "replace"))
    if (sampler, adjacency) not in known:
        raise ValueError(
            "the PLD accountant has bounds for sampler and adjacency 'poisson' with 'add_remove', "
            "'full_batch' with 'add_remove' or 'replace' "
            f"(got sampler={sampler!r}, adjacency={adjacency!r})"
        )
    kinds = tuple(mechanisms)
    if not kinds:
        raise ValueError("there must be a mechanism (got none)")
    for kind in kinds:
        if not isinstance(kind, Gaussian | Laplace | Response):
            raise TypeError(f"mechanisms come from pld.gaussian and its like (got {kind!r})")
        if isinstance(kind, Gaussian) and sampler == "full_batch" and kind.sampling_rate != 1:
            raise ValueError(f"a full batch has sampling_rate=1 (got {kind.sampling_rate})")
    return PldState(jnp.zeros(len(kinds), jnp.int32), kinds, sampler, adjacency, unit)


def update(
    state: PldState, index: int | Array = 0, *, steps: int | Array = 1
) -> tuple[Array, PldState]:
    """Counts uses of one mechanism: integers, so that nothing is lost.

    Args:
      state: what was used before.
      index: which of the state's mechanisms; may be traced, and then must be in range: outside it
        makes the state worthless.
      steps: how often, a whole number >= 0; may be traced.

    Returns:
      ``(counts, state)``: what was added, int32 ``[mechanisms]``, and the new state.

    Guarantees:
      A count beyond ``2^31 - 1`` makes the epsilon infinite.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> state = init([gaussian(noise_multiplier=4.0, sampling_rate=0.01)])
      >>> _, state = update(state, steps=10_000)
      >>> 0.946 < float(epsilon(state, 1e-5)) < 0.948
      True

    References:
      A. Koskela, J. Jalko, A. Honkela, Computing tight differential privacy guarantees using FFT,
      2020, arXiv:1906.03049.
    """
    check_number("steps", steps, low=0, scalar=True)
    if is_concrete(steps) and (float(steps) != np.floor(float(steps)) or float(steps) >= 2**31):
        raise ValueError(f"steps must be a whole number below 2^31 (got steps={float(steps):g})")
    kinds = len(state.mechanisms)
    if is_concrete(index) and not 0 <= int(index) < kinds:
        raise ValueError(f"index must be in [0, {kinds}) (got index={int(index)})")
    count = jnp.ceil(steps) if jnp.issubdtype(jnp.result_type(steps), jnp.floating) else steps
    places = jnp.arange(kinds)
    added = jnp.where(places == index, jnp.asarray(count).astype(jnp.int32), 0)
    inside = (jnp.asarray(index) >= 0) & (jnp.asarray(index) < kinds)
    added = jnp.where(inside, added, -(2**31))
    counts = state.counts + added
    # A sum that wrapped around, or what was no count before or now, stays one for good.
    broken = (state.counts < 0) | (added < 0) | (counts < 0)
    return added, dataclasses.replace(state, counts=jnp.where(broken, -(2**30), counts))


def compose(a: PldState, b: PldState) -> PldState:
    """The state of two releases together.

    Args:
      a: one.
      b: the other, of the same sampler, adjacency and unit.

    Returns:
      A `PldState` of the mechanisms of both.

    Raises:
      ValueError: if they differ in sampler, adjacency or unit.

    Example:
      >>> a, b = init([laplace(1.0)]), init([laplace(1.0), laplace(2.0)])
      >>> len(compose(a, b).mechanisms)
      2
    """
    ours, theirs = ((s.sampler, s.adjacency, s.unit) for s in (a, b))
    if ours != theirs:
        raise ValueError(f"states must agree in sampler, adjacency and unit (got {ours}, {theirs})")
    kinds = tuple(dict.fromkeys(a.mechanisms + b.mechanisms))
    state = PldState(jnp.zeros(len(kinds), jnp.int32), kinds, *ours)
    for part in (a, b):
        for i, kind in enumerate(part.mechanisms):
            _, state = update(state, kinds.index(kind), steps=part.counts[i])
    return state


def self_compose(state: PldState, k: int) -> PldState:
    """The state of k times the same.

    Args:
      state: what was used once.
      k: static, >= 0.

    Returns:
      A `PldState`.

    Raises:
      ValueError: if k < 0.

    Example:
      >>> _, state = update(init([laplace(10.0)]))
      >>> round(float(epsilon(self_compose(state, 100), 1e-5)), 3)
      4.22
    """
    check_count("k", k, minimum=0)
    most = jnp.max(state.counts)
    fits = (jnp.min(state.counts) >= 0) & (most <= (2**31 - 1) // max(k, 1))
    return dataclasses.replace(state, counts=jnp.where(fits, state.counts * k, -(2**30)))


def epsilon(state: PldState, delta: Number) -> Array:
    """The epsilon of (epsilon, delta)-differential privacy for what was used.

    Takes some tens of milliseconds once compiled: under ``jax.jit`` with the state as an argument.

    Args:
      state: what was used.
      delta: in (0, 1).

    Returns:
      float32 scalar, >= 0, rounded up; inf where the state is none.

    Guarantees:
      All releases together are (epsilon, delta)-differentially private for the state's adjacency
      and unit. Losses are put on a grid that raises delta; what is cut off, what wraps around and
      what the FFT may round is added to it. Never larger than that of `rdp`.

    Raises:
      ValueError: if a concrete delta is outside (0, 1).

    Example:
      >>> _, state = update(init([randomized_response(0.1)]), steps=100)
      >>> round(float(epsilon(state, 1e-5)), 3)
      4.307

    References:
      A. Koskela, J. Jalko, A. Honkela, Computing tight differential privacy guarantees using FFT,
      2020, arXiv:1906.03049. V. Doroshenko, B. Ghazi, P. Kamath, R. Kumar, P. Manurangsi, Connect
      the dots: tighter discrete approximations of privacy loss distributions, 2022,
      arXiv:2207.04380.
    """
    return epsilon_with_error(state, delta).epsilon


def epsilon_with_error(state: PldState, delta: Number) -> PldEpsilon:
    """`epsilon`, how tight it is, and where it comes from.

    Args:
      state: what was used.
      delta: in (0, 1).

    Returns:
      A `PldEpsilon`. The error is a bound by Bernstein's inequality on what the grid may have
      added, some times larger than what it did add.

    Raises:
      ValueError: if a concrete delta is outside (0, 1).

    Example:
      >>> _, state = update(init([gaussian(noise_multiplier=1.0)]))
      >>> found = epsilon_with_error(state, 1e-5)
      >>> round(float(found.epsilon), 3), float(found.error) < 0.01, bool(found.from_rdp)
      (4.377, True, False)

    References:
      S. Gopi, Y. T. Lee, L. Wutschitz, Numerical composition of differential privacy, 2021,
      arXiv:2106.02848 (a bound on the error by the concentration of what rounding adds).
    """
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        # One compilation for all states of the same mechanisms, wherever it is called.
        return _epsilon(state, jnp.asarray(delta, jnp.float64))


@jax.jit
def _epsilon(state: PldState, delta: Array) -> PldEpsilon:
    steps, used, whole = _steps(state)
    upper, lower = _both(steps, jnp.log(delta), _SIZE)
    by_rdp = _by_rdp(state, delta).astype(jnp.float64)
    fits = (upper <= by_rdp) & ~jnp.isnan(upper)
    least = jnp.where(used, jnp.where(fits, upper, by_rdp), 0.0)
    least = jnp.where(whole, least, jnp.inf)
    error = jnp.where(used, jnp.maximum(least - lower, 0.0), 0.0)
    return PldEpsilon(rounded_up(least), rounded_up(error), used & whole & ~fits)


def delta(state: PldState, epsilon: Number) -> Array:
    """The delta of (epsilon, delta)-differential privacy for what was used.

    Args:
      state: what was used.
      epsilon: >= 0.

    Returns:
      float32 scalar in [0, 1], rounded up; 1 where the state is none.

    Guarantees:
      As of `epsilon`.

    Raises:
      ValueError: if a concrete epsilon < 0.

    Example:
      >>> _, state = update(init([laplace(1.0)]))
      >>> round(float(delta(state, 0.979899)), 4)
      0.01

    References:
      A. Koskela, J. Jalko, A. Honkela, Computing tight differential privacy guarantees using FFT,
      2020, arXiv:1906.03049.
    """
    check_number("epsilon", epsilon, low=0, scalar=True)
    with jax.enable_x64(True):
        return _delta(state, jnp.asarray(epsilon, jnp.float64))


@jax.jit
def _delta(state: PldState, budget: Array) -> Array:
    steps, used, whole = _steps(state)

    def one(add: Array) -> Array:
        # Once to see how small it is, and once more where it then matters.
        rough = _composed(steps, add, jnp.asarray(np.log(1e-12)), budget, size=_SEARCH_SIZE)
        log_delta = jnp.log(jnp.clip(delta_at(rough, budget), 1e-100, 1.0)) - 2
        return delta_at(_composed(steps, add, log_delta, budget, size=_SIZE), budget)

    found = jnp.max(lax.map(one, jnp.array([False, True])))
    found = jnp.where(jnp.isnan(found), 1.0, found) * (1 + 1e-6)
    found = jnp.where(used, found, 0.0)
    return jnp.minimum(rounded_up(jnp.where(whole, found, 1.0)), jnp.float32(1))


def calibrate(
    *, epsilon: Number, delta: Number, sampling_rate: Number, steps: int | Array
) -> tuple[Array, Array]:
    """The least noise at which all steps together cost at most epsilon, by this accountant.

    Args:
      epsilon: the budget, > 0; scalar, may be traced, as all of these.
      delta: in (0, 1).
      sampling_rate: probability with which each unit takes part in a step, in (0, 1].
      steps: number of steps, >= 1; rounded up.

    Returns:
      ``(noise_multiplier, epsilon)``, float32 scalars: the noise and the epsilon that it achieves,
      at most the budget. ``(inf, 0)`` where no noise up to ten thousand suffices.

    Guarantees:
      As of `epsilon`, for adding or removing one unit. Traced numbers out of range give
      ``(inf, 0)``.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> noise, spent = calibrate(epsilon=3.0, delta=1e-5, sampling_rate=256 / 60_000, steps=4680)
      >>> round(float(noise), 3), 2.995 < float(spent) <= 3.0
      (0.759, True)

    References:
      A. Koskela, J. Jalko, A. Honkela, Computing tight differential privacy guarantees using FFT,
      2020, arXiv:1906.03049.
    """
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    check_number("sampling_rate", sampling_rate, low=0, high=1, low_open=True, scalar=True)
    check_number("steps", steps, low=1, scalar=True)
    numbers = (epsilon, delta, sampling_rate, steps)
    with jax.enable_x64(True):
        if is_concrete(numbers):
            with jax.ensure_compile_time_eval():
                return _compiled(*(np.float64(number) for number in numbers))
        return _calibrate(*(jnp.asarray(number, jnp.float64) for number in numbers))


def _calibrate(epsilon: Array, delta: Array, q: Array, steps: Array) -> tuple[Array, Array]:
    valid = (epsilon > 0) & (delta > 0) & (delta < 1) & (q > 0) & (q <= 1) & (steps >= 1)
    budget = jnp.where(valid, epsilon, 1.0) * (1 - 3e-7)
    log_delta = jnp.log(jnp.where(valid, delta, 0.5))
    q, count = jnp.where(valid, q, 0.5)[None], jnp.ceil(jnp.where(valid, steps, 1.0))[None]

    def excess(log_s: Array, size: int) -> tuple[Array, tuple[Array, Array]]:
        # The noise as it will be told, in 32 bits.
        noise = jnp.exp(log_s).astype(jnp.float32)
        sigma = noise.astype(jnp.float64)[None]
        spent, _ = _both(Steps(sigma, q, count, (), jnp.zeros(0)), log_delta, size)
        spent = jnp.where(jnp.isnan(spent), jnp.inf, spent)
        return jnp.log(jnp.maximum(spent, 1e-300)) - jnp.log(budget), (noise, spent)

    low, high = np.log(0.021), np.log(_MOST_SIGMA)
    found, _ = falling_root(
        lambda s: excess(s, _SEARCH_SIZE), low, high, tolerance=5e-4, limit=high
    )
    _, (noise, spent) = falling_root(
        lambda s: excess(s, _SIZE),
        jnp.maximum(found - 0.05, low),
        found + 1e-4,
        tolerance=3e-5,
        limit=high,
    )
    valid &= spent <= budget
    return (
        jnp.where(valid, noise, jnp.float32(np.inf)),
        jnp.where(valid, rounded_up(spent), jnp.float32(0)),
    )


_compiled = jax.jit(_calibrate)


def _steps(state: PldState) -> tuple[Steps, Array, Array]:
    """What to compose; whether there is anything; whether the counts are counts."""
    if state.counts.shape != (len(state.mechanisms),):
        raise ValueError(f"one state at a time; vmap over many (got {state.counts.shape} counts)")
    scale = 0.5 if state.adjacency == "replace" else 1.0
    whole = jnp.all(state.counts >= 0)
    counts = jnp.maximum(state.counts, 0).astype(jnp.float64)
    sampled = [
        (n, kind)
        for n, kind in zip(counts, state.mechanisms, strict=True)
        if isinstance(kind, Gaussian)
    ]
    others = [
        (n, kind)
        for n, kind in zip(counts, state.mechanisms, strict=True)
        if not isinstance(kind, Gaussian)
    ]

    def array(values: Sequence[Number]) -> Array:
        return jnp.asarray(values, jnp.float64) if values else jnp.zeros(0)

    steps = Steps(
        array([kind.noise_multiplier * scale for _, kind in sampled]),
        array([kind.sampling_rate for _, kind in sampled]),
        array([n for n, _ in sampled]),
        tuple(kind for _, kind in others),
        array([n for n, _ in others]),
    )
    return steps, jnp.any(counts > 0), whole


def _both(steps: Steps, log_delta: Array, size: int) -> tuple[Array, Array]:
    """Epsilon from above and from below, the larger of both directions."""

    def one(add: Array) -> tuple[Array, Array]:
        return _crossing(
            _composed(steps, add, log_delta, jnp.asarray(np.nan), size=size), log_delta
        )

    upper, lower = lax.map(one, jnp.array([False, True]))
    return jnp.max(upper), jnp.max(lower)


def _crossing(composed: Composed, log_delta: Array) -> tuple[Array, Array]:
    """The epsilon at which delta is reached, and a bound from below."""
    losses = composed.losses
    # Sums over the losses above each point; between two points delta is a line in e^epsilon.
    first = jnp.cumsum(composed.mass[::-1])[::-1]
    log_second = lax.cumlogsumexp(jnp.log(composed.mass) - losses, reverse=True)
    at = first - jnp.exp(jnp.minimum(losses + log_second, 700.0))

    def solve(target: Array) -> Array:
        over = at > target
        # The terms from here on are those of the cell in which it is reached.
        j = jnp.where(jnp.any(over), losses.shape[0] - place_of_least(~over[::-1]), 0)
        inside = jnp.minimum(j, losses.shape[0] - 1)
        value = jnp.log(jnp.maximum(first[inside] - target, 1e-300)) - log_second[inside]
        value = jnp.where(j == 0, losses[0], value)
        value = jnp.where(j == losses.shape[0], losses[-1], value)
        return jnp.where((target > 0) & ~jnp.any(jnp.isnan(at)), value, jnp.inf)

    delta = jnp.exp(log_delta)
    upper = solve(delta * (1 + _MARGIN) - composed.lost)
    lower = solve(delta * (1 + 3e-3)) - composed.bias
    return jnp.maximum(upper, 0.0), jnp.maximum(lower, 0.0)


def _by_rdp(state: PldState, delta: Number) -> Array:
    """The bound of `rdp`, from divergences that are known before anything is traced."""
    scale = 0.5 if state.adjacency == "replace" else 1.0
    total = jnp.zeros(rdp.ORDERS.shape)
    for count, kind in zip(state.counts, state.mechanisms, strict=True):
        once = jnp.asarray(_divergence(kind, scale))
        total += jnp.where(count > 0, once * jnp.maximum(count, 1).astype(jnp.float64), 0.0)
    high, low = split(total * (1 + 1e-9))
    return rdp.epsilon(dataclasses.replace(rdp.init(), total=high, carry=low), delta)


@functools.lru_cache(maxsize=64)
def _divergence(kind: Mechanism, scale: float) -> np.ndarray:
    if isinstance(kind, Gaussian):
        with jax.ensure_compile_time_eval():
            cost = rdp.subsampled_gaussian(
                noise_multiplier=kind.noise_multiplier * scale, sampling_rate=kind.sampling_rate
            )
        return np.asarray(cost.high, np.float64) + np.asarray(cost.low, np.float64)
    a = rdp.ORDERS
    if isinstance(kind, Response):
        e = kind.epsilon0
        log_p, log_q = -np.log1p(np.exp(-e)), -np.log1p(np.exp(e))
        moment = np.logaddexp(a * log_p + (1 - a) * log_q, a * log_q + (1 - a) * log_p)
    else:
        e = 1 / kind.scale
        moment = np.logaddexp(
            np.log(a / (2 * a - 1)) + (a - 1) * e, np.log((a - 1) / (2 * a - 1)) - a * e
        )
    # What cancels at orders near 1 leaves a rounding error of 64 bits.
    return np.minimum(np.maximum(moment, 0) / (a - 1) * (1 + 1e-9) + 1e-12, e)
