"""Renyi differential privacy of the Poisson-subsampled Gaussian mechanism, and its conversion.

All arithmetic runs in a local 64-bit island. What leaves it is rounded up: sums are kept as pairs
of float32, exact to 48 bits, and the epsilon that is read out is never below the bound it states.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.checks import check_number, is_concrete
from spax.typing import Array, Number

__all__ = ["ORDERS", "RdpState", "add", "delta", "epsilon", "init", "subsampled_gaussian", "update"]

# The divergence is computed at these orders, to 1001 by quadrature and from there on by its series,
_FRACTIONAL = 1 + np.geomspace(1e-3, 1e3, 698)
_INTEGER = np.unique(np.geomspace(1002, 131072, 166).round())
# and between them a convex function is interpolated, at ratios of 1.001 in a - 1 where it matters:
# at low rates the best order lies just below a sharp bend.
_STEPS = ((1e-3, 0.3, 0.02), (0.3, 1e3, 0.001), (1e3, 131071, 0.005))
_BETWEEN = [1 + np.exp(np.arange(np.log(low), np.log(high), step)) for low, high, step in _STEPS]
ORDERS = np.unique(np.concatenate([*_BETWEEN, _FRACTIONAL, _INTEGER]))

_NODES = 4096
_LEAST_SIGMA = 0.02
_BLOCK = 4096
# Covers the quadrature (below 1e-9), the log-gamma of large orders (1e-8) and all rounding.
_SAFETY = 1 + 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RdpState:
    """The Renyi divergence spent so far, at every order of ``ORDERS``.

    Args:
      total: float32 ``[orders]``, rounded sum.
      carry: float32 ``[orders]``, what the rounding of ``total`` left over.
      sampler: static: how batches were drawn, ``"poisson"``.
      adjacency: static: what neighbouring data sets are, ``"add_remove"`` one unit.
      unit: static: whose data one unit is, ``"record"``.
    """

    total: Array
    carry: Array
    sampler: str = dataclasses.field(default="poisson", metadata={"static": True})
    adjacency: str = dataclasses.field(default="add_remove", metadata={"static": True})
    unit: str = dataclasses.field(default="record", metadata={"static": True})


def init(
    *, sampler: str = "poisson", adjacency: str = "add_remove", unit: str = "record"
) -> RdpState:
    """The state in which nothing has been spent.

    Args:
      sampler: how batches will be drawn; ``"poisson"`` is what the bound holds for.
      adjacency: ``"add_remove"``.
      unit: whose data one unit is: ``"record"`` or a name of your own, such as ``"user"``.

    Returns:
      An `RdpState`.

    Raises:
      ValueError: on another sampler or adjacency: this accountant has no bound for them.

    Example:
      >>> float(epsilon(init(), 1e-5))
      0.0
    """
    for name, got, known in (
        ("sampler", sampler, "poisson"),
        ("adjacency", adjacency, "add_remove"),
    ):
        if got != known:
            raise ValueError(f"the RDP accountant needs {name}={known!r} (got {name}={got!r})")
    zero = jnp.zeros(ORDERS.shape, jnp.float32)
    return RdpState(zero, zero, sampler, adjacency, unit)


def subsampled_gaussian(
    *, noise_multiplier: Number, sampling_rate: Number = 1.0
) -> tuple[Array, Array]:
    """Renyi divergence of one Poisson-subsampled Gaussian release, at every order of ``ORDERS``.

    Takes about half a second: with constant numbers call it once, outside the loop.

    Args:
      noise_multiplier: noise standard deviation over l2 sensitivity, >= 0; scalar, may be traced.
      sampling_rate: probability with which each unit takes part, in [0, 1]; may be traced.

    Returns:
      ``(high, low)``, float32 ``[orders]`` each, whose sum is the divergence in nats, rounded up.

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
    check_number("noise_multiplier", noise_multiplier, low=0)
    check_number("sampling_rate", sampling_rate, low=0, high=1)
    if is_concrete((noise_multiplier, sampling_rate)):
        # As they are, in 64 bits: 0.01 rounded to 32 bits is a smaller rate.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            return _compiled(np.float64(noise_multiplier), np.float64(sampling_rate))
    return _divergence(noise_multiplier, sampling_rate)


