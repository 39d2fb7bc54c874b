"""The sparse vector technique: many questions, and a price only for those that are answered yes."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spax.checks import check_count, check_key, check_number
from spax.dp.mechanisms import laplace
from spax.typing import Array, Number

__all__ = ["SparseVector", "SparseVectorState", "sparse_vector"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseVectorState:
    """Where the questions stand.

    Args:
      threshold: float32 scalar: with its noise. It is secret: keep it from whoever sees answers.
      hits: int32 scalar: questions answered yes.
      queries: int32 scalar: questions asked.
    """

    threshold: Array
    hits: Array
    queries: Array


class SparseVector(NamedTuple):
    """A run of questions.

    Args:
      init: ``init(*, key) -> state``.
      update: ``update(state, value, *, key) -> (above, state)``: a bool scalar, whether the value,
        with noise, reaches the threshold; never again after ``max_hits`` times. Keys, of either
        kind, are used once.
    """

    init: Callable[..., SparseVectorState]
    update: Callable[..., tuple[Array, SparseVectorState]]


def sparse_vector(
    *,
    epsilon: Number,
    threshold: Number,
    sensitivity: Number,
    max_hits: int,
    monotone: bool = False,
) -> SparseVector:
    """Tells of each value in a stream whether it is above a threshold, c times at most.

    The threshold has Laplace noise of scale ``sensitivity / epsilon_1``, drawn once, and each value
    noise of its own, of scale ``2 c sensitivity / epsilon_2``, with ``epsilon_1 + epsilon_2 =
    epsilon`` and ``epsilon_2 = (2 c)^(2/3) epsilon_1``.

    Args:
      epsilon: of the whole run, > 0.
      threshold: T.
      sensitivity: the most by which a value moves between neighbouring data sets, > 0.
      max_hits: c >= 1: after so many answers "above" there are no more of them.
      monotone: whether all values move in one direction, such as counts under add/remove; then the
        2 is not needed.

    Returns:
      A `SparseVector` pair ``(init, update)``.

    Guarantees:
      All answers of a run are epsilon-differentially private, whatever their number, but for
      floating point; values may be chosen by the answers before.

    Raises:
      ValueError: on concrete numbers out of range, NaN values, or without a key. (A traced NaN is
        never above.)

    Example:
      >>> questions = sparse_vector(epsilon=2.0, threshold=100.0, sensitivity=1.0, max_hits=1)
      >>> state = questions.init(key=jax.random.key(0))
      >>> low, state = questions.update(state, 0.0, key=jax.random.key(1))
      >>> high, state = questions.update(state, 200.0, key=jax.random.key(2))
      >>> bool(low), bool(high), int(state.hits)
      (False, True, 1)

    References:
      M. Lyu, D. Su, N. Li, Understanding the sparse vector technique for differential privacy,
      2017, arXiv:1603.01699, Algorithm 7.
    """
    check_number("epsilon", epsilon, low=0, low_open=True, scalar=True)
    check_number("threshold", threshold, scalar=True)
    check_number("sensitivity", sensitivity, low=0, low_open=True, scalar=True)
    check_count("max_hits", max_hits)
    factor = max_hits if monotone else 2 * max_hits
    ratio = factor ** (2 / 3)
    # Both parts rounded down by more than float32 rounds their sum.
    whole = jnp.asarray(epsilon, jnp.float32) * (1 - 2.0**-20)
    first, second = whole / (1 + ratio), whole * (ratio / (1 + ratio))

    def init(*, key: Any) -> SparseVectorState:
        check_key(key, "the threshold")
        start = jnp.asarray(threshold, jnp.float32)
        noised = laplace(key, start, epsilon=first, l1_sensitivity=sensitivity)
        return SparseVectorState(noised, jnp.int32(0), jnp.int32(0))

    def update(
        state: SparseVectorState, value: Number, *, key: Any
    ) -> tuple[Array, SparseVectorState]:
        check_key(key, "a question")
        check_number("value", value, scalar=True)
        scale = jnp.asarray(sensitivity, jnp.float32) * factor
        noised = laplace(key, jnp.asarray(value, jnp.float32), epsilon=second, l1_sensitivity=scale)
        above = (noised >= state.threshold) & (state.hits < max_hits)
        hits = state.hits + above.astype(jnp.int32)
        return above, SparseVectorState(state.threshold, hits, state.queries + 1)

    return SparseVector(init, update)
