"""How batches are drawn: on the device, at fixed shapes, and as an accountant must be told.

Each rule is a frozen description. Beside its numbers it says ``sampler``, ``adjacency`` and
``unit``, by which an accountant knows whether its bound is one for this rule: a bound for Poisson
sampling is none for batches that are shuffled.
"""

import dataclasses
import math
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from spax.checks import check_count, check_key, check_number
from spax.dp import draws
from spax.typing import Array, PyTree

__all__ = [
    "BallsInBins",
    "Batch",
    "FixedSize",
    "Poisson",
    "Sampling",
    "Shuffled",
    "Users",
    "capacity_for",
    "sample",
    "shuffle",
]


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

    sampler: ClassVar[str] = "poisson"
    adjacency: ClassVar[str] = "add_remove"
    unit: ClassVar[str] = "record"

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


@dataclasses.dataclass(frozen=True)
class Users:
    """Poisson sampling of users: a row holds all of one user's data.

    Args:
      rate: the probability, in (0, 1], that a user takes part in a round.
      capacity: rows of a batch; more draws than that are cut off, at the cost of some delta.
      num_users: number of users.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> sampling = Users(rate=0.1, capacity=30, num_users=100)
      >>> sampling.unit, sampling.expected_size
      ('user', 10.0)
    """

    rate: float
    capacity: int
    num_users: int

    sampler: ClassVar[str] = "poisson"
    adjacency: ClassVar[str] = "add_remove"
    unit: ClassVar[str] = "user"

    def __post_init__(self) -> None:
        """Checks the numbers."""
        check_number("rate", self.rate, low=0, high=1, low_open=True, scalar=True)
        check_count("capacity", self.capacity)
        check_count("num_users", self.num_users)

    @property
    def num_records(self) -> int:
        """Rows of the data set, one a user."""
        return self.num_users

    @property
    def expected_size(self) -> float:
        """What sums over a batch are divided by."""
        return self.rate * self.num_users

    @property
    def overflow(self) -> float:
        """An upper bound on the probability that one batch has more draws than capacity."""
        return _tail(self.num_users, self.rate, self.capacity)


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """Batches of one size, drawn anew each time, without replacement.

    Args:
      batch_size: records of a batch, at most ``num_records``.
      num_records: number of records of the data set; it is public, and neighbouring data sets
        differ in one replaced record.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> FixedSize(batch_size=10, num_records=100).rate
      0.1
    """

    batch_size: int
    num_records: int

    sampler: ClassVar[str] = "fixed_size"
    adjacency: ClassVar[str] = "replace"
    unit: ClassVar[str] = "record"

    def __post_init__(self) -> None:
        """Checks the numbers."""
        _check_sizes(self.batch_size, self.num_records)

    @property
    def rate(self) -> float:
        """The probability with which a record is in a batch."""
        return self.batch_size / self.num_records

    @property
    def capacity(self) -> int:
        """Rows of a batch."""
        return self.batch_size

    @property
    def expected_size(self) -> float:
        """What sums over a batch are divided by."""
        return float(self.batch_size)

    @property
    def overflow(self) -> float:
        """No batch is larger than the others."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Random reshuffling: each epoch cuts a new random order of the records into batches.

    Every record takes part once an epoch (but for the ``num_records % batch_size`` last of the
    order, which are left out). It is *not* Poisson sampling, and its privacy is not that of it:
    without a proof of more, an epoch costs what one unsampled release does.

    Args:
      batch_size: records of a batch, at most ``num_records``.
      num_records: number of records of the data set; it is public, and neighbouring data sets
        differ in one replaced record.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> Shuffled(batch_size=30, num_records=100).batches
      3

    References:
      L. Chua et al., How private are DP-SGD implementations?, 2024, arXiv:2403.17673 (the gap).
    """

    batch_size: int
    num_records: int

    sampler: ClassVar[str] = "shuffled"
    adjacency: ClassVar[str] = "replace"
    unit: ClassVar[str] = "record"

    def __post_init__(self) -> None:
        """Checks the numbers."""
        _check_sizes(self.batch_size, self.num_records)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self.num_records // self.batch_size

    @property
    def rate(self) -> float:
        """How often a record is in a batch; no accountant may take it for a Poisson rate."""
        return self.batch_size / self.num_records

    @property
    def capacity(self) -> int:
        """Rows of a batch."""
        return self.batch_size

    @property
    def expected_size(self) -> float:
        """What sums over a batch are divided by."""
        return float(self.batch_size)

    @property
    def overflow(self) -> float:
        """No batch is larger than the others."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class BallsInBins:
    """Each epoch, every record picks one of the epoch's batches by itself, uniformly.

    Records are independent, as under Poisson sampling, and each takes part once an epoch, as under
    shuffling. Its privacy lies between the two, and has accountants of its own.

    Args:
      batches: of an epoch, >= 1.
      capacity: rows of a batch; more than that are cut off, at the cost of some delta: choose it by
        `capacity_for` at the rate ``1 / batches``.
      num_records: number of records.

    Raises:
      ValueError: on numbers out of range.

    Example:
      >>> BallsInBins(batches=4, capacity=50, num_records=100).expected_size
      25.0

    References:
      L. Chua et al., Balls-and-bins sampling for DP-SGD, 2024, arXiv:2412.16802.
    """

    batches: int
    capacity: int
    num_records: int

    sampler: ClassVar[str] = "balls_in_bins"
    adjacency: ClassVar[str] = "add_remove"
    unit: ClassVar[str] = "record"

    def __post_init__(self) -> None:
        """Checks the numbers."""
        check_count("batches", self.batches)
        check_count("capacity", self.capacity)
        check_count("num_records", self.num_records)

    @property
    def rate(self) -> float:
        """How often a record is in a batch; no accountant may take it for a Poisson rate."""
        return 1 / self.batches

    @property
    def expected_size(self) -> float:
        """What sums over a batch are divided by."""
        return self.num_records / self.batches

    @property
    def overflow(self) -> float:
        """An upper bound on the probability that one batch has more records than capacity."""
        # A bin has a whole number of 2^32 words: it may be a little likelier than 1 / batches.
        likelier = self.rate * (1 + self.batches * 2.0**-32)
        return _tail(self.num_records, min(1.0, likelier), self.capacity)


Sampling: TypeAlias = Poisson | Users | FixedSize | Shuffled | BallsInBins


def _check_sizes(batch_size: Any, num_records: Any) -> None:
    check_count("batch_size", batch_size)
    check_count("num_records", num_records)
    if batch_size > num_records:
        raise ValueError(
            f"batch_size must be <= num_records={num_records} (got batch_size={batch_size})"
        )


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


def sample(key: Any, data: PyTree, sampling: Sampling, *, step: int | Array | None = None) -> Batch:
    """Draws one batch.

    Args:
      key: a `jax.random` key, or a `spax.crypto.ChaChaKey` where the draw has to be secret from
        somebody who could predict the former. Without ``step`` it is consumed; with it, it is the
        key of the whole training, used for nothing else, and batch number ``step`` comes from
        ``fold_in``: a training that is resumed draws what it would have drawn.
      data: the whole data set: a pytree of arrays ``[num_records, ...]``.
      sampling: the rule.
      step: the number of the batch, >= 0; may be traced. `Shuffled` and `BallsInBins` need it:
        batches of one epoch come from one draw.

    Returns:
      A `Batch` of ``sampling.capacity`` rows. Draws beyond them are cut off, the last records
      first. A batch may be empty; it is a release all the same.

    Guarantees:
      `Poisson` and `Users`: each record takes part independently, with probability at most ``rate``
      and at least ``rate - 2^-32``, but for the overflow. `FixedSize` and `Shuffled`: orders are
      uniform, but for ties of probability ``num_records^2 / 2^65``. `BallsInBins`: batches of an
      epoch are equally likely to within ``batches / 2^32`` of their probability.

    Raises:
      TypeError: on another rule.
      ValueError: if an array has not ``num_records`` rows, a concrete step is negative, or there is
        no key or no step where one is needed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> sampling = Poisson(rate=0.5, capacity=8, num_records=8)
      >>> batch = sample(jax.random.key(0), jnp.arange(8), sampling)
      >>> batch.data.shape, batch.mask.shape
      ((8,), (8,))
      >>> epochs = Shuffled(batch_size=4, num_records=8)
      >>> first, second = (sample(jax.random.key(0), jnp.arange(8), epochs, step=i) for i in (0, 1))
      >>> sorted([*first.data.tolist(), *second.data.tolist()])
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    check_key(key, "sampling a batch")
    if not isinstance(sampling, Sampling):
        raise TypeError(
            "sampling must be one of spax.dp's rules, such as Poisson "
            f"(got {type(sampling).__name__})"
        )
    for leaf in jax.tree.leaves(data):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != sampling.num_records:
            raise ValueError(
                f"data must have {sampling.num_records} records, as the sampling says "
                f"(got an array of shape {jnp.shape(leaf)})"
            )
    if step is not None:
        check_number("step", step, low=0, scalar=True)
        if not jnp.issubdtype(jnp.result_type(step), jnp.integer):
            raise TypeError(f"step must be an integer (got {jnp.result_type(step)})")
    rows, mask = _drawn(key, sampling, step)
    return Batch(jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data), mask)


