"""Privacy loss distributions on a grid, composed by FFT, never below the truth.

A pair of neighbours is a pair of distributions P and Q; its loss is ``L = log P / Q`` under P, and
``delta(eps) = E[(1 - e^(eps - L))_+] + P(L = inf)``. One step is put on a grid by connecting the
dots: each cell's mass goes to its two ends so that its mass under Q is kept too, which raises delta
everywhere and moves the mean by no more than the square of the cell. Before the FFT the masses are
tilted by ``e^(theta l)``, so that those which decide delta are large, and rounding is relative to
them. Everything here is to be called within a 64-bit island.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import erfc, logsumexp

from spax.dp.accounting.pairs import place_of_least
from spax.typing import Array

__all__ = ["Composed", "Gaussian", "Laplace", "Response", "Steps", "compose", "delta_at"]

_COARSE = 2048
_TILTS = np.geomspace(1e-3, 1e8, 128)
# Shares of delta for what is cut off: losses of one step, and of the sum.
_CUT = 1e-4
# Of one coefficient of an FFT, relative to a mass of one.
_ROUNDING = 3e-15
# A cell's mass lies this much higher in it than was computed.
_LIFT = 1e-6


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The Poisson-sampled Gaussian mechanism, static."""

    noise_multiplier: float
    sampling_rate: float


@dataclasses.dataclass(frozen=True)
class Laplace:
    """The Laplace mechanism, its scale over the l1 sensitivity."""

    scale: float


@dataclasses.dataclass(frozen=True)
class Response:
    """Binary randomised response, which dominates every mechanism of its epsilon."""

    epsilon0: float


class Steps(NamedTuple):
    """What is composed: arrays for the Gaussians, static kinds with counts for the others."""

    sigma: Array
    q: Array
    counts: Array
    others: tuple[Laplace | Response, ...]
    other_counts: Array


class Composed(NamedTuple):
    """The sum of the losses on a grid.

    ``mass [N]``, above the truth where it matters, at the losses ``start + j step``; ``lost``: what
    else counts in full; ``bias``: by how much the grid raised the sum at most, but for a share of
    delta.
    """

    mass: Array
    losses: Array
    lost: Array
    bias: Array


def _loss(x: Array, s: Array, q: Array) -> Array:
    """``log(1 - q + q e^u)``, ``u = (2x - 1) / (2 s^2)``."""
    u = (2 * x - 1) / (2 * s * s)
    small = jnp.where(q == 1, u, jnp.log1p(q * jnp.expm1(jnp.minimum(u, 1.0))))
    return jnp.where(u < 1, small, u + jnp.log(q + (1 - q) * jnp.exp(-jnp.maximum(u, 1.0))))


def _place(loss: Array, s: Array, q: Array) -> Array:
    """The x of a loss; minus infinity below all of them."""
    # log((e^l - 1 + q) / q), for large l without overflow.
    small = jnp.expm1(jnp.minimum(loss, 1.0)) + q
    rest = jnp.maximum(loss, 1.0)
    log_odds = jnp.where(
        loss < 1,
        jnp.log(jnp.maximum(small, 0.0) / q),
        rest - jnp.log(q) + jnp.log1p((q - 1) * jnp.exp(-rest)),
    )
    return s * s * jnp.where(q == 1, loss, log_odds) + 0.5


def _between(a: Array, b: Array) -> Array:
    """The standard normal mass between a and b, a <= b."""
    upper = a > 0
    low, high = jnp.where(upper, a, -b), jnp.where(upper, b, -a)
    return (erfc(low / np.sqrt(2)) - erfc(high / np.sqrt(2))) / 2


def _gaussian_cells(edges: Array, s: Array, q: Array, add: Array) -> tuple[Array, Array]:
    """Masses under P and Q of the losses in the cells, the open ones at both ends included."""
    x = _place(jnp.where(add, -edges, edges), s, q)
    end = jnp.where(add, -jnp.inf, jnp.inf)
    x = jnp.concatenate([-end[None], x, end[None]])
    a, b = jnp.minimum(x[:-1], x[1:]), jnp.maximum(x[:-1], x[1:])
    without = _between(a / s, b / s)
    mixed = (1 - q) * without + q * _between((a - 1) / s, (b - 1) / s)
    return jnp.where(add, without, mixed), jnp.where(add, mixed, without)


