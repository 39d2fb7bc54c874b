"""Accuracies with confidence intervals; on the host, in 64 bits, from concrete values.

Inside ``jit`` take the mean of a criterion; the intervals are a matter of the counts afterwards.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from spax.checks import check_batch, check_count, check_key, check_number, is_concrete
from spax.evaluation.judging import SLACK, lacks_prediction
from spax.losses import hits
from spax.typing import Array, Criterion, Key, Model, PyTree, Stochastic, call

__all__ = ["Accuracy", "Curve", "accuracy", "binomial_interval", "radius_curve"]


class Accuracy(NamedTuple):
    """A share of n examples with its confidence interval."""

    value: float
    low: float
    high: float
    n: int


class Curve(NamedTuple):
    """Robust accuracy at every radius, ``[E]`` each, with its confidence interval."""

    eps: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    n: int


def _host(name: str, value: Any) -> npt.NDArray[np.float64]:
    """The value as float64 on the host."""
    if not is_concrete(value):
        raise TypeError(f"{name} must be concrete: call this outside jit (got a traced value)")
    return np.asarray(value, np.float64)


def binomial_interval(
    successes: npt.ArrayLike | Array, n: npt.ArrayLike | Array, confidence: float = 0.95
) -> tuple[Any, Any]:
    """Clopper-Pearson interval of a probability, from a number of successes in n trials.

    Args:
      successes: number of successes, a whole number in [0, n], scalar or array.
      n: number of trials, >= 1, broadcast against ``successes``.
      confidence: in (0, 1).

    Returns:
      ``(low, high)`` in float64: scalars, or arrays of the common shape.

    Guarantees:
      Whatever the probability p of independent trials, ``low <= p <= high`` in at least a share
      ``confidence`` of the cases, and each end fails in at most ``(1 - confidence) / 2``. So each
      end alone is a one-sided bound of confidence ``(1 + confidence) / 2``.

    Raises:
      ValueError: if a count is not whole or out of range, or confidence outside (0, 1).
      TypeError: on traced values.

    Example:
      >>> low, high = binomial_interval(0, 10)
      >>> float(low), round(float(high), 4)  # 1 - 0.025 ** (1 / 10)
      (0.0, 0.3085)

    References:
      C. Clopper, E. Pearson, The use of confidence or fiducial limits illustrated in the case of
      the binomial, 1934.
    """
    from scipy.special import betaincinv

    check_number("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    k, trials = np.broadcast_arrays(_host("successes", successes), _host("n", n))
    for name, v in (("successes", k), ("n", trials)):
        whole = np.isfinite(v) & (v == np.floor(v))
        if not whole.all():
            raise ValueError(f"{name} must be whole numbers (got {name}={v[~whole][0]:g})")
    if (trials < 1).any():
        raise ValueError(f"n must be >= 1 (got n={trials.min():g})")
    wrong = (k < 0) | (k > trials)
    if wrong.any():
        raise ValueError(
            "successes must lie between 0 and n "
            f"(got successes={k[wrong][0]:g}, n={trials[wrong][0]:g})"
        )
    tail = (1 - confidence) / 2
    # Where a count is 0 or n the quantile's parameter would be 0; that end is exact.
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), trials - k + 1, tail), 0.0)
    high = np.where(k < trials, betaincinv(k + 1, np.maximum(trials - k, 1), 1 - tail), 1.0)
    return low[()], high[()]


def accuracy(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    confidence: float = 0.95,
    batch_size: int = 256,
    criterion: Criterion = hits,
) -> Accuracy:
    """Share of examples that a model gets right, with its Clopper-Pearson interval.

    Batches go through ``logits_fn`` one at a time, all of one shape: give it jitted, and it is
    compiled once for all of them and for later calls. ``x`` may stay a NumPy array on the host.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[N, ...]``, floating.
      y: labels, int ``[N]`` in [0, K), or what ``criterion`` understands.
      key: a random key, for a Stochastic model; batch b draws from ``fold_in(key, b)``.
      confidence: of the interval, in (0, 1).
      batch_size: examples at a time, at most; what bounds the memory.
      criterion: ``(outputs, y) -> bool [B]``: what counts as right.

    Returns:
      ``Accuracy(value, low, high, n)``, Python numbers.

    Guarantees:
      An example whose outputs have a NaN counts as wrong.

    Raises:
      ValueError: if there are no examples; on wrong shapes; if x is not finite, or a label outside
        the classes; if the model is Stochastic and key is None.
      TypeError: on traced inputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits_fn = jax.jit(lambda x: x)
      >>> result = accuracy(logits_fn, jnp.eye(4), jnp.array([0, 1, 2, 0]))
      >>> result.value, result.n
      (0.75, 4)
    """
    if not is_concrete((x, y)):
        raise TypeError("accuracy gives Python numbers: call it outside jit (got a traced value)")
    check_batch(x, y)
    check_count("batch_size", batch_size)
    n = x.shape[0]
    if n == 0:
        raise ValueError(f"accuracy needs at least one example (got x.shape={x.shape})")
    if isinstance(logits_fn, Stochastic):
        check_key(key, "a Stochastic model")
    batches = -(-n // batch_size)
    size = -(-n // batches)
    right = 0
    for b in range(batches):
        # The last batch reaches back so that all have one shape; what it repeats is not counted.
        first = min(b * size, n - size)
        chunk = slice(first, first + size)
        labels = jax.tree.map(lambda leaf, c=chunk: jnp.asarray(leaf[c]), y)
        outputs = call(
            logits_fn, jnp.asarray(x[chunk]), None if key is None else jax.random.fold_in(key, b)
        )
        correct = criterion(outputs, labels) & ~lacks_prediction(outputs, size)
        right += int(np.count_nonzero(np.asarray(correct)[b * size - first :]))
    low, high = binomial_interval(right, n, confidence)
    return Accuracy(right / n, float(low), float(high), n)


def radius_curve(
    distances: npt.ArrayLike | Array, eps: npt.ArrayLike | Array, *, confidence: float = 0.95
) -> Curve:
    """Robust accuracy as a function of the radius, from one distance per example.

    An example is robust at eps if no point that fools it is known within eps: if its distance
    exceeds eps (by more than the judge's slack of 1e-6). The distances may be those of a
    minimum-norm attack by `judge`, or of a `sweep`.

    Args:
      distances: ``[N]``, >= 0: the distance of the nearest point known to fool, 0 for an example
        that is misclassified as it is, inf where none is known.
      eps: the radii, ``[E]``, >= 0, in any order.
      confidence: of the intervals, in (0, 1), each radius on its own.

    Returns:
      ``Curve(eps, accuracy, low, high, n)``.

    Guarantees:
      Never rises with eps. It bounds the true robust accuracy of these examples from above: an
      attack that fails proves nothing. The interval speaks of the sampling of the examples alone.

    Raises:
      ValueError: on empty or wrongly shaped input, a negative or NaN distance or radius.
      TypeError: on traced values.

    Example:
      >>> curve = radius_curve([0.0, 0.1, 0.3, float("inf")], [0.0, 0.1, 0.2])
      >>> curve.accuracy.tolist()
      [0.75, 0.5, 0.5]
    """
    d, radii = _host("distances", distances), _host("eps", eps)
    for name, v in (("distances", d), ("eps", radii)):
        if v.ndim != 1 or not v.size:
            raise ValueError(f"{name} must have shape [n], n >= 1 (got {name}.shape={v.shape})")
    check_number("distances", d, low=0)
    check_number("eps", radii, low=0)
    robust = np.count_nonzero(d[None, :] > radii[:, None] + SLACK, axis=1)
    low, high = binomial_interval(robust, d.size, confidence)
    return Curve(radii, robust / d.size, low, high, d.size)