def _drawn(key: Any, sampling: Sampling, step: int | Array | None) -> tuple[Array, Array]:
    """The rows of a batch, and which of them count."""
    n = sampling.num_records
    if isinstance(sampling, Shuffled | BallsInBins):
        if step is None:
            raise ValueError(
                f"{type(sampling).__name__} draws an epoch at a time: pass step=, the number of "
                "the batch (got step=None)"
            )
        epoch, place = step // sampling.batches, step % sampling.batches
        key = draws.fold_in(key, epoch)
        if isinstance(sampling, Shuffled):
            size = sampling.batch_size
            rows = lax.dynamic_slice_in_dim(draws.order(key, n), place * size, size)
            return rows, jnp.ones(size, bool)
        # The high word of a product of 32 bits and a small number is uniform below that number.
        with jax.enable_x64(True):
            words = draws.bits(key, (n,)).astype(jnp.uint64)
            bins = ((words * jnp.uint64(sampling.batches)) >> jnp.uint64(32)).astype(jnp.int32)
        return _packed(bins == place, sampling.capacity)
    if step is not None:
        key = draws.fold_in(key, step)
    if isinstance(sampling, FixedSize):
        return draws.order(key, n)[: sampling.batch_size], jnp.ones(sampling.batch_size, bool)
    if sampling.rate == 1:
        return _packed(jnp.ones(n, bool), sampling.capacity)
    # Whole numbers, so that no record is drawn more often than the rate says.
    threshold = jnp.uint32(math.floor(sampling.rate * 2**32))
    return _packed(draws.bits(key, (n,)) < threshold, sampling.capacity)