def _other_cells(edges: Array, kind: Laplace | Response) -> tuple[Array, Array]:
    """The same of a mechanism that is alike in both directions."""
    if isinstance(kind, Response):
        e, p = kind.epsilon0, 1 / (1 + np.exp(-kind.epsilon0))
        below = jnp.where(edges >= e, 1.0, jnp.where(edges >= -e, 1 - p, 0.0))
        below_q = jnp.where(edges >= e, 1.0, jnp.where(edges >= -e, p, 0.0))
    else:
        e = 1 / kind.scale
        below = jnp.where(edges >= e, 1.0, jnp.where(edges >= -e, jnp.exp((edges - e) / 2) / 2, 0))
        above_q = jnp.exp(-(edges + e) / 2) / 2
        above_q = jnp.where(edges >= e, 0.0, jnp.where(edges >= -e, above_q, 1.0))
        below_q = 1 - above_q
    zero, one = jnp.zeros(1), jnp.ones(1)
    return (
        jnp.diff(jnp.concatenate([zero, below, one])),
        jnp.diff(jnp.concatenate([zero, below_q, one])),
    )


def _gaussian_coarse(s: Array, q: Array, add: Array, reach: Array) -> tuple[Array, Array]:
    """Losses and logarithms of masses, at few points, to choose the grid by."""
    width = (1 + 2 * reach * s) / _COARSE
    x = -reach * s + width * (jnp.arange(_COARSE, dtype=jnp.float64) + 0.5)
    loss = _loss(x, s, q)
    log_mass = -(x * x) / (2 * s * s) + jnp.log(width / s) - 0.5 * np.log(2 * np.pi)
    return jnp.where(add, -loss, loss), jnp.where(add, log_mass, log_mass + loss)


def _other_coarse(kind: Laplace | Response) -> tuple[Array, Array]:
    e = kind.epsilon0 if isinstance(kind, Response) else 1 / kind.scale
    edges = jnp.linspace(-e, e, _COARSE - 1)
    p, _ = _other_cells(edges, kind)
    losses = jnp.concatenate([-jnp.ones(1) * e, edges[:-1] + e / (_COARSE - 2), jnp.ones(1) * e])
    return losses, jnp.log(jnp.maximum(p, 1e-300))


class _Window(NamedTuple):
    step: Array
    start: Array  # in steps
    tilt: Array
    tail_tilt: Array


def _choose(
    losses: Array, log_masses: Array, counts: Array, log_delta: Array, target: Array, size: int
) -> _Window:
    """The grid and the tilts: they decide how tight the result is, never whether it is true.

    ``target``: the epsilon of interest, NaN where it is to be found at ``log_delta``.
    """
    tilts = jnp.asarray(_TILTS)

    def moments(tilt: Array) -> tuple[Array, Array, Array]:
        log_w = log_masses + tilt * losses
        total = logsumexp(log_w, axis=1, keepdims=True)
        w = jnp.exp(log_w - total)
        mean = jnp.sum(w * losses, axis=1, keepdims=True)
        spread = jnp.sum(w * (losses - mean) ** 2, axis=1)
        return counts @ total[:, 0], counts @ mean[:, 0], counts @ spread

    cumulant, mean, variance = lax.map(moments, tilts)

    def least(log_d: Array) -> Array:
        return place_of_least((cumulant - log_d) / tilts)

    found = least(log_delta)
    # The tilt that has its mean at the target.
    given = place_of_least(cumulant - tilts * target)
    best = jnp.where(jnp.isnan(target), found, given)
    tail = least(log_delta + np.log(_CUT))
    centre, deviation = mean[best], jnp.sqrt(variance[best])
    chernoff = (cumulant - log_delta)[best] / tilts[best]
    centre = jnp.where(jnp.isnan(target), jnp.minimum(centre, chernoff), target)
    high = (cumulant[tail] - log_delta - np.log(_CUT)) / tilts[tail]
    high = jnp.maximum(high, centre + 2 * deviation)
    low = jnp.minimum(mean[best], centre) - 10 * deviation
    low = jnp.where(centre < 40 * deviation, jnp.minimum(low, 0.0), low)
    widest = jnp.max(jnp.max(losses, axis=1) - jnp.min(losses, axis=1))
    step = jnp.maximum((high - low) / (size - 8), widest / (size - 8))
    step = jnp.maximum(step, 1e-300)
    return _Window(step, jnp.floor(low / step), tilts[best], tilts[tail])