def _divergence(noise_multiplier: Number, sampling_rate: Number) -> tuple[Array, Array]:
    with jax.enable_x64(True):
        sigma = jnp.asarray(noise_multiplier, jnp.float64)
        q = jnp.asarray(sampling_rate, jnp.float64)
        valid = (sigma > 0) & (q >= 0) & (q <= 1)
        inside = valid & (q > 0) & (q < 1)
        # Harmless stand-ins where a closed form is taken below.
        s, r = jnp.where(inside, sigma, 1.0), jnp.where(inside, q, 0.5)
        orders = jnp.asarray(ORDERS)
        log_excess = _log_excess(orders, s, r)
        divergence = jnp.logaddexp(log_excess, 0.0) / (orders - 1)
        # Sampling never costs; where noise is too small for the quadrature, that is the bound.
        whole = orders / (2 * jnp.where(valid, sigma, 1.0) ** 2)
        divergence = jnp.where(sigma < _LEAST_SIGMA, whole, jnp.minimum(divergence, whole))
        divergence = jnp.where(q == 1, whole, divergence)
        divergence = jnp.where(valid & ~jnp.isnan(divergence), divergence, jnp.inf)
        divergence = jnp.where(q == 0, 0.0, divergence)
        return _split(divergence * _SAFETY)


_compiled = jax.jit(_divergence)


def _log_excess(orders: Array, s: Array, q: Array) -> Array:
    """``log(A_a - 1)``, ``A_a = E_{z ~ N(0, s^2)}[(1 - q + q e^u)^a]``, ``u = (2z - 1)/(2 s^2)``.

    With ``d = e^u - 1``, whose mean is zero, ``A_a - 1`` is the mean of ``f_a = (1 + q d)^a - 1 -
    a q d >= 0``. Taylor's remainder ``f_a = a (a - 1) int_0^{qd} (qd - t) (1 + t)^(a-2) dt`` is
    ``a (a - 1)`` times a mixture of exponentials in a: the logarithm of ``E[f_a] / (a (a - 1))`` is
    convex, over any set of z, and a chord lies above it. Small and large z are interpolated apart,
    since their sum has a bend.
    """
    nodal, whole = jnp.asarray(_FRACTIONAL), jnp.asarray(_INTEGER)
    parts = lax.map(lambda a: _log_excess_by_quadrature(a, s, q), nodal, batch_size=64)
    parts = jnp.maximum(parts, -1e5) - jnp.log(nodal * (nodal - 1))[:, None]
    both = jnp.logaddexp(parts[:, 0], parts[:, 1])
    series = lax.map(lambda a: _log_excess_by_series(a, s, q), whole)
    series = jnp.concatenate([both[-1:], series - jnp.log(whole * (whole - 1))])
    between = jnp.where(
        orders <= nodal[-1],
        jnp.logaddexp(*(jnp.interp(orders, nodal, part) for part in parts.T)),
        jnp.interp(orders, jnp.concatenate([nodal[-1:], whole]), series),
    )
    return between + jnp.log(orders * (orders - 1))


