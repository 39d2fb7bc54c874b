"""Where attacks on decisions begin: points that fool, and the way from them to the boundary."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spax import loops
from spax.checks import check_batch
from spax.evasion.oracle import ask, budget_of
from spax.losses import hits, misclassified
from spax.norms import box, example_keys
from spax.norms import norm as norm_of
from spax.typing import Array, Bounds, Criterion, Key, Model, Number, PyTree, each_row, expand, wide

__all__ = [
    "Fools",
    "Point",
    "bisect",
    "distance_of",
    "find_start",
    "normal",
    "prepare",
    "tolerance",
    "verdict",
]

_TRIES = 100  # random starts, at most

# fools(z, live, key) -> bool: which live points do, ``[B, ...]`` or ``[n, B, ...]``.
Fools = Callable[[Array, Array, Key], Array]


class Point(NamedTuple):
    """What a search for a start has found."""

    z: Array  # the nearest point that fools; x where there is none
    found: Array  # bool [B]: whether there is one, and it is not x itself
    queries: Array


def verdict(logits_fn: Model, y: PyTree, criterion: Criterion | None, targeted: bool) -> Fools:
    """``fools(z, live, key)``: whether points do, of which only the live ones are asked."""
    judged = criterion or (hits if targeted else misclassified)

    def fools(z: Array, live: Array, key: Key) -> Array:
        outputs = ask(logits_fn, z, live, key)
        if live.ndim == 2:
            return jax.vmap(judged, (0, None))(outputs, y) & live
        return judged(outputs, y) & live

    return fools


def distance_of(z: Array, x: Array, norm: str) -> Array:
    """The norm of ``z - x``, float32 at least."""
    dtype = wide(x)
    return norm_of(z.astype(dtype) - x.astype(dtype), norm)


def normal(key: Key, x: Array) -> Array:
    """Gaussian noise shaped as x, float32 at least, each example from a key of its own."""
    draw = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], wide(x)))
    return draw(example_keys(key, x))


def prepare(
    x: Array,
    y: PyTree,
    x_init: Array | None,
    max_queries: Number | None,
    bounds: Bounds,
) -> Array:
    """Checks what both attacks take; returns the budget of each example."""
    check_batch(x, y, bounds)
    if x_init is not None:
        if jnp.shape(x_init) != x.shape:
            raise ValueError(
                f"x_init must have the shape of x, {x.shape} (got {jnp.shape(x_init)})"
            )
        check_batch(jnp.asarray(x_init, x.dtype), None, bounds)
    return budget_of(max_queries, x)


def find_start(
    fools: Fools, x: Array, x_init: Array | None, key: Key, budget: Array, bounds: Bounds
) -> Point:
    """Asks x, then ``x_init`` or noise until something fools."""
    low, high = box(bounds, x)

    def candidate(i: Array, key: Key) -> Array:
        if x_init is not None:
            return jnp.where(i == 0, x, jnp.asarray(x_init, x.dtype))

        def draw(key: Key) -> Array:
            key_u, key_power = jax.random.split(key)
            # Uniform first; then darker and brighter, since plain noise is often all one class.
            power = jnp.exp(jax.random.uniform(key_power, (), wide(x), -3.0, 3.0))
            u = jax.random.uniform(key_u, x.shape[1:], wide(x))
            return u ** jnp.where(i <= 1, 1.0, power)

        u = jax.vmap(draw)(example_keys(key, x)).astype(x.dtype)
        return jnp.where(i == 0, x, jnp.clip(low + (high - low) * u, low, high))

    def open_(i: Array, point: Point, already: Array) -> Array:
        return ~already & ~point.found & (point.queries < budget)

    def attempt(carry: tuple[Array, Point, Array]) -> tuple[Array, Point, Array]:
        i, point, already = carry
        key_draw, key_ask = jax.random.split(jax.random.fold_in(key, i))
        live = open_(*carry)
        z = candidate(i, key_draw)
        hit = fools(z, live, key_ask)
        point = Point(
            jnp.where(each_row(hit, x), z, point.z),
            point.found | (hit & (i > 0)),
            point.queries + live.astype(jnp.int32),
        )
        return i + 1, point, already | (hit & (i == 0))

    nobody = jnp.zeros(x.shape[:1], bool)
    tries = _TRIES if x_init is None else 1
    first = Point(x, nobody, jnp.zeros(x.shape[:1], jnp.int32))
    return loops.while_loop(
        lambda c: (c[0] <= tries) & jnp.any(open_(*c)),
        attempt,
        (jnp.zeros((), jnp.int32), first, nobody),
    )[1]


def bisect(
    fools: Fools,
    x: Array,
    z: Array,
    live: Array,
    queries: Array,
    key: Key,
    *,
    budget: Array,
    norm: str,
    theta: float,
    bounds: Bounds,
) -> tuple[Array, Array]:
    """Moves fooling points to the boundary on the way to x: (points that fool, queries)."""
    dtype = wide(x)
    low, high = box(bounds, x)
    origin, far = x.astype(dtype), z.astype(dtype) - x.astype(dtype)
    radius = expand(norm_of(far, "linf"), far)

    def blend(a: Array) -> Array:
        a = expand(a, far)
        delta = a * far if norm == "l2" else jnp.clip(far, -a * radius, a * radius)
        return jnp.clip((origin + delta).astype(x.dtype), low, high)

    def open_(inner: Array, outer: Array, queries: Array) -> Array:
        return live & (outer - inner > theta) & (queries < budget)

    def halve(carry: tuple) -> tuple:
        i, inner, outer, z, queries = carry
        asked = open_(inner, outer, queries)
        middle = (inner + outer) / 2
        candidate = blend(middle)
        hit = fools(candidate, asked, jax.random.fold_in(key, i))
        return (
            i + 1,
            jnp.where(asked & ~hit, middle, inner),
            jnp.where(hit, middle, outer),
            jnp.where(each_row(hit, x), candidate, z),
            queries + asked.astype(jnp.int32),
        )

    zero = jnp.zeros(x.shape[:1], dtype)
    carry = (jnp.zeros((), jnp.int32), zero, zero + 1, z, queries)
    *_, z, queries = loops.while_loop(lambda c: jnp.any(open_(c[1], c[2], c[4])), halve, carry)
    return z, queries


def tolerance(x: Array, norm: str) -> float:
    """Where bisection stops, in shares of the way; within what float32 and tiny inputs allow."""
    size = max(math.prod(x.shape[1:]), 1)
    return min(max(size ** (-1.5 if norm == "l2" else -2.0), 1e-6), 1e-3)
