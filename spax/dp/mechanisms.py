"""The basic mechanisms: noise on numbers, choices among candidates, and answers about oneself.

Numbers are drawn in floating point, from 64 random bits each, so that tails end at a probability of
2^-65. What floats ``value + noise`` can take depends on the value (Mironov 2012): where whoever
sees the output may look at its last bits, take the integer mechanisms of `spax.dp.discrete`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import log_ndtr

from spax.checks import check_count, check_key, check_labels, check_number
from spax.dp import draws
from spax.dp.sgd import add_noise
from spax.typing import Array, Number, PyTree

__all__ = [
    "analytic_noise_multiplier",
    "classic_noise_multiplier",
    "debias_counts",
    "exponential",
    "exponential_noise",
    "gaussian",
    "gumbel_noise",
    "laplace",
    "laplace_noise",
    "noisy_max",
    "randomized_response",
]

# Scales are rounded up by more than float32 rounds.
_UP = 1 + 2.0**-20


def laplace(key: Any, value: PyTree, *, epsilon: Number, l1_sensitivity: Number) -> PyTree:
    """Adds Laplace noise of scale ``l1_sensitivity / epsilon`` to every entry.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`, by whose type the generator is chosen;
        consumed.
      value: arrays: one answer, whose sensitivity is that of all entries together.
      epsilon: > 0.
      l1_sensitivity: the most by which two neighbouring data sets' answers differ in l1, > 0.

    Returns:
      float32 arrays of the same shapes.

    Guarantees:
      epsilon-differential privacy for the adjacency of the sensitivity, but for floating point:
      numbers end at 44 scales, which weighs 2^-63 an entry.

    Raises:
      ValueError: on concrete numbers out of range, or without a key.

    Example:
      >>> laplace(jax.random.key(0), jnp.zeros(3), epsilon=1.0, l1_sensitivity=1.0).shape
      (3,)

    References:
      C. Dwork, F. McSherry, K. Nissim, A. Smith, Calibrating noise to sensitivity in private data
      analysis, 2006, Proposition 1.
    """
    check_key(key, "laplace")
    scale = _scale(epsilon, l1_sensitivity)
    leaves, treedef = jax.tree.flatten(value)
    noised = []
    for i, leaf in enumerate(map(jnp.asarray, leaves)):
        upper, w = draws.tails(draws.fold_in(key, i), leaf.shape)
        magnitude = -jnp.log(2 * w) * scale
        noised.append(leaf.astype(jnp.float32) + jnp.where(upper, magnitude, -magnitude))
    return jax.tree.unflatten(treedef, noised)


def gaussian(
    key: Any, value: PyTree, *, noise_multiplier: Number, l2_sensitivity: Number
) -> PyTree:
    """Adds Gaussian noise of standard deviation ``noise_multiplier l2_sensitivity`` to every entry.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      value: arrays: one answer.
      noise_multiplier: sigma, >= 0, such as `analytic_noise_multiplier` gives; 0: no privacy.
      l2_sensitivity: the most by which two neighbouring data sets' answers differ in l2, > 0.

    Returns:
      float32 arrays of the same shapes.

    Guarantees:
      ``1 / (2 sigma^2)``-zCDP and ``1 / sigma``-GDP, but for floating point (see `add_noise`).

    Raises:
      ValueError: on concrete numbers out of range, or without a key.

    Example:
      >>> sigma = analytic_noise_multiplier(1.0, 1e-5)
      >>> gaussian(jax.random.key(0), 3.0, noise_multiplier=sigma, l2_sensitivity=1.0).shape
      ()

    References:
      C. Dwork, K. Kenthapadi, F. McSherry, I. Mironov, M. Naor, Our data, ourselves: privacy via
      distributed noise generation, 2006.
    """
    check_key(key, "gaussian")
    check_number("noise_multiplier", noise_multiplier, low=0, scalar=True)
    check_number("l2_sensitivity", l2_sensitivity, low=0, low_open=True, scalar=True)
    stddev = jnp.asarray(noise_multiplier, jnp.float32) * jnp.asarray(l2_sensitivity, jnp.float32)
    return add_noise(key, jax.tree.map(jnp.asarray, value), stddev * _UP)


def classic_noise_multiplier(epsilon: Number, delta: Number) -> Array:
    """The textbook's sigma of the Gaussian mechanism: ``sqrt(2 ln(1.25 / delta)) / epsilon``.

    Args:
      epsilon: in (0, 1], where alone it is proved; a traced one outside gives inf.
      delta: in (0, 1).

    Returns:
      float32 scalar, rounded up.

    Guarantees:
      Noise of that many sensitivities is (epsilon, delta)-differentially private.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> round(float(classic_noise_multiplier(1.0, 1e-5)), 4)
      4.8448

    References:
      C. Dwork, A. Roth, The algorithmic foundations of differential privacy, 2014, Theorem 3.22.
    """
    check_number("epsilon", epsilon, low=0, high=1, low_open=True, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        e, d = jnp.asarray(epsilon, jnp.float64), jnp.asarray(delta, jnp.float64)
        sigma = jnp.sqrt(2 * jnp.log(1.25 / d)) / e
        valid = (e > 0) & (e <= 1) & (d > 0) & (d < 1)
        return _rounded_up(jnp.where(valid, sigma, jnp.inf))


def analytic_noise_multiplier(epsilon: Number, delta: Number) -> Array:
    """The smallest sigma with which the Gaussian mechanism is (epsilon, delta)-private.

    The exact condition is ``Phi(m/2 - epsilon/m) - e^epsilon Phi(-m/2 - epsilon/m) <= delta`` for
    ``m = 1/sigma``; it is solved by bisection, on the safe side.

    Args:
      epsilon: >= 0.
      delta: in (0, 1).

    Returns:
      float32 scalar, rounded up: at most a few millionths above the solution. inf where traced
      numbers are out of range, or sigma would be above 1e7.

    Guarantees:
      Noise of that many l2 sensitivities is (epsilon, delta)-differentially private.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> round(float(analytic_noise_multiplier(1.0, 1e-5)), 5)
      3.73063

    References:
      B. Balle, Y.-X. Wang, Improving the Gaussian mechanism for differential privacy: analytical
      calibration and optimal denoising, 2018, arXiv:1805.06530, Theorem 8.
    """
    check_number("epsilon", epsilon, low=0, scalar=True)
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        e, d = jnp.asarray(epsilon, jnp.float64), jnp.asarray(delta, jnp.float64)

        def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds  # of log sigma; high is private
            middle = (low + high) / 2
            private = _gaussian_delta(e, jnp.exp(middle)) <= d
            return jnp.where(private, low, middle), jnp.where(private, middle, high)

        ends = jnp.log(jnp.asarray(1e-4, jnp.float64)), jnp.log(jnp.asarray(1e7, jnp.float64))
        sigma = jnp.exp(lax.fori_loop(0, 64, halve, ends)[1])
        valid = (e >= 0) & (d > 0) & (d < 1) & (sigma < 1e7 * (1 - 1e-9))
        return _rounded_up(jnp.where(valid, sigma * (1 + 1e-12), jnp.inf))


def _gaussian_delta(epsilon: Array, sigma: Array) -> Array:
    """Delta of the Gaussian mechanism, plus what 64-bit arithmetic may have lost of it."""
    m = 1 / sigma
    first = log_ndtr(m / 2 - epsilon / m)
    second = log_ndtr(-m / 2 - epsilon / m)
    positive, negative = jnp.exp(first), jnp.exp(jnp.minimum(epsilon + second, first))
    error = 1e-14 + 1e-15 * (epsilon + jnp.abs(second) + jnp.abs(first))
    return positive - negative + error * (positive + negative)


def exponential(
    key: Any, utility: Array, *, epsilon: Number, sensitivity: Number, monotone: bool = False
) -> Array:
    """Chooses a candidate with probability proportional to ``exp(epsilon u / (2 sensitivity))``.

    Drawn as the largest of utilities plus Gumbel noise, which is the same.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      utility: ``[..., R]``: one choice for each leading index.
      epsilon: > 0, of one choice.
      sensitivity: the most by which a utility moves between neighbouring data sets, > 0.
      monotone: whether all utilities move in one direction, such as counts under add/remove; then
        the 2 is not needed.

    Returns:
      int32 ``[...]``.

    Guarantees:
      epsilon-differential privacy, and ``epsilon^2 / 8``-zCDP (it is epsilon-bounded range), but
      for floating point: numbers end where their tails weigh 2^-65.

    Raises:
      ValueError: on concrete numbers out of range, without a key, or on a scalar utility.

    Example:
      >>> int(exponential(jax.random.key(0), jnp.array([0., 50., 1.]), epsilon=2., sensitivity=1.))
      1

    References:
      F. McSherry, K. Talwar, Mechanism design via differential privacy, 2007, Section 3.
      M. Cesar, R. Rogers, Bounding, concentrating, and truncating, 2021, arXiv:2004.07223 (the
      zCDP of a bounded range).
    """
    return noisy_max(
        key,
        utility,
        epsilon=epsilon,
        sensitivity=sensitivity,
        monotone=monotone,
        noise=gumbel_noise,
    )


def exponential_noise(key: Any, shape: tuple[int, ...]) -> Array:
    """One-sided noise for `noisy_max`: the least that is lost on average.

    Args:
      key: consumed.
      shape: of the result.

    Returns:
      float32, standard exponential.

    Raises:
      TypeError: if the key is none.

    Example:
      >>> exponential_noise(jax.random.key(0), (3,)).shape
      (3,)

    References:
      R. McKenna, D. Sheldon, Permute-and-flip: a new mechanism for differentially private
      selection, 2020, arXiv:2010.12603.
    """
    return draws.exponential(key, shape)


def gumbel_noise(key: Any, shape: tuple[int, ...]) -> Array:
    """Noise with which `noisy_max` is the exponential mechanism.

    Args:
      key: consumed.
      shape: of the result.

    Returns:
      float32, standard Gumbel.

    Raises:
      TypeError: if the key is none.

    Example:
      >>> gumbel_noise(jax.random.key(0), (3,)).shape
      (3,)
    """
    return draws.gumbel(key, shape)


def laplace_noise(key: Any, shape: tuple[int, ...]) -> Array:
    """The classic noise of `noisy_max`.

    Args:
      key: consumed.
      shape: of the result.

    Returns:
      float32, standard Laplace.

    Raises:
      TypeError: if the key is none.

    Example:
      >>> laplace_noise(jax.random.key(0), (3,)).shape
      (3,)
    """
    upper, w = draws.tails(key, shape)
    return jnp.where(upper, -jnp.log(2 * w), jnp.log(2 * w))


def noisy_max(
    key: Any,
    utility: Array,
    *,
    epsilon: Number,
    sensitivity: Number,
    monotone: bool = False,
    noise: Callable[[Any, tuple[int, ...]], Array] = exponential_noise,
) -> Array:
    """Chooses the candidate whose utility, with noise, is largest; only the index comes out.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      utility: ``[..., R]``: one choice for each leading index.
      epsilon: > 0, of one choice.
      sensitivity: the most by which a utility moves between neighbouring data sets, > 0.
      monotone: whether all utilities move in one direction; then half the noise suffices.
      noise: ``noise(key, shape)`` of scale 1: `exponential_noise`, `laplace_noise` or
        `gumbel_noise`.

    Returns:
      int32 ``[...]``. The noisy value of the winner would cost as much again.

    Guarantees:
      epsilon-differential privacy with any of the three, but for floating point.

    Raises:
      ValueError: on concrete numbers out of range, NaN among concrete utilities, without a key, or
        on a scalar utility. (Traced NaN loses.)

    Example:
      >>> int(noisy_max(jax.random.key(0), jnp.array([0., 50., 1.]), epsilon=2., sensitivity=1.))
      1

    References:
      C. Dwork, A. Roth, The algorithmic foundations of differential privacy, 2014, Claim 3.9.
      Z. Ding et al., The permute-and-flip mechanism is identical to report-noisy-max with
      exponential noise, 2021, arXiv:2105.07260.
    """
    check_key(key, "choosing")
    utility = jnp.asarray(utility)
    check_number("utility", utility)
    if utility.ndim < 1 or utility.shape[-1] < 1:
        raise ValueError(
            f"utility must have shape [..., R] with R >= 1 (got shape {utility.shape})"
        )
    scale = _scale(epsilon, sensitivity) * (1 if monotone else 2)
    utility = jnp.where(jnp.isnan(utility), -jnp.inf, utility).astype(jnp.float32)
    # In units of the noise, and from the largest: what all candidates share says nothing.
    top = jnp.max(utility, axis=-1, keepdims=True)
    gap = jnp.where(utility == top, 0.0, utility - top)
    return jnp.argmax(gap / scale + noise(key, utility.shape), axis=-1).astype(jnp.int32)


def randomized_response(key: Any, labels: Array, *, epsilon: Number, num_classes: int) -> Array:
    """Answers with the truth with probability ``e^epsilon / (e^epsilon + K - 1)``, else another.

    Args:
      key: a `jax.random` key or a `spax.crypto.ChaChaKey`; consumed.
      labels: integers in [0, K), any shape: one answer each.
      epsilon: > 0, of one answer.
      num_classes: K >= 2.

    Returns:
      Integers of the same shape and type.

    Guarantees:
      Each answer is epsilon-differentially private by itself (local model: any label may be
      replaced by any other), to within ``K / 2^31``: probabilities are whole numbers of 2^-32, and
      the truth is rounded to be told less often.

    Raises:
      ValueError: on concrete numbers or labels out of range, or without a key.

    Example:
      >>> labels = jnp.zeros(10_000, jnp.int32)
      >>> told = randomized_response(jax.random.key(0), labels, epsilon=1.0, num_classes=2)
      >>> round(float((told == 0).mean()), 1)
      0.7

    References:
      S. L. Warner, Randomized response: a survey technique for eliminating evasive answer bias,
      1965. P. Kairouz, K. Bonawitz, D. Ramage, Discrete distribution estimation under local
      privacy, 2016, arXiv:1602.07387.
    """
    check_key(key, "randomized response")
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_count("num_classes", num_classes, 2)
    labels = jnp.asarray(labels)
    check_labels(labels, num_classes)
    with jax.enable_x64(True):
        e = jnp.maximum(jnp.asarray(epsilon, jnp.float64), 0)
        lie = (num_classes - 1) / (jnp.exp(e) + num_classes - 1)
        # A lie is picked from 2^32 equally likely words, so one of them may be a little rarer.
        lie = jnp.minimum(lie * (1 + num_classes * 2.0**-32), 1 - 1 / num_classes)
        threshold = jnp.clip(jnp.ceil(lie * 2.0**32), 1, 2**32 - 1).astype(jnp.uint32)
        coin, which = draws.bits(key, (2, *labels.shape))
        others = jnp.uint64(num_classes - 1)
        step = 1 + ((which.astype(jnp.uint64) * others) >> jnp.uint64(32)).astype(jnp.int64)
        other = (labels.astype(jnp.int64) + step) % num_classes
        return jnp.where(coin < threshold, other.astype(labels.dtype), labels)


def debias_counts(counts: Array, *, epsilon: Number, num_classes: int) -> Array:
    """Shares of the true labels, estimated from counts of randomized answers.

    Args:
      counts: ``[..., K]``: how often each label was told.
      epsilon: of `randomized_response`, > 0.
      num_classes: K >= 2.

    Returns:
      float32 ``[..., K]``, unbiased, adding up to 1; single ones may be negative.

    Raises:
      ValueError: on concrete numbers out of range, or counts not of K classes.

    Example:
      >>> share = debias_counts(jnp.array([73.0, 27.0]), epsilon=1.0, num_classes=2)[0]
      >>> round(float(share), 2)
      1.0

    References:
      P. Kairouz, K. Bonawitz, D. Ramage, 2016, arXiv:1602.07387.
    """
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_count("num_classes", num_classes, 2)
    check_number("counts", counts, low=0)
    counts = jnp.asarray(counts)
    if counts.ndim < 1 or counts.shape[-1] != num_classes:
        raise ValueError(f"counts must have shape [..., {num_classes}] (got {counts.shape})")
    total = jnp.sum(counts, axis=-1, keepdims=True)
    e = jnp.asarray(epsilon, jnp.float32)
    other = 1 / (jnp.exp(e) + num_classes - 1)
    return (counts / total - other) / (other * jnp.expm1(e))


def _scale(epsilon: Number, sensitivity: Number) -> Array:
    """``sensitivity / epsilon``, rounded up; inf for a traced epsilon <= 0."""
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_number("sensitivity", sensitivity, low=0, low_open=True, scalar=True)
    e, s = jnp.asarray(epsilon, jnp.float32), jnp.asarray(sensitivity, jnp.float32)
    return jnp.where(e > 0, s / e * _UP, jnp.inf)


def _rounded_up(value: Array) -> Array:
    """A 64-bit number in 32 bits, not below it."""
    return jnp.nextafter(value.astype(jnp.float32), jnp.float32(np.inf))
