"""Integer noise, drawn exactly: what floating-point sums leak in their last bits, integers do not.

Every decision below is taken between whole numbers, by random bits and rejection, as in Canonne,
Kamath and Steinke's sampler: no logarithm or exponential is rounded anywhere. It is far slower than
`spax.dp.add_noise` (some 20 words of random bits a number, in a loop of about a hundred rounds).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.checks import check_count, check_key, check_number, is_concrete
from spax.dp import draws
from spax.typing import Array, Number, PyTree

__all__ = ["discrete_gaussian", "discrete_laplace", "rounded_sensitivity"]

_PARTS = 256  # standard deviations are whole numbers of 1/256 of the grid
_MOST = 2**18  # grid steps a standard deviation
_REACH = 2**30  # grid steps that a value may be away from 0
_LAPLACE_PARTS = 1024
_BLOCK = 4096
_MOST_LAPLACE = 2**30


def rounded_sensitivity(l2_sensitivity: Number, *, grid: Number, size: int) -> Array:
    """The l2 sensitivity of a vector once its entries are rounded to a grid.

    Rounding moves each of two neighbouring answers by at most ``grid sqrt(size) / 2``.

    Args:
      l2_sensitivity: of the vector before, >= 0.
      grid: the distance between multiples, > 0.
      size: number of entries of the vector, all arrays together, >= 1.

    Returns:
      float32 scalar, rounded up. ``stddev / rounded_sensitivity(...)`` is the noise multiplier of
      `discrete_gaussian` that an accountant takes.

    Guarantees:
      At least the distance of any two rounded answers that were ``l2_sensitivity`` apart.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> round(float(rounded_sensitivity(1.0, grid=2.0**-10, size=10_000)), 4)
      1.0977

    References:
      P. Kairouz, Z. Liu, T. Steinke, The distributed discrete Gaussian mechanism for federated
      learning with secure aggregation, 2021, arXiv:2102.06387, Section 2 (rounding).
    """
    check_number("l2_sensitivity", l2_sensitivity, low=0, scalar=True)
    check_number("grid", grid, low=0, low_open=True, scalar=True)
    check_count("size", size)
    with jax.enable_x64(True):
        before, step = (jnp.asarray(v, jnp.float64) for v in (l2_sensitivity, grid))
        # 2^-20: the quotient by the grid is rounded too, at values up to 2^30 steps.
        after = before + step * (math.sqrt(size) * (1 + 2.0**-20))
        return jnp.nextafter(after.astype(jnp.float32), jnp.float32(np.inf))


def discrete_gaussian(key: Any, x: PyTree, *, stddev: Number, grid: Number) -> PyTree:
    """Rounds every entry to a grid and adds discrete Gaussian noise on it.

    Noise of k grid steps has probability proportional to ``exp(-k^2 grid^2 / (2 stddev^2))``.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      x: arrays: one answer. Entries further than 2^30 grid steps from 0 are moved there, and NaN
        is 0.
      stddev: absolute standard deviation, > 0, at most ``2^18 grid``; it is rounded up to a
        multiple of ``grid / 256``. (That of the noise is not above it, and below by less than
        1e-6 of it from one grid step on.)
      grid: the distance between multiples, > 0. A power of two is divided by exactly.

    Returns:
      float32 arrays of the same shapes, multiples of the grid (rounded, where above 2^24 of them;
      that is post-processing).

    Guarantees:
      With ``d = rounded_sensitivity(...)`` of the sensitivity of x, the release has Renyi
      divergence at most ``a d^2 / (2 stddev^2)`` at every order a, that is
      ``d^2 / (2 stddev^2)``-zCDP, as continuous noise has: account with
      ``noise_multiplier=stddev / d``. The draw is exact, so that nothing has to be added to delta
      for floating point. (Under Poisson sampling this is shown for whole orders only; account
      without amplification.) Traced numbers out of range give NaN.

    Raises:
      ValueError: on concrete numbers out of range, or without a key.

    Example:
      >>> noised = discrete_gaussian(jax.random.key(0), jnp.zeros(4), stddev=3.0, grid=0.5)
      >>> bool((noised % 0.5 == 0).all())
      True

    References:
      C. Canonne, G. Kamath, T. Steinke, The discrete Gaussian for differential privacy, 2020,
      arXiv:2004.00010, Theorem 4 and Algorithm 3. I. Mironov, On significance of the least
      significant bits for differential privacy, 2012.
    """
    check_key(key, "discrete_gaussian")
    check_number("stddev", stddev, low=0, low_open=True, scalar=True)
    check_number("grid", grid, low=0, low_open=True, scalar=True)
    if is_concrete((stddev, grid)) and float(stddev) > _MOST * float(grid):
        raise ValueError(
            f"stddev must be at most 2^18 grid steps (got {float(stddev) / float(grid):g} of them)"
        )
    with jax.enable_x64(True):
        step = jnp.asarray(grid, jnp.float64)
        ratio = jnp.asarray(stddev, jnp.float64) / step
        fits = (ratio > 0) & (ratio <= _MOST)
        # (That the quotient is rounded, by 2^-53, is paid for by `rounded_sensitivity`.)
        parts = jnp.ceil(jnp.where(fits, ratio, 1.0) * _PARTS)
        parts = jnp.maximum(parts.astype(jnp.int64), 1)
        scale = parts // _PARTS + 1
        return _noised(key, x, step, fits, scale, parts)


def discrete_laplace(
    key: Any, x: PyTree, *, epsilon: Number, l1_sensitivity: Number, grid: Number = 1.0
) -> PyTree:
    """Rounds every entry to a grid and adds discrete Laplace (two-sided geometric) noise on it.

    Noise of k grid steps has probability proportional to ``exp(-epsilon |k| grid / sensitivity)``.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      x: arrays: one answer. Entries further than 2^30 grid steps from 0 are moved there, and NaN
        is 0.
      epsilon: > 0.
      l1_sensitivity: of the *rounded* answer, > 0: of counts on grid 1, that of the counts; else
        ``grid`` an entry has to be added. At most ``2^30 epsilon grid``.
      grid: the distance between multiples, > 0.

    Returns:
      float32 arrays of the same shapes, multiples of the grid (rounded, where above 2^24 of them).

    Guarantees:
      epsilon-differential privacy for the adjacency of the sensitivity: the draw is exact, its
      scale rounded up to a multiple of ``grid / 1024`` (to within 2^-51 of epsilon, by which
      quotients are rounded). Traced numbers out of range give NaN.

    Raises:
      ValueError: on concrete numbers out of range, or without a key.

    Example:
      >>> counts = jnp.array([3, 0, 12])
      >>> noised = discrete_laplace(jax.random.key(0), counts, epsilon=1.0, l1_sensitivity=1.0)
      >>> bool((noised % 1 == 0).all())
      True

    References:
      A. Ghosh, T. Roughgarden, M. Sundararajan, Universally utility-maximizing privacy mechanisms,
      2009, arXiv:0811.2841 (the geometric mechanism). C. Canonne, G. Kamath, T. Steinke, 2020,
      arXiv:2004.00010, Algorithm 2.
    """
    check_key(key, "discrete_laplace")
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_number("l1_sensitivity", l1_sensitivity, low=0, low_open=True, scalar=True)
    check_number("grid", grid, low=0, low_open=True, scalar=True)
    numbers = (epsilon, l1_sensitivity, grid)
    if is_concrete(numbers):
        steps = float(l1_sensitivity) / (float(epsilon) * float(grid))
        if steps > _MOST_LAPLACE:
            raise ValueError(f"the scale must be at most 2^30 grid steps (got {steps:g} of them)")
    with jax.enable_x64(True):
        e, sensitivity, step = (jnp.asarray(v, jnp.float64) for v in numbers)
        ratio = sensitivity / (e * step)
        fits = (ratio > 0) & (ratio <= _MOST_LAPLACE) & (step > 0)
        parts = jnp.ceil(jnp.where(fits, ratio, 1.0) * _LAPLACE_PARTS)
        return _noised(key, x, step, fits, jnp.maximum(parts.astype(jnp.int64), 1), None)


def _noised(
    key: Any, x: PyTree, step: Array, fits: Array, scale: Array, parts: Array | None
) -> PyTree:
    """Every entry on the grid, plus integer noise; within the island."""
    leaves, treedef = jax.tree.flatten(x)
    out = []
    for i, leaf in enumerate(map(jnp.asarray, leaves)):
        whole = jnp.round(leaf.astype(jnp.float64) / step)
        whole = jnp.clip(jnp.nan_to_num(whole, nan=0.0), -_REACH, _REACH).astype(jnp.int64)
        noise = _draw(draws.fold_in(key, i), math.prod(leaf.shape), scale, parts)
        noised = (whole + noise.reshape(leaf.shape)).astype(jnp.float64) * step
        out.append(jnp.where(fits, noised, jnp.nan).astype(jnp.float32))
    return jax.tree.unflatten(treedef, out)


# What a candidate waits for next. The first three stages draw |y| = u + t v of probability
# exp(-|y| / t), the others keep it with probability exp(-(m / n)^2 / 2), where
# m / n = | |y| / s - s / t |: with c = m div n and r = m mod n, that is
# exp(-1/2)^(c c) exp(-r / n)^c exp(-(r / n)^2 / 2).
_START, _WITHIN, _WHOLE, _HALVES, _CROSS, _SQUARE, _DONE = range(7)


class _Candidate(NamedTuple):
    """The state of one draw, int64 all of it."""

    stage: Array
    u: Array
    v: Array
    negative: Array
    k: Array  # the event that the present test waits for
    left: Array  # tests of the present stage still to pass
    c: Array
    r: Array


def _draw(key: Any, size: int, t: Array, parts: Array | None) -> Array:
    """Integer noise ``[size]``: Gaussian of deviation parts/256, or Laplace of scale t/1024.

    All entries of a block take one event a round, each at its own stage, until the last is done.
    """
    blocks = -(-size // _BLOCK)

    def one(i: Array) -> Array:
        return _draw_block(draws.fold_in(key, i), min(size, _BLOCK), t, parts)

    return lax.map(one, jnp.arange(blocks, dtype=jnp.uint32)).reshape(-1)[:size]


def _draw_block(key: Any, size: int, t: Array, parts: Array | None) -> Array:
    zero = jnp.zeros(size, jnp.int64)
    start = _Candidate(*(zero for _ in _Candidate._fields))._replace(k=zero + 1)

    def going(carry: tuple[Array, _Candidate]) -> Array:
        return jnp.any(carry[1].stage != _DONE)

    def advance(carry: tuple[Array, _Candidate]) -> tuple[Array, _Candidate]:
        i, now = carry
        words = draws.bits(draws.fold_in(key, i), (5, size)).astype(jnp.int64)
        long = ((words[1::2] & 0x7FFFFFFF) << 32) | words[2::2]
        return i + 1, _advanced(now, words[0], long, t, parts)

    _, done = lax.while_loop(going, advance, (jnp.uint32(0), start))
    y = _magnitude(done, t, parts)
    return jnp.where(done.negative == 1, -y, y)


def _magnitude(now: _Candidate, t: Array, parts: Array | None) -> Array:
    y = now.u + now.v * t
    return y // _LAPLACE_PARTS if parts is None else y


def _advanced(
    now: _Candidate, short: Array, long: Array, t: Array, parts: Array | None
) -> _Candidate:
    """One event for every entry, from 32 and twice 63 random bits.

    A test of probability ``exp(-x)``, x in [0, 1], waits for events of probabilities x, x/2, x/3,
    ... until one fails to happen, and passes if that was one of odd number (Canonne et al.,
    Algorithm 1). An event of probability ``(num / den)^e / count`` is that e + 1 uniform whole
    numbers are small; where a word is not fit to give one without bias, nothing happens.
    """
    stage = now.stage
    starts, within, whole = stage == _START, stage == _WITHIN, stage == _WHOLE
    halves, square, ends = stage == _HALVES, stage == _SQUARE, stage == _DONE
    n = jnp.int64(1) if parts is None else _PARTS * parts * t
    num, den = jnp.where(within, now.u, now.r), jnp.where(stage <= _WHOLE, t, n)
    power = jnp.where(whole | halves, 0, jnp.where(square, 2, 1))
    count = jnp.where(halves | square, 2 * now.k, now.k)
    fit = short < (2**32 // count) * count
    happens = short % count == 0
    for i in range(2):
        fit &= (power <= i) | (long[i] < (2**63 - 1) // den * den)
        happens &= (power <= i) | (long[i] % den < num)
    passes = now.k % 2 == 1

    # Where it starts: |y| mod t and the sign. (k is 1 then.)
    begun = now._replace(
        stage=jnp.full_like(stage, _WITHIN),
        u=long[0] % den,
        v=jnp.zeros_like(stage),
        negative=short & 1,
    )
    waits = now._replace(k=now.k + 1)

    # Where a test ends.
    y = _magnitude(now, t, parts)
    if parts is None:
        c = r = jnp.zeros_like(stage)
        drawn = jnp.full_like(stage, _DONE)
    else:
        m = jnp.abs(_PARTS * _PARTS * y * t - parts * parts)
        c, r = m // n, m % n
        drawn = jnp.where(c > 0, _HALVES, _SQUARE)
    # Zero has one sign.
    drawn = jnp.where((y == 0) & (now.negative == 1), _START, drawn)
    last = now.left == 1
    after = jnp.where(within, _WHOLE, jnp.where(square, _DONE, stage + last))
    tested = now._replace(
        stage=jnp.where(whole, jnp.where(passes, _WHOLE, drawn), jnp.where(passes, after, _START)),
        v=now.v + (whole & passes),
        k=jnp.ones_like(stage),
        left=jnp.where(whole, c * c, jnp.where(halves & last, now.c, now.left - 1)),
        c=jnp.where(whole, c, now.c),
        r=jnp.where(whole, r, now.r),
    )

    def choose(old: Array, first: Array, more: Array, end: Array) -> Array:
        new = jnp.where(starts, first, jnp.where(happens, more, end))
        return jnp.where(fit & ~ends, new, old)

    return _Candidate(*map(choose, now, begun, waits, tested))