class _Step(NamedTuple):
    log_spectrum: Array
    cumulant: Array
    tail_cumulant: Array
    first: Array
    infinite: Array
    bias: Array
    spread: Array


def _on_grid(
    cells: tuple[Array, Array],
    ends: tuple[Array, Array],
    mean: Array,
    window: _Window,
    size: int,
) -> _Step:
    """One step from the masses of its cells: those below the grid, of ``size - 1`` cells, above.

    ``ends``: the first point, and the one from which on a loss counts as infinite, in steps.
    """
    first, last = ends
    p, q = cells
    h, k = window.step, first + jnp.arange(size, dtype=jnp.float64)
    inside = k[:-1] < last
    inner, inner_q = jnp.where(inside, p[1:-1], 0.0), q[1:-1]
    infinite = p[-1] + jnp.sum(jnp.where(inside, 0.0, p[1:-1]))
    ratio = jnp.exp(jnp.clip(k[:-1] * h, -700, 700)) * inner_q / jnp.maximum(inner, 1e-300)
    up = jnp.clip(-(ratio - 1) / -jnp.expm1(-h) + _LIFT, 0.0, 1.0)
    mass = jnp.concatenate([p[:1] + (inner * (1 - up))[:1], (inner * (1 - up))[1:], jnp.zeros(1)])
    mass += jnp.concatenate([jnp.zeros(1), inner * up])
    log_mass = jnp.log(jnp.maximum(mass, 1e-300))
    log_w = jnp.where(mass > 0, log_mass + window.tilt * k * h, -jnp.inf)
    cumulant = logsumexp(log_w)
    spectrum = jnp.fft.rfft(jnp.exp(log_w - cumulant))
    size_ = jnp.maximum(jnp.abs(spectrum), 1e-300)
    log_spectrum = lax.complex(jnp.log(size_), jnp.angle(spectrum))
    tail = logsumexp(jnp.where(mass > 0, log_mass + window.tail_tilt * k * h, -jnp.inf))
    bias = jnp.sum(mass * k * h) - mean
    spread = 2 * h * h * jnp.sum(inner * up * (1 - up))
    return _Step(log_spectrum, cumulant, tail, first, infinite, jnp.maximum(bias, 0.0), spread)


