"""Checks of arguments: structure at trace time, values whenever they are concrete.

A traced value cannot raise; each public docstring says what happens at its edges instead.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "are_probabilities",
    "check_batch",
    "check_bounds",
    "check_choice",
    "check_count",
    "check_key",
    "check_labels",
    "check_logits",
    "check_number",
    "check_outputs",
    "is_concrete",
]


def is_concrete(value: Any) -> bool:
    """Whether no leaf of ``value`` is a tracer, so that its numbers can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def are_probabilities(outputs: Any) -> bool:
    """Whether every row of concrete outputs ``[B, K]`` is a probability distribution."""
    p = np.asarray(outputs, np.float64)
    return bool((p >= 0).all() and np.allclose(p.sum(axis=1), 1, rtol=0, atol=1e-2))


def check_number(
    name: str,
    value: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
    scalar: bool = False,
) -> None:
    """Raises unless every concrete entry of ``value`` is a real number in the stated range."""
    if isinstance(value, bool) or not isinstance(
        value, int | float | np.ndarray | np.generic | jax.Array
    ):
        raise TypeError(f"{name} must be a real number or an array of them (got {value!r})")
    if scalar and np.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar (got {name} of shape {np.shape(value)})")
    if not is_concrete(value):
        return
    v = np.asarray(value, np.float64)
    bad = np.isnan(v)
    wanted = []
    if low is not None:
        bad |= v <= low if low_open else v < low
        wanted.append(f"{'>' if low_open else '>='} {low:g}")
    if high is not None:
        bad |= v >= high if high_open else v > high
        wanted.append(f"{'<' if high_open else '<='} {high:g}")
    if bad.any():
        got = v if v.ndim == 0 else v[bad][0]
        raise ValueError(
            f"{name} must be {' and '.join(wanted) or 'a number'} (got {name}={float(got):g})"
        )


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raises unless ``value`` is a static integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a static int (got {name}={value!r})")
    if value < minimum:
        raise ValueError(f"{name} must be >= {minimum} (got {name}={value})")


def check_choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raises unless ``value`` is one of the allowed strings."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {sorted(allowed)} (got {name}={value!r})")


def check_key(key: Any, why: str) -> Any:
    """Returns the key; raises if there is none, where ``why`` says what draws."""
    if key is None:
        raise ValueError(f"{why} needs a random key: pass key=jax.random.key(...) (got key=None)")
    return key


def check_bounds(bounds: Any) -> None:
    """Raises unless ``bounds`` is a pair of numbers or arrays with low < high everywhere."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (low, high) (got bounds={bounds!r})")
    if not is_concrete(bounds):
        return
    low, high = (np.asarray(b, np.float64) for b in bounds)
    if not np.all(low < high):
        raise ValueError(f"bounds must have low < high everywhere (got bounds={bounds!r})")


def check_batch(x: Any, y: Any = None, bounds: Any = None) -> None:
    """Raises unless ``x`` is a floating batch, in bounds, with one label (or pytree row) each.

    Args:
      x: the inputs, ``[B, ...]``.
      y: labels: any pytree whose leaves have leading dimension B.
      bounds: the valid range of ``x``; None: not checked.
    """
    if not hasattr(x, "dtype") or not hasattr(x, "ndim"):
        raise TypeError(f"x must be an array (got {type(x).__name__})")
    if x.ndim < 1:
        raise ValueError(f"x must have a leading batch dimension (got x.shape={x.shape})")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, scaled to the bounds (got x.dtype={x.dtype})")
    for leaf in jax.tree.leaves(y):
        if np.ndim(leaf) < 1 or np.shape(leaf)[0] != x.shape[0]:
            raise ValueError(
                f"y must have one entry per example, leading dimension {x.shape[0]} "
                f"(got y.shape={np.shape(leaf)})"
            )
    if bounds is not None:
        check_bounds(bounds)
    if not is_concrete((x, bounds)):
        return
    values = np.asarray(x)
    if values.dtype.kind != "f":  # bfloat16 and its like
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("x must be finite (got NaN or infinite values in x)")
    if bounds is not None and values.size:
        # One rounding step of the input's own dtype is not an error of the caller.
        slack = float(jnp.finfo(x.dtype).eps)
        low, high = (np.asarray(b, np.float32) for b in bounds)
        for b in (low, high):
            try:
                fits = np.broadcast_shapes(b.shape, x.shape) == x.shape
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"bounds must be numbers or arrays that broadcast to x (got a bound of shape "
                    f"{b.shape}, x.shape={x.shape})"
                )
        scale = slack * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
        if (values < low - scale).any() or (values > high + scale).any():
            raise ValueError(
                f"x must lie within bounds={bounds} "
                f"(got x.min()={values.min():g}, x.max()={values.max():g})"
            )


def check_labels(y: Any, num_classes: int) -> None:
    """Raises unless ``y`` is an integer array with concrete entries in [0, num_classes)."""
    if not jnp.issubdtype(jnp.asarray(y).dtype, jnp.integer):
        raise ValueError(f"labels must be integers (got y.dtype={jnp.asarray(y).dtype})")
    if not is_concrete(y) or not np.size(y):
        return
    low, high = np.min(np.asarray(y)), np.max(np.asarray(y))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}), the number of logits "
            f"(got labels from {low} to {high})"
        )


def check_outputs(outputs: Any) -> None:
    """Raises where a model gave not one array but a container, such as ``(logits, state)``."""
    if not hasattr(outputs, "ndim"):
        raise ValueError(
            f"the model must return the logits alone (got a {type(outputs).__name__}); an "
            "objective takes a pair (logits, new_state) with has_state=True"
        )


def check_logits(logits: Any, y: Any) -> None:
    """Raises unless ``logits`` is ``[B, K]``, K >= 2, and ``y`` an integer ``[B]`` within K."""
    check_outputs(logits)
    shape = np.shape(logits)
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(f"logits must have shape [B, K] with K >= 2 (got logits.shape={shape})")
    if np.shape(y) != shape[:1]:
        raise ValueError(f"y must have shape [{shape[0]}] (got y.shape={np.shape(y)})")
    check_labels(y, shape[1])