def _packed(drawn: Array, capacity: int) -> tuple[Array, Array]:
    """The first rows that were drawn; row 0 fills the places that are left, and does not count."""
    # One row more than there are records marks the empty places.
    (rows,) = jnp.nonzero(drawn, size=capacity, fill_value=drawn.shape[0])
    mask = rows < drawn.shape[0]
    return jnp.where(mask, rows, 0), mask


def shuffle(key: Any, reports: PyTree) -> PyTree:
    """Puts reports into a random order, so that only the multiset of them remains.

    For local randomizers (such as `spax.dp.randomized_response`) whose reports are amplified by
    shuffling; batches of DP-SGD are another matter.

    Args:
      key: a `jax.random` key, or a `spax.crypto.ChaChaKey`; consumed. Whoever knows it can undo
        the shuffle.
      reports: a pytree of arrays ``[n, ...]``, all put into one order.

    Returns:
      Arrays of the same shapes.

    Raises:
      ValueError: if arrays differ in their number of rows or there are none, or without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> sorted(shuffle(jax.random.key(0), jnp.arange(4)).tolist())
      [0, 1, 2, 3]

    References:
      V. Feldman, A. McMillan, K. Talwar, Hiding among the clones, 2021, arXiv:2012.12803.
    """
    check_key(key, "shuffling")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(reports)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"reports must be arrays [n, ...] of one length (got shapes {shapes})")
    rows = draws.order(key, shapes[0][0])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], reports)
