"""Poisson sampling of batches, on the device and at fixed shapes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from spax.checks import check_count, check_key, check_number
from spax.crypto import ChaChaKey
from spax.crypto import bits as secure_bits
from spax.typing import Array, PyTree

__all__ = ["Batch", "Poisson", "capacity_for", "sample"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples padded to a fixed number of rows.

    Args:
      data: a pytree of arrays ``[capacity, ...]``.
      mask: bool ``[capacity]``: which rows are examples; the others count for nothing.
    """

    data: PyTree
    mask: Array


@dataclasses.dataclass(frozen=True)
class Poisson:
    """How batches are drawn: each record takes part on its own, with one probability.

    Args:
      rate: the probability, in (0, 1].
      capacity: rows of a batch. More draws than that are cut off, which costs some of
        delta: choose it by `capacity_for`.
      num_records: number of records in the data set; public under add/remove adjacency in that
        sums are divided by the expected batch size, ``rate * num_records``, whatever is drawn.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> sampling = Poisson(rate=0.1, capacity=30, num_records=100)
      >>> sampling.expected_size
      10.0
    """

    rate: float
    capacity: int
    num_records: int

    def __post_init__(self) -> None:
        """Checks the numbers."""
        check_number("rate", self.rate, low=0, high=1, low_open=True, scalar=True)
        check_count("capacity", self.capacity)
        check_count("num_records", self.num_records)

    @property
    def expected_size(self) -> float:
        """What sums over a batch are divided by."""
        return self.rate * self.num_records

    @property
    def overflow(self) -> float:
        """An upper bound on the probability that one batch has more draws than capacity."""
        return _tail(self.num_records, self.rate, self.capacity)


def _tail(n: int, rate: float, capacity: int) -> float:
    """Chernoff's ``exp(-n KL(k/n || rate))`` on ``P[Binomial(n, rate) >= k]``, k = cap + 1."""
    k = capacity + 1
    if k > n:
        return 0.0
    share = k / n
    if share <= rate:
        return 1.0
    divergence = share * math.log(share / rate)
    if k < n:
        divergence += (1 - share) * math.log((1 - share) / (1 - rate))
    # Rounded up, and never to zero.
    return min(1.0, max(math.exp(-n * divergence) * (1 + 1e-9), 1e-300))


def capacity_for(num_records: int, rate: float, steps: int, *, overflow: float = 1e-15) -> int:
    """The smallest capacity at which ``steps`` batches overflow with at most a given probability.

    Args:
      num_records: number of records, >= 1.
      rate: of the sampling, in (0, 1].
      steps: number of batches, >= 1.
      overflow: the probability p, in (0, 1), that any of them overflows; ``(1 + e^epsilon) p`` is
        taken out of delta, so that it should be small even for its size.

    Returns:
      The capacity, at most ``num_records``.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> capacity_for(60_000, 256 / 60_000, 10_000)
      419

    References:
      H. Chernoff, A measure of asymptotic efficiency for tests of a hypothesis based on the sum
      of observations, 1952 (the bound on the binomial tail).
    """
    check_count("num_records", num_records)
    check_number("rate", rate, low=0, high=1, low_open=True)
    check_count("steps", steps)
    check_number("overflow", overflow, low=0, high=1, low_open=True, high_open=True)
    low, high = 0, num_records  # low overflows too often, high never does
    while high - low > 1:
        middle = (low + high) // 2
        if steps * _tail(num_records, rate, middle) <= overflow:
            high = middle
        else:
            low = middle
    return high


def sample(key: Any, data: PyTree, sampling: Poisson) -> Batch:
    """Draws one batch.

    Args:
      key: a `jax.random` key, or a `spax.crypto.ChaChaKey` where the draw has to be secret from
        somebody who could predict the former; consumed.
      data: the whole data set: a pytree of arrays ``[num_records, ...]``.
      sampling: the rule.

    Returns:
      A `Batch` of ``sampling.capacity`` rows. Draws beyond them are cut off, the last records
      first.

    Guarantees:
      Each record takes part independently, with probability at most ``rate`` and at least
      ``rate - 2^-32``, but for the overflow.

    Raises:
      ValueError: if an array has not ``num_records`` rows, or there is no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> sampling = Poisson(rate=0.5, capacity=8, num_records=8)
      >>> batch = sample(jax.random.key(0), jnp.arange(8), sampling)
      >>> batch.data.shape, batch.mask.shape
      ((8,), (8,))
    """
    check_key(key, "sampling a batch")
    for leaf in jax.tree.leaves(data):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != sampling.num_records:
            raise ValueError(
                f"data must have {sampling.num_records} records, as the sampling says "
                f"(got an array of shape {jnp.shape(leaf)})"
            )
    if sampling.rate == 1:
        drawn = jnp.ones(sampling.num_records, bool)
    else:
        # Whole numbers, so that no record is drawn more often than the rate says.
        threshold = jnp.uint32(math.floor(sampling.rate * 2**32))
        draw = secure_bits if isinstance(key, ChaChaKey) else jax.random.bits
        drawn = draw(key, (sampling.num_records,), jnp.uint32) < threshold
    # One row more than there are records marks the empty places.
    (rows,) = jnp.nonzero(drawn, size=sampling.capacity, fill_value=sampling.num_records)
    mask = rows < sampling.num_records
    rows = jnp.where(mask, rows, 0)
    return Batch(jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data), mask)
