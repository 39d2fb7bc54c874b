"""Composition of mechanisms known by (epsilon, delta) alone, calibration, and shuffling."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.checks import check_number
from spax.dp.accounting.pairs import joined, place_of_least, rounded_up, split, sum_of_pairs
from spax.dp.accounting.roots import falling_root
from spax.typing import Array, Number

__all__ = [
    "PureState",
    "advanced",
    "basic",
    "calibrate",
    "init",
    "optimal",
    "shuffle_epsilon",
    "update",
]

# Of the counts of true answers those up to so many standard deviations above the mean are looked
# at, and so many of them, from the largest down.
_DEVIATIONS, _PLACES = 15.0, 32768


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PureState:
    """What was spent by mechanisms that are (epsilon_i, delta_i)-differentially private.

    Every field is a pair of float32 ``[2]`` whose sum counts, and adds up.

    Args:
      epsilons: the sum of ``epsilon_i``.
      squares: the sum of ``epsilon_i^2``.
      gains: the sum of ``epsilon_i (e^epsilon_i - 1)``.
      deltas: the sum of ``delta_i``.
      unit: static: whose data one unit is.
    """

    epsilons: Array
    squares: Array
    gains: Array
    deltas: Array
    unit: str = dataclasses.field(default="record", metadata={"static": True})


def init(*, unit: str = "record") -> PureState:
    """The state in which nothing has been spent.

    Args:
      unit: whose data one unit is: ``"record"`` or a name of your own, such as ``"user"``.

    Returns:
      A `PureState`; its adjacency is that of the mechanisms.

    Raises:
      Nothing.

    Example:
      >>> [float(value) for value in basic(init())]
      [0.0, 0.0]
    """
    zero = jnp.zeros(2, jnp.float32)
    return PureState(zero, zero, zero, zero, unit)


def update(
    state: PureState, *, epsilon: Number, delta: Number = 0.0
) -> tuple[tuple[Array, Array], PureState]:
    """Adds one mechanism that is (epsilon, delta)-differentially private, chosen adaptively or not.

    Args:
      state: what was spent before.
      epsilon: of the mechanism, >= 0; fixed before the first release.
      delta: of the mechanism, in [0, 1].

    Returns:
      ``((epsilon, delta), state)``: what was added, float32, and the new state.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> _, state = update(init(), epsilon=0.1)
      >>> round(float(basic(state)[0]), 4)
      0.1

    References:
      C. Dwork, F. McSherry, K. Nissim, A. Smith, Calibrating noise to sensitivity in private data
      analysis, 2006. C. Dwork, G. Rothblum, S. Vadhan, Boosting and differential privacy, 2010.
    """
    check_number("epsilon", epsilon, low=0, scalar=True)
    check_number("delta", delta, low=0, high=1, scalar=True)
    with jax.enable_x64(True):
        e, d = jnp.asarray(epsilon, jnp.float64), jnp.asarray(delta, jnp.float64)
        e, d = jnp.where(e >= 0, e, jnp.inf), jnp.where(d >= 0, d, jnp.inf)
        added = (e, e * e, e * jnp.expm1(e), d)
        held = (state.epsilons, state.squares, state.gains, state.deltas)
        more = (_more(pair, value) for pair, value in zip(held, added, strict=True))
        epsilons, squares, gains, deltas = more
        cost = rounded_up(e), rounded_up(d)
    return cost, PureState(epsilons, squares, gains, deltas, state.unit)


def _more(pair: Array, value: Array) -> Array:
    high, low = split(value)
    return jnp.stack(sum_of_pairs((pair[0], pair[1]), (high, low)))


def _sum(pair: Array) -> Array:
    if pair.ndim != 1:
        raise ValueError(f"one state at a time; vmap over many (got shape {pair.shape})")
    value = joined(pair[0], pair[1])
    return jnp.where(value >= 0, value, jnp.inf) * (1 + 1e-12)


def basic(state: PureState) -> tuple[Array, Array]:
    """Basic composition: epsilons add up, and so do deltas.

    Args:
      state: what was spent.

    Returns:
      ``(epsilon, delta)``, float32 scalars, rounded up.

    Guarantees:
      All mechanisms together are (epsilon, delta)-differentially private.

    Raises:
      ValueError: on a batch of states.

    Example:
      >>> _, state = update(init(), epsilon=1.0, delta=1e-6)
      >>> _, state = update(state, epsilon=0.5)
      >>> round(float(basic(state)[0]), 4)
      1.5

    References:
      C. Dwork, K. Kenthapadi, F. McSherry, I. Mironov, M. Naor, Our data, ourselves: privacy via
      distributed noise generation, 2006, Theorem 1.
    """
    with jax.enable_x64(True):
        return rounded_up(_sum(state.epsilons)), _probability(_sum(state.deltas))


def _probability(value: Array) -> Array:
    return jnp.minimum(rounded_up(value), jnp.float32(1))


def advanced(state: PureState, slack: Number) -> tuple[Array, Array]:
    """Advanced composition: a smaller epsilon for some delta.

    ``sqrt(2 log(1 / slack) sum e_i^2) + sum e_i (e^e_i - 1)``, or that of `basic` where it is
    smaller.

    Args:
      state: what was spent.
      slack: added to delta, in (0, 1).

    Returns:
      ``(epsilon, delta)``, float32 scalars, rounded up.

    Guarantees:
      All mechanisms together are (epsilon, delta)-differentially private, if their epsilons were
      fixed beforehand.

    Raises:
      ValueError: if a concrete slack is outside (0, 1).

    Example:
      >>> state = init()
      >>> for _ in range(100):
      ...     _, state = update(state, epsilon=0.1)
      >>> round(float(advanced(state, 1e-5)[0]), 4)
      5.8502

    References:
      C. Dwork, G. Rothblum, S. Vadhan, Boosting and differential privacy, 2010, Theorem III.3; for
      mechanisms that differ, P. Kairouz, S. Oh, P. Viswanath, The composition theorem for
      differential privacy, 2015, arXiv:1311.0776, Theorem 3.5.
    """
    check_number("slack", slack, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        s = jnp.asarray(slack, jnp.float64)
        log = -jnp.log(s)
        bound = jnp.sqrt(2 * log * _sum(state.squares)) + _sum(state.gains)
        bound = jnp.where(jnp.isnan(bound), jnp.inf, bound)
        total = jnp.minimum(bound, _sum(state.epsilons))
        return rounded_up(total), _probability(_sum(state.deltas) + s)


def optimal(epsilon0: Number, delta0: Number, k: int | Array, delta: Number) -> Array:
    """The least epsilon for k mechanisms that are each (epsilon0, delta0)-differentially private.

    Nothing smaller holds for all such mechanisms: randomised response attains it.

    Args:
      epsilon0: of one mechanism, >= 0.
      delta0: of one mechanism, in [0, 1).
      k: number of mechanisms, >= 0.
      delta: what all of them together may have, in (0, 1).

    Returns:
      float32 scalar, rounded up; inf where delta is below what the k deltas add up to.

    Guarantees:
      All mechanisms together are (epsilon, delta)-differentially private.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> round(float(optimal(0.1, 0.0, 100, 1e-5)), 4)
      4.3068

    References:
      P. Kairouz, S. Oh, P. Viswanath, The composition theorem for differential privacy, 2015,
      arXiv:1311.0776, Theorem 3.3; between the values of epsilon listed there, the same sum.
    """
    check_number("epsilon0", epsilon0, low=0, scalar=True)
    check_number("delta0", delta0, low=0, high=1, high_open=True, scalar=True)
    check_number("k", k, low=0, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        e, d, n, total = (jnp.asarray(v, jnp.float64) for v in (epsilon0, delta0, k, delta))
        n = jnp.ceil(n)
        # 1 - (1 - delta0)^k (1 - d(epsilon)) = delta, less than the rounding of log-gamma.
        left = -jnp.expm1(jnp.log1p(-total) - n * jnp.log1p(-d)) * (1 - 1e-7) - 1e-40
        losses, log_p, complete = _responses(e, n)
        # Between two losses d is a sum over the larger ones, a line in e^epsilon.
        first = jnp.cumsum(jnp.exp(log_p))
        log_second = lax.cumlogsumexp(log_p - losses)
        after = jnp.concatenate([losses[1:], losses[-1:]])
        reached = first - jnp.exp(after + log_second) > left
        j = place_of_least(~reached)
        bound = jnp.log(jnp.maximum(first[j] - left, 1e-300)) - log_second[j]
        bound = jnp.where(jnp.any(reached), bound, jnp.where(complete, 0.0, n * e))
        bound = jnp.clip(bound + 1e-12 * n * e, 0.0, n * e)
        valid = (e >= 0) & (d >= 0) & (n >= 0) & (left > 0)
        return rounded_up(jnp.where(valid & ~jnp.isnan(bound), bound, jnp.inf))


def _responses(epsilon0: Array, k: Array) -> tuple[Array, Array, Array]:
    """Losses of k randomised responses, falling, and the logarithms of their probabilities.

    Those left out above have less than e^-100 of the mass. Also: whether none is left out below
    that could matter, all losses left out being negative.
    """
    log_true, log_false = -jnp.log1p(jnp.exp(-epsilon0)), -jnp.log1p(jnp.exp(epsilon0))
    spread = jnp.sqrt(k * jnp.exp(log_true + log_false))
    top = jnp.minimum(k, jnp.ceil(k * jnp.exp(log_true) + _DEVIATIONS * spread + 150))
    j = top - jnp.arange(_PLACES, dtype=jnp.float64)
    inside = j >= 0
    complete = 2 * j[-1] <= k
    j = jnp.maximum(j, 0.0)
    log_choose = lax.lgamma(k + 1) - lax.lgamma(j + 1) - lax.lgamma(k - j + 1)
    log_p = log_choose + j * log_true + (k - j) * log_false
    return (2 * j - k) * epsilon0, jnp.where(inside, log_p, -jnp.inf), complete


def calibrate(
    epsilon_fn: Callable[[Array], Array],
    *,
    epsilon: Number,
    low: float = 0.2,
    high: float | None = None,
    tolerance: float = 1e-4,
) -> tuple[Array, Array]:
    """The least noise at which an accountant of your own reports at most epsilon.

    Args:
      epsilon_fn: the noise multiplier, a float32 scalar, to epsilon; falling, traceable.
      epsilon: the budget, > 0.
      low: the least noise to consider, > 0.
      high: where to begin; None: twice ``low``. It grows until it suffices, up to a million.
      tolerance: how far above the root the noise may be, relative to it.

    Returns:
      ``(noise_multiplier, epsilon)``, float32 scalars: the noise and what the function says of it,
      at most the budget; ``(inf, nan)`` where nothing suffices.

    Guarantees:
      Those of the function: it was called with the noise returned.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> from spax.dp.accounting import gdp
      >>> def spent(noise):
      ...     return gdp.epsilon(gdp.update(gdp.init(), noise_multiplier=noise)[1], 1e-5)
      >>> noise, reached = calibrate(spent, epsilon=1.0)
      >>> 3.7306 < float(noise) < 3.7312, 0.999 < float(reached) <= 1.0
      (True, True)
    """
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_number("low", low, low=0, low_open=True, scalar=True)
    check_number("tolerance", tolerance, low=0, low_open=True, scalar=True)
    start = 2 * low if high is None else high
    check_number("high", start, low=low, low_open=True, scalar=True)
    with jax.enable_x64(True):
        budget = jnp.asarray(epsilon, jnp.float64)

        def excess(log_noise: Array) -> tuple[Array, tuple[Array, Array]]:
            noise = jnp.exp(log_noise).astype(jnp.float32)
            spent = epsilon_fn(noise)
            excess = jnp.log(jnp.maximum(spent.astype(jnp.float64), 1e-300)) - jnp.log(budget)
            return excess, (noise, spent)

        # Not a hair below: 32 bits round to either side.
        ends = np.log(low) + 1e-7, np.log(start)
        _, (noise, spent) = falling_root(
            excess, *ends, tolerance=float(tolerance), limit=np.log(1e6)
        )
        enough = spent <= budget
        nothing = jnp.asarray(np.inf, noise.dtype), jnp.asarray(np.nan, spent.dtype)
        return jnp.where(enough, noise, nothing[0]), jnp.where(enough, spent, nothing[1])


def shuffle_epsilon(epsilon0: Number, *, n: int, delta: Number) -> Array:
    """The epsilon of n local reports once they are shuffled.

    Batches that are drawn by shuffling a data set are another matter: do not use this for them.

    Args:
      epsilon0: of the randomiser that every user applies to their own data, >= 0; it may look at
        what the users before have sent.
      n: number of reports, >= 1.
      delta: in (0, 1).

    Returns:
      float32 scalar, rounded up; ``epsilon0`` itself outside the range of the theorem,
      ``epsilon0 <= log(n / (16 log(2 / delta)))``, or where it is smaller.

    Guarantees:
      The multiset of reports is (epsilon, delta)-differentially private for replacing one user.

    Raises:
      ValueError: if a concrete number is out of range.

    Example:
      >>> round(float(shuffle_epsilon(1.0, n=1_000_000, delta=1e-8)), 5)
      0.02678

    References:
      V. Feldman, A. McMillan, K. Talwar, Hiding among the clones: a simple and nearly optimal
      analysis of privacy amplification by shuffling, 2020, arXiv:2012.12803, Theorem 3.1.
    """
    check_number("epsilon0", epsilon0, low=0, scalar=True)
    check_number("n", n, low=1, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        e, count, d = (jnp.asarray(v, jnp.float64) for v in (epsilon0, n, delta))
        inside = e <= jnp.log(count / (16 * jnp.log(2 / d)))
        e_ = jnp.where(inside, e, 0.0)
        clones = 8 * jnp.sqrt(jnp.exp(e_) * jnp.log(4 / d) / count) + 8 * jnp.exp(e_) / count
        bound = jnp.log1p(jnp.tanh(e_ / 2) * clones) * (1 + 1e-12)
        return rounded_up(jnp.where(inside, jnp.minimum(bound, e), jnp.where(e >= 0, e, jnp.inf)))
