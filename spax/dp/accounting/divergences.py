"""Renyi divergences of Gaussian releases on sampled batches, never below the truth.

Everything here is to be called within a 64-bit island; `spax.dp.accounting.rdp` is the public face.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.typing import Array

__all__ = [
    "LEAST_SIGMA",
    "ORDERS",
    "SAFETY",
    "fixed_size",
    "full_batch",
    "log_excess_by_quadrature",
    "log_excess_by_series",
    "poisson",
    "quick_log_excess",
]

# The divergence is computed at these orders, to 1001 by quadrature and from there on by its series,
_FRACTIONAL = 1 + np.geomspace(1e-3, 1e3, 698)
_INTEGER = np.unique(np.geomspace(1002, 131072, 166).round())
# and between them a convex function is interpolated, at ratios of 1.001 in a - 1 where it matters:
# at low rates the best order lies just below a sharp bend.
_STEPS = ((1e-3, 0.3, 0.02), (0.3, 1e3, 0.001), (1e3, 131071, 0.005))
_BETWEEN = [1 + np.exp(np.arange(np.log(low), np.log(high), step)) for low, high, step in _STEPS]
ORDERS = np.unique(np.concatenate([*_BETWEEN, _FRACTIONAL, _INTEGER]))

# For sampling without replacement the bound is taken at these, all of them integers.
_WHOLE = np.unique(np.concatenate([np.arange(2, 65), np.geomspace(64, 131072, 96).round()]))
_WHOLE = _WHOLE.astype(np.float64)

_NODES = 4096
LEAST_SIGMA = 0.02
_BLOCK = 4096
# Covers the quadrature (below 1e-9), the log-gamma of large orders (1e-8) and all rounding.
SAFETY = 1 + 1e-6


def poisson(sigma: Array, q: Array) -> Array:
    """The divergence at `ORDERS` where each unit takes part on its own with probability q.

    What is no noise or no rate gives inf.
    """
    valid = (sigma > 0) & (q >= 0) & (q <= 1)
    inside = valid & (q > 0) & (q < 1)
    # Harmless stand-ins where a closed form is taken below.
    s, r = jnp.where(inside, sigma, 1.0), jnp.where(inside, q, 0.5)
    orders = jnp.asarray(ORDERS)
    log_excess = _log_excess(orders, s, r)
    divergence = jnp.logaddexp(log_excess, 0.0) / (orders - 1)
    # Sampling never costs; where noise is too small for the quadrature, that is the bound.
    whole = orders / (2 * jnp.where(valid, sigma, 1.0) ** 2)
    divergence = jnp.where(sigma < LEAST_SIGMA, whole, jnp.minimum(divergence, whole))
    divergence = jnp.where(q == 1, whole, divergence)
    divergence = jnp.where(valid & ~jnp.isnan(divergence), divergence, jnp.inf)
    divergence = jnp.where(q == 0, 0.0, divergence)
    return divergence * SAFETY


def full_batch(sigma: Array, sensitivity: float) -> Array:
    """``a Delta^2 / (2 sigma^2)`` at `ORDERS`, where every unit takes part in every release."""
    orders = jnp.asarray(ORDERS)
    divergence = orders * sensitivity**2 / (2 * jnp.where(sigma > 0, sigma, 1.0) ** 2)
    return jnp.where(sigma > 0, divergence, jnp.inf) * SAFETY


def fixed_size(sigma: Array, q: Array) -> Array:
    """The divergence at `ORDERS` where a share q of the data is drawn without replacement.

    For one unit replaced: the sum of a batch then moves by twice the clip norm. Wang, Balle and
    Kasiviswanathan bound ``(a - 1) D_a`` at integer orders; it is convex in a, and 0 at 1, so that
    a chord lies above it. What is no noise or no rate gives inf.
    """
    valid = (sigma > 0) & (q >= 0) & (q <= 1)
    inside = valid & (q > 0) & (q < 1)
    s, r = jnp.where(inside, sigma, 1.0), jnp.where(inside, q, 0.5)
    orders, nodal = jnp.asarray(ORDERS), jnp.asarray(_WHOLE)
    bounds = lax.map(lambda a: _log_without_replacement(a, s, r), nodal)
    moments = jnp.interp(
        orders, jnp.concatenate([jnp.ones(1), nodal]), jnp.concatenate([jnp.zeros(1), bounds])
    )
    whole = full_batch(sigma, 2.0)
    divergence = jnp.where(inside, jnp.minimum(moments / (orders - 1) * SAFETY, whole), whole)
    divergence = jnp.where(valid & ~jnp.isnan(divergence), divergence, jnp.inf)
    return jnp.where(q == 0, 0.0, divergence)


def _log_without_replacement(a: Array, s: Array, q: Array) -> Array:
    """The logarithm of Theorem 9's sum, whose ``e(j)`` is ``2 j / s^2`` and ``e(inf)`` infinite."""
    log_q, log_fact = jnp.log(q), lax.lgamma(a + 1)
    second = 2 * (2 / (s * s))
    # min(4 (e^x - 1), 2 e^x): the first is the smaller up to x = log 2.
    least = jnp.where(second < np.log(2), 4 * jnp.expm1(jnp.minimum(second, 1.0)), jnp.inf)
    log_second = jnp.minimum(jnp.log(least), np.log(2) + second)

    def add(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        first, total = carry
        j = first + jnp.arange(_BLOCK, dtype=jnp.float64)
        inside = j <= a
        j = jnp.where(inside, j, 2.0)
        log_choose = log_fact - lax.lgamma(j + 1) - lax.lgamma(a - j + 1)
        last = jnp.where(j == 2, log_second, np.log(2) + 2 * j * (j - 1) / (s * s))
        log_term = log_choose + j * log_q + last
        block = jax.nn.logsumexp(jnp.where(inside, log_term, -jnp.inf))
        return first + _BLOCK, jnp.logaddexp(total, block)

    start = (jnp.asarray(2.0), jnp.asarray(-jnp.inf))
    return jnp.logaddexp(lax.while_loop(lambda carry: carry[0] <= a, add, start)[1], 0.0)


def quick_log_excess(a: Array, s: Array, q: Array, nodes: int) -> Array:
    """`log_excess_by_quadrature` in one sum, with few operations a node.

    With 4096 nodes it is as exact, to orders of 1001; with fewer it is for searching.
    """
    reach = 12 * s
    apart = a > (nodes / 8 - 24) * s
    step = jnp.where(apart, 4 * reach, a + 2 * reach) / nodes
    offset = (jnp.arange(nodes, dtype=jnp.float64) + 0.5) * step
    z = jnp.where(apart & (offset > 2 * reach), a - 3 * reach + offset, offset - reach)
    u = (2 * z - 1) / (2 * s * s)
    qd = q * jnp.expm1(jnp.minimum(u, 30.0))
    power = a * jnp.where(u < 30, jnp.log1p(qd), jnp.log(q) + u + (1 - q) / q * jnp.exp(-u))
    log_density = -(z * z) / (2 * s * s)
    top = jnp.maximum(jnp.max(jnp.where(power >= 30, power + log_density, -jnp.inf)), 0.0)
    taylor = a * (a - 1) / 2 * qd * qd * (1 + (a - 2) / 3 * qd * (1 + (a - 3) / 4 * qd))
    capped = jnp.where(a * jnp.abs(qd) < 1e-3, taylor, jnp.expm1(jnp.minimum(power, 30.0)) - a * qd)
    far = power >= 30
    rest = jnp.exp(jnp.log(a * q) + u - power)
    weight = jnp.exp(log_density + jnp.where(far, power, 0.0) - top)
    total = jnp.sum(weight * jnp.where(far, jnp.maximum(1 - rest, 0.0), capped))
    return jnp.log(total) + top + jnp.log(step / s) - 0.5 * np.log(2 * np.pi)


def _log_excess(orders: Array, s: Array, q: Array) -> Array:
    """``log(A_a - 1)``, ``A_a = E_{z ~ N(0, s^2)}[(1 - q + q e^u)^a]``, ``u = (2z - 1)/(2 s^2)``.

    With ``d = e^u - 1``, whose mean is zero, ``A_a - 1`` is the mean of ``f_a = (1 + q d)^a - 1 -
    a q d >= 0``. Taylor's remainder ``f_a = a (a - 1) int_0^{qd} (qd - t) (1 + t)^(a-2) dt`` is
    ``a (a - 1)`` times a mixture of exponentials in a: the logarithm of ``E[f_a] / (a (a - 1))`` is
    convex, over any set of z, and a chord lies above it. Small and large z are interpolated apart,
    since their sum has a bend.
    """
    nodal, whole = jnp.asarray(_FRACTIONAL), jnp.asarray(_INTEGER)
    parts = lax.map(lambda a: log_excess_by_quadrature(a, s, q), nodal, batch_size=64)
    parts = jnp.maximum(parts, -1e5) - jnp.log(nodal * (nodal - 1))[:, None]
    both = jnp.logaddexp(parts[:, 0], parts[:, 1])
    series = lax.map(lambda a: log_excess_by_series(a, s, q), whole)
    series = jnp.concatenate([both[-1:], series - jnp.log(whole * (whole - 1))])
    between = jnp.where(
        orders <= nodal[-1],
        jnp.logaddexp(*(jnp.interp(orders, nodal, part) for part in parts.T)),
        jnp.interp(orders, jnp.concatenate([nodal[-1:], whole]), series),
    )
    return between + jnp.log(orders * (orders - 1))


def log_excess_by_quadrature(a: Array, s: Array, q: Array) -> Array:
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


def log_excess_by_series(a: Array, s: Array, q: Array) -> Array:
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