def _log_excess_by_quadrature(a: Array, s: Array, q: Array) -> Array:
    """The logarithm of ``E[f_a]`` over small z and over large z, ``[2]``; the integrand is >= 0.

    It has a hump near 0, one near a, or one between if ``s`` is large. Where the nodes are too few
    for all of the range (``a > 488 s``, so that ``s < 2.1``), the humps lie within ``s^2`` of 0
    and of a: one at z has ``z = a w`` and ``a w (1 - w) < s^2``, ``w = q e^u / (1 - q + q e^u)``.
    The trapezoid rule converges geometrically: the branch point is ``pi s^2`` off the axis.
    """
    reach = 12 * s
    apart = a > (_NODES / 8 - 24) * s
    width = jnp.where(apart, 4 * reach, a + 2 * reach)
    step = width / _NODES
    offset = (jnp.arange(_NODES, dtype=jnp.float64) + 0.5) * step
    second = apart & (offset > 2 * reach)
    z = jnp.where(second, a - 3 * reach + offset, offset - reach)

    u = (2 * z - 1) / (2 * s * s)
    small_u = jnp.minimum(u, 30.0)
    qd = q * jnp.expm1(small_u)
    log_power = a * jnp.where(u < 30, jnp.log1p(qd), jnp.logaddexp(jnp.log1p(-q), jnp.log(q) + u))
    # Three ways to log((1 + qd)^a - 1 - a qd), each where it is exact.
    taylor = 1 + (a - 2) / 3 * qd * (1 + (a - 3) / 4 * qd)
    near = jnp.log(a * (a - 1) / 2) + 2 * jnp.log(jnp.abs(qd) + 1e-300) + jnp.log(taylor)
    capped = jnp.minimum(log_power, 30.0)
    middle = jnp.log(jnp.maximum(jnp.expm1(capped) - a * qd, 1e-300))
    rest = jnp.exp(-log_power) + jnp.exp(jnp.log(a * q) + u - log_power)
    far = log_power + jnp.log1p(-jnp.minimum(rest, 0.5))
    log_f = jnp.where(a * jnp.abs(qd) < 1e-2, near, jnp.where(log_power < 30, middle, far))
    log_density = -(z * z) / (2 * s * s) - jnp.log(s) - 0.5 * np.log(2 * np.pi)
    log_mass = log_f + log_density + jnp.log(step)
    large = u > jnp.log1p(-q) - jnp.log(q)
    return jnp.stack(
        [jax.nn.logsumexp(jnp.where(part, log_mass, -jnp.inf)) for part in (~large, large)]
    )