def compose(steps: Steps, add: Array, log_delta: Array, target: Array, *, size: int) -> Composed:
    """The sum of all losses in one direction.

    Args:
      steps: what is composed; numbers in range.
      add: bool scalar: P has the unit, or (True) Q has.
      log_delta: about which delta will be asked for; it decides where the grid lies.
      target: the epsilon of interest, or NaN.
      size: static, points of the grid, a power of two.
    """
    total = jnp.sum(steps.counts) + jnp.sum(steps.other_counts)
    # Beyond it a normal variable has less than the share of delta in all steps together.
    reach = jnp.sqrt(2 * (jnp.log(jnp.maximum(total, 1.0)) - log_delta - np.log(_CUT))) + 0.1
    coarse = jax.vmap(lambda s, q: _gaussian_coarse(s, q, add, reach))(steps.sigma, steps.q)
    rest = [_other_coarse(kind) for kind in steps.others]
    losses = jnp.concatenate([coarse[0], *(loss[None] for loss, _ in rest)])
    log_masses = jnp.concatenate([coarse[1], *(log_mass[None] for _, log_mass in rest)])
    counts = jnp.concatenate([steps.counts, steps.other_counts])
    used = (counts > 0)[:, None]
    losses = jnp.where(used, losses, 0.0)
    window = _choose(losses, log_masses, counts, log_delta, target, size)
    firsts = jnp.floor(jnp.min(losses, axis=1) / window.step)
    # One more: the largest loss may lie on a point, and is rounded to either side of it.
    lasts = jnp.ceil(jnp.max(losses, axis=1) / window.step) + 1
    masses = jnp.exp(log_masses)
    means = jnp.sum(masses * losses, axis=1) / jnp.sum(masses, axis=1)
    grid = jnp.arange(size, dtype=jnp.float64)

    def zero() -> tuple[Array, ...]:
        return (
            jnp.zeros(size // 2 + 1, jnp.complex128),
            jnp.full(size // 2 + 1, -jnp.inf),
            *(jnp.zeros(()) for _ in range(6)),
        )

    def joined(sums: tuple[Array, ...], n: Array, step: _Step) -> tuple[Array, ...]:
        # The error of a power is n times that of its base, over the base.
        error = jnp.where(n > 0, jnp.log(jnp.maximum(n, 1.0)) - step.log_spectrum.real, -jnp.inf)
        return (
            sums[0] + n * step.log_spectrum,
            jnp.logaddexp(sums[1], error),
            sums[2] + n * step.cumulant,
            sums[3] + n * step.tail_cumulant,
            sums[4] + n * step.first,
            sums[5] + n * step.infinite,
            sums[6] + n * step.bias,
            sums[7] + n * step.spread,
        )

    def gaussian(
        sums: tuple[Array, ...], each: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], None]:
        s, q, n, first, last, mean = each
        cells = _gaussian_cells((first + grid) * window.step, s, q, add)
        return joined(sums, n, _on_grid(cells, (first, last), mean, window, size)), None

    many = len(steps.sigma)
    sums = zero()
    if many:
        each = (steps.sigma, steps.q, steps.counts, firsts[:many], lasts[:many], means[:many])
        sums, _ = lax.scan(gaussian, sums, each)
    for n, kind, first, last, mean in zip(
        steps.other_counts,
        steps.others,
        firsts[many:],
        lasts[many:],
        means[many:],
        strict=True,
    ):
        cells = _other_cells((first + grid) * window.step, kind)
        sums = joined(sums, n, _on_grid(cells, (first, last), mean, window, size))
    log_spectrum, log_error, cumulant, tail, first, infinite, bias, spread = sums
    # Angles of large powers keep their fraction of a turn.
    turned = jnp.exp(log_spectrum.real) * jnp.exp(1j * jnp.mod(log_spectrum.imag, 2 * np.pi))
    tilted = jnp.fft.irfft(turned, size)
    noise = _ROUNDING * (
        jnp.mean(jnp.exp(jnp.minimum(log_error + log_spectrum.real, 700.0)))
        + jnp.mean(jnp.abs(turned))
    )
    places = window.start + grid
    tilted = jnp.maximum(tilted[jnp.mod(places - first, size).astype(jnp.int64)], 0.0) + noise
    sums_at = places * window.step
    log_mass = cumulant - window.tilt * sums_at + jnp.log(tilted)
    end = (places[-1] + 1) * window.step
    beyond = jnp.exp(jnp.minimum(tail - window.tail_tilt * end, 0.0))
    lost = infinite * (1 + 1e-9) + beyond * (1 + 1e-6)
    log_share = np.log(1e3) - log_delta
    bias += jnp.sqrt(2 * spread * log_share) + window.step * log_share
    mass = jnp.exp(jnp.minimum(log_mass, 700.0)) * (1 + 1e-6)
    return Composed(mass, sums_at, lost, bias)


def delta_at(composed: Composed, epsilon: Array) -> Array:
    """The delta of an epsilon within the grid."""
    weight = -jnp.expm1(jnp.minimum(epsilon - composed.losses, 0.0))
    return jnp.sum(weight * composed.mass) + composed.lost
