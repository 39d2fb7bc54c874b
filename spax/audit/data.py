"""The data of an audit: checked, sampled, and fed in batches that bound the memory."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from spax.audit.errors import AuditError
from spax.datasets import Dataset
from spax.typing import Key, PyTree

__all__ = ["check_data", "describe_data", "in_batches", "sample"]


def check_data(data: Any) -> None:
    """Raises unless ``data`` is a Dataset, which has checked its arrays itself."""
    if not isinstance(data, Dataset):
        raise AuditError(
            f"data must be a spax.datasets.Dataset (got {type(data).__name__}); make one of arrays "
            'by Dataset(None, None, x, y, "name"), or of a file by load_npz(path)'
        )


def describe_data(data: Dataset) -> dict[str, Any]:
    """Name, shapes, classes and bounds, for the report."""
    return {
        "name": data.name,
        "test_examples": len(data.x_test),
        "train_examples": None if data.x_train is None else len(data.x_train),
        "example_shape": list(data.x_test.shape[1:]),
        "classes": data.num_classes,
        "bounds": list(data.bounds),
    }


def sample(x: np.ndarray, y: np.ndarray, most: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """At most so many examples, drawn without replacement, in their first order.

    Files are often sorted by class: the first examples would not do.

    Example:
      >>> x, y = sample(np.arange(9.0), np.arange(9), 3, jax.random.key(0))
      >>> x.shape, bool((x == y).all())
      ((3,), True)
    """
    if len(x) <= most:
        return x, y
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    chosen = np.sort(rng.choice(len(x), most, replace=False))
    return x[chosen], y[chosen]


def in_batches(
    program: Callable[..., PyTree],
    x: np.ndarray,
    y: np.ndarray,
    *,
    key: Key,
    batch_size: int,
) -> PyTree:
    """Runs ``program(x, y, key) -> arrays [B, ...]`` on batches of one shape and joins the results.

    Args:
      program: is compiled once, since all batches have one shape; batch b gets ``fold_in(key, b)``.
      x: ``[N, ...]``, N >= 1.
      y: ``[N]``.
      key: a random key.
      batch_size: examples at a time, at most.

    Returns:
      The results as NumPy arrays ``[N, ...]``.

    Example:
      >>> add, key = lambda x, y, key: x + y, jax.random.key(0)
      >>> in_batches(add, np.arange(5.0), np.ones(5), key=key, batch_size=2).tolist()
      [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    n = len(x)
    count = -(-n // batch_size)
    size = -(-n // count)
    parts = []
    for b in range(count):
        # The last batch reaches back so that all have one shape; what it repeats is dropped.
        first = min(b * size, n - size)
        part = program(x[first : first + size], y[first : first + size], jax.random.fold_in(key, b))
        repeated = b * size - first
        parts.append(jax.tree.map(lambda v, r=repeated: np.asarray(v)[r:], part))
    return jax.tree.map(lambda *v: np.concatenate(v), *parts)