def _log_excess_by_series(a: Array, s: Array, q: Array) -> Array:
    """``log(A_a - 1)`` for an integer order: ``sum_{k=2}^a C(a,k) (1-q)^(a-k) q^k expm1(v_k)``.

    ``v_k = (k^2 - k) / (2 s^2)``; all terms are positive. Summed block by block.
    """
    log_q, log_rest, log_fact = jnp.log(q), jnp.log1p(-q), lax.lgamma(a + 1)

    def add(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        first, total = carry
        k = first + jnp.arange(_BLOCK, dtype=jnp.float64)
        inside = k <= a
        k = jnp.where(inside, k, 2.0)
        v = (k * k - k) / (2 * s * s)
        log_choose = log_fact - lax.lgamma(k + 1) - lax.lgamma(a - k + 1)
        log_term = log_choose + k * log_q + (a - k) * log_rest + v + jnp.log(-jnp.expm1(-v))
        block = jax.nn.logsumexp(jnp.where(inside, log_term, -jnp.inf))
        return first + _BLOCK, jnp.logaddexp(total, block)

    start = (jnp.asarray(2.0), jnp.asarray(-jnp.inf))
    return lax.while_loop(lambda carry: carry[0] <= a, add, start)[1]


def _split(value: Array) -> tuple[Array, Array]:
    """A 64-bit number >= 0 as two of 32 bits whose sum is not below it."""
    tiny = float(np.finfo(np.float32).tiny)
    value = jnp.where(value > 0, jnp.maximum(value, 2 * tiny), value)
    high = value.astype(jnp.float32)
    low = jnp.where(jnp.isfinite(high), value - high.astype(jnp.float64), 0.0)
    low = low.astype(jnp.float32)
    return high, jnp.where(low != 0, jnp.nextafter(low, jnp.float32(np.inf)), low)


def _joined(state: RdpState) -> Array:
    """The divergence in 64 bits; call it within the island."""
    return state.total.astype(jnp.float64) + state.carry.astype(jnp.float64)


def add(state: RdpState, cost: tuple[Array, Array]) -> RdpState:
    """Adds the cost of one release: cheap, for use in loops.

    Args:
      state: what was spent before.
      cost: of the release, as `subsampled_gaussian` gives it.

    Returns:
      The new state.

    Raises:
      TypeError: if the cost has another number of orders than the state.

    Example:
      >>> cost = subsampled_gaussian(noise_multiplier=4.0, sampling_rate=0.01)
      >>> bool(epsilon(add(init(), cost), 1e-5) > 0)
      True
    """
    high, low = cost
    total, error = _two_sum(state.total, high)
    # Once more, so that the carry stays below the last bit of the total and is rounded there.
    total, carry = _two_sum(total, state.carry + low + error)
    return dataclasses.replace(state, total=total, carry=carry)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Knuth's: the rounded sum, and what rounding it lost; together they hold 48 bits."""
    total = a + b
    shadow = total - a
    error = (a - (total - shadow)) + (b - shadow)
    return total, jnp.where(jnp.isfinite(total), error, 0.0)


def update(
    state: RdpState,
    *,
    noise_multiplier: Number,
    sampling_rate: Number = 1.0,
    steps: int | Array = 1,
) -> tuple[tuple[Array, Array], RdpState]:
    """Adds ``steps`` releases of one kind.

    Args:
      state: what was spent before.
      noise_multiplier: noise standard deviation over l2 sensitivity, >= 0.
      sampling_rate: probability with which each unit takes part in a release, in [0, 1].
      steps: number of releases, a whole number >= 0; may be traced, and is then rounded up.

    Returns:
      ``(cost, state)``: the cost of all of them, a pair as of `subsampled_gaussian`, and the
      new state.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> _, state = update(init(), noise_multiplier=4.0, sampling_rate=0.01, steps=10_000)
      >>> round(float(epsilon(state, 1e-5)), 3)
      1.035

    References:
      I. Mironov, Renyi differential privacy, 2017, arXiv:1702.07476, Proposition 1 (divergences of
      one order add up). M. Abadi et al., Deep learning with differential privacy, 2016,
      arXiv:1607.00133, Theorem 2 (the moments accountant).
    """
    check_number("steps", steps, low=0, scalar=True)
    if is_concrete(steps) and float(steps) != np.floor(float(steps)):
        raise ValueError(f"steps must be a whole number (got steps={float(steps):g})")
    high, low = subsampled_gaussian(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate)
    with jax.enable_x64(True):
        once = high.astype(jnp.float64) + low.astype(jnp.float64)
        count = jnp.ceil(jnp.asarray(steps, jnp.float64))
        cost = _split(jnp.where(count > 0, once * jnp.maximum(count, 0), 0.0))
    return cost, add(state, cost)


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
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        spent, a = _spent(state), jnp.asarray(ORDERS)
        log_delta = jnp.log(jnp.asarray(delta, jnp.float64))
        per_order = spent + jnp.log1p(-1 / a) - (log_delta + jnp.log(a)) / (a - 1)
        bound = jnp.maximum(jnp.min(jnp.where(jnp.isnan(per_order), jnp.inf, per_order)), 0.0)
        return _rounded_up(jnp.where(jnp.any(spent > 0), bound, 0.0))


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
        return jnp.minimum(_rounded_up(jnp.where(jnp.any(spent > 0), bound, 0.0)), jnp.float32(1))


def _spent(state: RdpState) -> Array:
    """The divergences, infinite where they are none: what is damaged must not look like nothing."""
    joined = _joined(state)
    if joined.shape != ORDERS.shape:
        # The smallest epsilon of many states would be below that of most of them.
        raise ValueError(f"one state at a time; vmap over many (got shape {joined.shape})")
    return jnp.where(joined >= 0, joined, jnp.inf)


def _rounded_up(value: Array) -> Array:
    """A 64-bit number >= 0 in 32 bits, not below it."""
    rounded = value.astype(jnp.float32)
    above = jnp.nextafter(rounded, jnp.float32(np.inf))
    return jnp.where(value > 0, above, rounded)
