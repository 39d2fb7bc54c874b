"""Correlated noise for private sums over time: DP-FTRL, by tree or by banded matrices.

Learning releases the running sums ``A g`` of gradients g, A the lower triangular matrix of ones.
Factor ``A = B C``: ``B (C g + z) = A (g + C^-1 z)`` costs what one Gaussian release of ``C g``
does, at the sensitivity of ``C g``, and its errors ``B z`` are far below those of independent
noise. So add ``C^-1 z``, noise that partly takes back what it added before, to the sums of clipped
gradients, and train by plain gradient descent or whatever follows.

No sampling is needed and none is accounted for: batches come in a fixed order, each record at most
so many times and so many steps apart. Never claim amplification by sampling for this noise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax import lax

from spax.checks import check_count, check_key, check_number
from spax.dp.accounting import rdp
from spax.dp.sgd import add_noise
from spax.typing import Array, Number, PyTree

__all__ = [
    "CorrelatedNoise",
    "NoiseState",
    "banded_noise",
    "factorization_error",
    "optimize_banded",
    "toeplitz_sensitivity",
    "toeplitz_sqrt",
    "tree_noise",
]

_UP = 1 + 1e-9  # sums of 64-bit squares err by far less


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseState:
    """Noise that is still to be taken back, and the receipt of all steps.

    Args:
      buffer: float32 arrays ``[m, ...]``, one for each array that noise is for. It is as secret as
        the noise: a checkpoint that holds it must be kept from whoever sees the releases.
      steps: int32 scalar: noises drawn.
      spent: the accountant's state, charged for all steps at the start.
    """

    buffer: PyTree
    steps: Array
    spent: rdp.RdpState


class CorrelatedNoise(NamedTuple):
    """A source of noise in time.

    Args:
      init: ``init(like) -> state``, for sums shaped as ``like``.
      update: ``update(state, *, key) -> (noise, state)``, the noise to add to this step's sum of
        clipped gradients; float32, shaped as ``like``. The key, of either kind, is used once. After
        the number of steps that the receipt covers, noise is NaN.
    """

    init: Callable[[PyTree], NoiseState]
    update: Callable[..., tuple[PyTree, NoiseState]]


def toeplitz_sqrt(steps: int, *, bands: int | None = None) -> np.ndarray:
    """The square root of the matrix of running sums: ``C C = A``, a Toeplitz matrix.

    Args:
      steps: n, >= 1.
      bands: how many diagonals to keep, in [1, n]; None: all. Fewer take less memory.

    Returns:
      float64 ``[bands]``: the first column of C, ``c_0 = 1, c_k = c_{k-1} (2k - 1) / (2k)``.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> toeplitz_sqrt(4).tolist()
      [1.0, 0.5, 0.375, 0.3125]

    References:
      H. Fichtenberger, M. Henzinger, J. Upadhyay, Constant matters: fine-grained error bound on
      differentially private continual observation, 2022, arXiv:2202.11205.
    """
    bands = _checked_bands(steps, bands)
    k = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])


def optimize_banded(steps: int, *, bands: int) -> np.ndarray:
    """The banded Toeplitz matrix C with the least error of running sums for its sensitivity.

    Minimises ``|A C^-1|_F |C e_1|`` by L-BFGS from the truncated square root: the root mean square
    error of all running sums, for records that take part once, or often but at least ``bands``
    steps apart.

    Args:
      steps: n, >= 1.
      bands: diagonals of C, in [1, n].

    Returns:
      float64 ``[bands]``: the first column of C, ``c_0 = 1``.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> coeffs = optimize_banded(64, bands=4)
      >>> error = factorization_error(coeffs, steps=64)
      >>> error < factorization_error(toeplitz_sqrt(64, bands=4), steps=64)
      True

    References:
      C. A. Choquette-Choo et al., (Amplified) banded matrix factorization: a unified approach to
      private training, 2023, arXiv:2306.08153. R. McKenna, Scaling up the banded matrix
      factorization mechanism for differentially private ML, 2024, arXiv:2405.15913
      (Toeplitz strategies).
    """
    start = toeplitz_sqrt(steps, bands=_checked_bands(steps, bands))
    if bands == 1:
        return start

    def objective(rest: Array) -> Array:
        coeffs = jnp.concatenate([jnp.ones(1), rest])
        column = jnp.cumsum(_inverse(coeffs, steps))
        counts = jnp.arange(steps, 0, -1, dtype=jnp.float64)
        return jnp.log(jnp.sum(counts * column**2)) + jnp.log(jnp.sum(coeffs**2))

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        slope = jax.jit(jax.value_and_grad(objective))

        def both(rest: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = slope(jnp.asarray(rest))
            return float(value), np.asarray(gradient)

        before, _ = both(start[1:])
        found = scipy.optimize.minimize(both, start[1:], jac=True, method="L-BFGS-B")
    better = bool(found.fun <= before and np.isfinite(found.x).all())
    return np.concatenate([[1.0], found.x]) if better else start


def _inverse(coeffs: Array, steps: int) -> Array:
    """The first column of ``C^-1``, ``[steps]``."""
    tail = coeffs[1:]

    def step(last: Array, t: Array) -> tuple[Array, Array]:
        value = (jnp.where(t == 0, 1.0, 0.0) - tail @ last) / coeffs[0]
        return jnp.concatenate([value[None], last])[: last.shape[0]], value

    return lax.scan(step, jnp.zeros_like(tail), jnp.arange(steps))[1]


def toeplitz_sensitivity(
    coeffs: np.ndarray,
    *,
    steps: int,
    participations: int = 1,
    min_separation: int | None = None,
) -> float:
    """The l2 sensitivity of ``C g`` to one record, for gradients of length at most 1.

    Args:
      coeffs: ``[bands]``, the first column of the Toeplitz matrix C; the first > 0.
      steps: n >= bands.
      participations: k, the most steps that one record takes part in, >= 1.
      min_separation: b, the least number of steps from one to the next, >= 1; None: n, for a
        single one.

    Returns:
      The sensitivity, rounded up. Up to b bands, it is that of columns which do not overlap; from
      there on it takes coefficients that are >= 0 and do not increase.

    Guarantees:
      At least ``|sum_i C e_i u_i|`` for all choices of at most k steps i, at least b apart, and of
      vectors u_i of length at most 1.

    Raises:
      ValueError: on numbers out of range, or where neither case holds.

    Example:
      >>> round(toeplitz_sensitivity(toeplitz_sqrt(1024), steps=1024), 6)
      1.80902
      >>> toeplitz_sensitivity(np.ones(1), steps=100, participations=4, min_separation=25) < 2.001
      True

    References:
      C. A. Choquette-Choo et al., 2023, arXiv:2306.08153 (banded). N. Kalinin,
      C. Lampert, Banded square root matrix factorization for differentially private model training,
      2024, arXiv:2405.13763 (decreasing coefficients).
    """
    c = _checked_coeffs(coeffs, steps)
    check_count("participations", participations)
    if min_separation is None:
        if participations > 1:
            raise ValueError(
                "several participations need min_separation, the steps between them "
                f"(got participations={participations})"
            )
        min_separation = steps
    check_count("min_separation", min_separation)
    # Not more than there is room for: at 0, b, 2b, ...
    first = np.arange(min(participations, -(-steps // min_separation))) * min_separation
    if c.size <= min_separation:
        # Disjoint columns: lengths add up in squares, and later columns are cut shorter.
        squares = [np.sum(c[: steps - i] ** 2) for i in first]
        return float(np.sqrt(np.sum(squares)) * _UP)
    if (c < 0).any() or (np.diff(c) > 0).any():
        raise ValueError(
            f"with bands > min_separation={min_separation}, coeffs must be >= 0 and must not "
            f"increase (got bands={c.size}, coeffs from {c.min():g}, steps up to "
            f"{np.diff(c).max():g})"
        )
    total = np.zeros(steps)
    for i in first:
        part = c[: steps - i]
        total[i : i + part.size] += part
    return float(np.linalg.norm(total) * _UP)


def factorization_error(
    coeffs: np.ndarray,
    *,
    steps: int,
    participations: int = 1,
    min_separation: int | None = None,
) -> float:
    """Root mean square error of all running sums, a coordinate, for noise multiplier and clip 1.

    Args:
      coeffs: ``[bands]``, the first column of C; ``[1.0]`` is independent noise.
      steps: n >= bands.
      participations: as of `toeplitz_sensitivity`.
      min_separation: as of `toeplitz_sensitivity`.

    Returns:
      ``sensitivity |A C^-1|_F / sqrt(n)``.

    Raises:
      ValueError: as `toeplitz_sensitivity`.

    Example:
      >>> round(factorization_error(toeplitz_sqrt(1024), steps=1024), 4)
      3.1098
      >>> round(factorization_error(np.ones(1), steps=1024), 4)  # sqrt((n + 1) / 2)
      22.6385

    References:
      S. Denisov et al., Improved differential privacy for SGD via optimal private linear operators
      on adaptive streams, 2022, arXiv:2202.08312.
    """
    sensitivity = toeplitz_sensitivity(
        coeffs, steps=steps, participations=participations, min_separation=min_separation
    )
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        inverse = np.asarray(_inverse(jnp.asarray(_checked_coeffs(coeffs, steps)), steps))
    squares = np.cumsum(inverse) ** 2
    return float(sensitivity * np.sqrt(np.arange(steps, 0, -1) @ squares / steps))


def banded_noise(
    coeffs: np.ndarray,
    *,
    steps: int,
    noise_multiplier: Number,
    l2_clip_norm: Number,
    participations: int = 1,
    min_separation: int | None = None,
) -> CorrelatedNoise:
    """Noise ``sigma C s C^-1 z`` in time, s the sensitivity, with as many arrays kept as bands.

    Args:
      coeffs: ``[bands]``, the first column of the Toeplitz matrix: `toeplitz_sqrt`,
        `optimize_banded`, or ``[1.0]`` for independent noise.
      steps: n >= bands, the most steps that will be taken.
      noise_multiplier: sigma of the release of all steps together, >= 0.
      l2_clip_norm: the bound C of each record's gradient, > 0.
      participations: the most steps that one record takes part in.
      min_separation: the least number of steps from one to the next.

    Returns:
      A `CorrelatedNoise`.

    Guarantees:
      If each record takes part at most as often, and at least as far apart, as was said, all sums
      plus noise together cost one Gaussian release of noise multiplier sigma, for adding or
      removing a record of which no other's place depends (zeroing it out): ``state.spent``.

    Raises:
      ValueError: as `toeplitz_sensitivity`, and on concrete numbers out of range; at an update, if
        there is no key.

    Example:
      >>> noise = banded_noise(toeplitz_sqrt(8, bands=3), steps=8, noise_multiplier=1.0,
      ...                      l2_clip_norm=1.0)
      >>> state = noise.init(jnp.zeros(5))
      >>> drawn, state = noise.update(state, key=jax.random.key(0))
      >>> drawn.shape, state.buffer.shape
      ((5,), (2, 5))

    References:
      S. Denisov et al., Improved differential privacy for SGD via optimal private linear operators
      on adaptive streams, 2022, arXiv:2202.08312 (adaptive gradients).
      C. A. Choquette-Choo et al., (Amplified) banded matrix factorization: a unified approach to
      private training, 2023, arXiv:2306.08153.
    """
    c = _checked_coeffs(coeffs, steps)
    sensitivity = toeplitz_sensitivity(
        c, steps=steps, participations=participations, min_separation=min_separation
    )
    stddev = _stddev(noise_multiplier, l2_clip_norm, sensitivity)
    cost = rdp.subsampled_gaussian(noise_multiplier=noise_multiplier)
    kept = c.size - 1

    def combine(buffer: PyTree, fresh: PyTree, t: Array) -> tuple[PyTree, PyTree]:
        if not kept:
            return jax.tree.map(lambda z: z / np.float32(c[0]), fresh), buffer
        # Slot i holds what was drawn so many steps ago.
        age = (t - jnp.arange(kept) - 1) % kept + 1
        weights = jnp.asarray(c, jnp.float32)[age]
        noise = jax.tree.map(
            lambda z, past: (z - jnp.tensordot(weights, past, 1)) / np.float32(c[0]), fresh, buffer
        )
        return noise, jax.tree.map(lambda past, y: past.at[t % kept].set(y), buffer, noise)

    return _source(combine, kept, steps, stddev, cost)


def tree_noise(*, steps: int, noise_multiplier: Number, l2_clip_norm: Number) -> CorrelatedNoise:
    """Noise of the binary tree mechanism, as increments of the noise of running sums.

    The running sum to step t is that of the tree's nodes at the binary digits of t, and each node
    has noise of its own. Kept: one array a level. For records that take part once; for another
    pass, start anew and add up what is spent.

    Args:
      steps: n >= 1, the most steps that will be taken.
      noise_multiplier: sigma of the release of all steps together, >= 0.
      l2_clip_norm: the bound C of each record's gradient, > 0.

    Returns:
      A `CorrelatedNoise`.

    Guarantees:
      If each record takes part in one step, all sums plus noise together cost one Gaussian
      release of noise multiplier sigma: a record is in ``floor(log2 n) + 1`` nodes.

    Raises:
      ValueError: on concrete numbers out of range; at an update, if there is no key.

    Example:
      >>> noise = tree_noise(steps=8, noise_multiplier=1.0, l2_clip_norm=1.0)
      >>> drawn, state = noise.update(noise.init(jnp.zeros(5)), key=jax.random.key(0))
      >>> drawn.shape, state.buffer.shape
      ((5,), (4, 5))

    References:
      C. Dwork, M. Naor, T. Pitassi, G. N. Rothblum, Differential privacy under continual
      observation, 2010. P. Kairouz et al., Practical and private (deep) learning without sampling
      or shuffling, 2021, arXiv:2103.00039, Algorithm 1.
    """
    check_count("steps", steps)
    levels = int(steps).bit_length()
    stddev = _stddev(noise_multiplier, l2_clip_norm, np.sqrt(levels) * _UP)
    cost = rdp.subsampled_gaussian(noise_multiplier=noise_multiplier)

    def combine(buffer: PyTree, fresh: PyTree, t: Array) -> tuple[PyTree, PyTree]:
        # The node that this step completes replaces those below it.
        level = lax.population_count(t ^ (t + 1)) - 1
        below = jnp.arange(levels) < level
        noise = jax.tree.map(
            lambda z, nodes: z - jnp.tensordot(below.astype(jnp.float32), nodes, 1), fresh, buffer
        )

        def keep(nodes: Array, z: Array) -> Array:
            gone = below.reshape(-1, *(1 for _ in z.shape))
            return jnp.where(gone, 0.0, nodes).at[level].set(z)

        return noise, jax.tree.map(keep, buffer, fresh)

    return _source(combine, levels, steps, stddev, cost)


def _source(
    combine: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]],
    kept: int,
    steps: int,
    stddev: Array,
    cost: rdp.RdpCost,
) -> CorrelatedNoise:
    """The pair of functions around ``combine(buffer, standard normal, t) -> (noise, buffer)``."""

    def init(like: PyTree) -> NoiseState:
        buffer = jax.tree.map(lambda p: jnp.zeros((kept, *jnp.shape(p)), jnp.float32), like)
        return NoiseState(buffer, jnp.zeros((), jnp.int32), rdp.add(rdp.init(), cost))

    def update(state: NoiseState, *, key: Any) -> tuple[PyTree, NoiseState]:
        zeros = jax.tree.map(lambda past: jnp.zeros(past.shape[1:], jnp.float32), state.buffer)
        fresh = add_noise(check_key(key, "correlated noise"), zeros, 1.0)
        noise, buffer = combine(state.buffer, fresh, state.steps)
        # What the receipt does not cover must not be released.
        scale = jnp.where(state.steps < steps, stddev, jnp.nan)
        noise = optax.tree.scale(scale, noise)
        return noise, NoiseState(buffer, state.steps + 1, state.spent)

    return CorrelatedNoise(init, update)


def _stddev(noise_multiplier: Number, l2_clip_norm: Number, sensitivity: float) -> Array:
    check_number("noise_multiplier", noise_multiplier, low=0, scalar=True)
    check_number("l2_clip_norm", l2_clip_norm, low=0, low_open=True, scalar=True)
    stddev = jnp.asarray(noise_multiplier, jnp.float32) * jnp.asarray(l2_clip_norm, jnp.float32)
    return stddev * np.float32(sensitivity * (1 + 2.0**-20))


def _checked_bands(steps: Any, bands: Any) -> int:
    check_count("steps", steps)
    if bands is None:
        return int(steps)
    check_count("bands", bands)
    if bands > steps:
        raise ValueError(f"bands must be <= steps={steps} (got bands={bands})")
    return int(bands)


def _checked_coeffs(coeffs: Any, steps: Any) -> np.ndarray:
    check_count("steps", steps)
    c = np.asarray(coeffs, np.float64)
    if c.ndim != 1 or not 1 <= c.size <= steps or not np.isfinite(c).all() or not c[0] > 0:
        raise ValueError(
            f"coeffs must be 1 to steps={steps} finite numbers, the first > 0 "
            f"(got shape {c.shape}, first {c.flat[0] if c.size else None})"
        )
    return c
