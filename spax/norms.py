"""The norms of attacks, by name: ``"linf"``, ``"l2"``, ``"l1"``, ``"l0"``.

Norms, projections on a ball inside the box of valid inputs, directions of steepest ascent and
uniform samples; all per example over the trailing dimensions of ``[B, ...]``.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spax import loops
from spax.checks import check_choice, check_number
from spax.typing import Array, Bounds, Key, Number, expand, wide

__all__ = [
    "box",
    "displace",
    "example_keys",
    "norm",
    "project",
    "sample",
    "steepest",
    "zeros_by_example",
]

_NORMS = ("linf", "l2", "l1", "l0")


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def norm(x: Array, norm: str) -> Array:
    """Norm of every example.

    Args:
      x: ``[B, ...]``.
      norm: ``"linf"``, ``"l2"``, ``"l1"``, or ``"l0"`` (the number of non-zero entries).

    Returns:
      ``[B]``, in the dtype of ``x``; sums are taken in float32 or wider.

    Raises:
      ValueError: on another norm.

    Example:
      >>> import jax.numpy as jnp
      >>> norm(jnp.array([[3.0, -4.0]]), "l2").tolist()
      [5.0]
    """
    check_choice("norm", norm, _NORMS)
    v = _flat(x).astype(wide(x))
    if norm == "linf":
        out = jnp.max(jnp.abs(v), axis=1, initial=0.0)
    elif norm == "l2":
        out = jnp.sqrt(jnp.sum(v * v, axis=1))
    elif norm == "l1":
        out = jnp.sum(jnp.abs(v), axis=1)
    else:
        out = jnp.sum(v != 0, axis=1).astype(v.dtype)
    return out.astype(x.dtype)


def box(bounds: Bounds, x: Array) -> tuple[Array, Array]:
    """Valid range as arrays shaped like ``x``: scalars or arrays of trailing shape, broadcast.

    Args:
      bounds: ``(low, high)``: numbers, or arrays such as one entry a channel.
      x: ``[B, ...]``.

    Returns:
      ``(low, high)``, each of the shape and dtype of ``x``.

    Raises:
      ValueError: if a bound does not broadcast to ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> low, high = box((0.0, jnp.array([1.0, 2.0])), jnp.zeros((3, 2)))
      >>> high[0].tolist()
      [1.0, 2.0]
    """
    low, high = (jnp.broadcast_to(jnp.asarray(b, x.dtype), x.shape) for b in bounds)
    return low, high


def project(delta: Array, x: Array, eps: Number, norm: str, bounds: Bounds) -> Array:
    """Projects a perturbation on the eps-ball, inside the box of valid inputs.

    For linf, l1 and l0 this is the exact Euclidean projection on ball-and-box (for l1 by
    bisection on the multiplier and one exact solve of its final linear piece; exact up to the
    rounding of the multiplier, measured from 0 or from the largest entry, whichever is nearer:
    where entries are thousands of times their room, those in between share it unevenly). For l2 the
    perturbation is scaled to the ball and then clipped to the box: the result is feasible, but
    not the nearest feasible point.

    Args:
      delta: perturbations ``[B, ...]``.
      x: the inputs they are added to, within ``bounds``.
      eps: radius, scalar or ``[B]``; for l0 the number of entries. Below 0 means 0.
      norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.
      bounds: valid range of ``x + delta``.

    Returns:
      Perturbations of norm at most eps, ``x + result`` within bounds up to rounding (see
      `displace`).

    Raises:
      ValueError: on another norm, or concrete ``eps < 0``.

    Example:
      >>> import jax.numpy as jnp
      >>> delta = project(jnp.array([[2.0, 0.3]]), jnp.zeros((1, 2)), 0.5, "l1", (0.0, 0.4))
      >>> [round(d, 3) for d in delta[0].tolist()]
      [0.4, 0.1]

    References:
      F. Croce, M. Hein, Mind the box: l1-APGD for sparse adversarial attacks, 2021,
      arXiv:2103.01208, Proposition 2.1.
    """
    check_choice("norm", norm, _NORMS)
    check_number("eps", eps, low=0)
    low, high = box(bounds, x)
    low, high = low - x, high - x
    radius = _radius(eps, x, norm)
    if norm == "linf":
        return jnp.clip(delta, jnp.maximum(low, -radius), jnp.minimum(high, radius))
    if norm == "l2":
        # Scaled first: radius / size of a large perturbation would underflow to 0.
        scaled, unit = _scaled(delta)
        size = expand(_plain_l2(scaled), scaled)
        target = radius.astype(scaled.dtype)
        shorter = scaled * (target / jnp.where(size > 0, size, 1))
        inside = size * expand(unit, scaled) <= target
        return jnp.clip(jnp.where(inside, delta, shorter.astype(delta.dtype)), low, high)
    flat_radius = jnp.broadcast_to(radius.reshape(-1, 1), (x.shape[0], 1))
    kernel = _project_l1 if norm == "l1" else _project_l0
    return kernel(_flat(delta), _flat(low), _flat(high), flat_radius).reshape(delta.shape)


def _radius(eps: Number, x: Array, norm: str) -> Array:
    """The radius in the dtype of x, rounded so that a measured norm does not exceed eps."""
    dtype = wide(x)
    wanted = jnp.maximum(expand(eps, x.astype(dtype)), 0)
    radius = wanted.astype(x.dtype)
    radius = jnp.where(radius.astype(dtype) > wanted, jnp.nextafter(radius, 0 * radius), radius)
    if norm in ("l2", "l1"):  # sums round, and entries on their way to 16 bits
        slack = 16 * float(jnp.finfo(dtype).eps)
        if dtype != x.dtype:
            slack += float(jnp.finfo(x.dtype).eps)
        radius = radius * (1 - slack)
    return radius


def _scaled(v: Array) -> tuple[Array, Array]:
    """``v / unit``, float32 at least, and the unit ``[B]``: powers of two near the largest entries.

    A power of two so that nothing is rounded, and one whose reciprocal is a normal number: XLA may
    multiply by it instead, and take one that is not for 0.
    """
    wider = v.astype(wide(v))
    top = jnp.max(jnp.abs(_flat(wider)), axis=1, initial=0.0)
    least = int(jnp.finfo(wider.dtype).minexp)
    exponent = jnp.clip(jnp.frexp(lax.stop_gradient(top))[1], least, -least)
    unit = jnp.ldexp(jnp.ones_like(top), exponent)
    return wider / expand(unit, wider), unit


def _plain_l2(v: Array) -> Array:
    flat = _flat(v)
    return jnp.sqrt(jnp.sum(flat * flat, axis=1))


def _project_l1(delta: Array, low: Array, high: Array, radius: Array) -> Array:
    """Argmin |d - delta|_2 over |d|_1 <= radius, low <= d <= high, all ``[B, D]``.

    By the optimality conditions ``d = sign(delta) min(max(|delta| - lam, 0), room)`` with one
    multiplier lam >= 0 an example, at which the constraint is tight or lam = 0.
    """
    dtype = wide(delta)
    size = jnp.abs(delta).astype(dtype)
    room = jnp.maximum(jnp.where(delta >= 0, high, -low), 0).astype(dtype)
    target = radius.astype(dtype)

    top = jnp.max(size, axis=1, keepdims=True, initial=0.0)
    tiny = float(jnp.finfo(dtype).tiny)

    def total(kept: Array) -> Array:
        return jnp.sum(jnp.clip(kept, 0, room), axis=1, keepdims=True)

    # lam is searched from whichever of its ends, 0 and top, is nearer, as lam = m or top - m: next
    # to top what remains of the entries would drown in the rounding of lam.
    from_top = total(size - top / 2) > target
    sign = jnp.where(from_top, -1, 1).astype(dtype)
    size_from = size - jnp.where(from_top, top, 0)

    def halve(middle: Callable[[Array, Array], Array]) -> Callable[..., tuple[Array, Array]]:
        def step(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            m = middle(*ends)
            larger = (total(size_from - sign * m) > target) != from_top
            return jnp.where(larger, m, ends[0]), jnp.where(larger, ends[1], m)

        return step

    ends = (jnp.full_like(top, tiny), jnp.maximum(top / 2, tiny))
    # First its order of magnitude, then its digits.
    ends = loops.fori_loop(0, 8, halve(lambda a, b: jnp.sqrt(a) * jnp.sqrt(b)), ends)
    least, most = loops.fori_loop(0, 24, halve(lambda a, b: a + (b - a) / 2), ends)
    # Between the ends no entry changes its regime (or by rounding only): solve the line exactly.
    kept = size_from - sign * (least + (most - least) / 2)
    active = (kept > 0) & (kept < room)
    fixed = jnp.sum(jnp.where(kept >= room, room, 0), axis=1, keepdims=True)
    active_size = jnp.sum(jnp.where(active, size_from, 0), axis=1, keepdims=True)
    count = jnp.sum(active, axis=1, keepdims=True).astype(dtype)
    solved = sign * (fixed + active_size - target) / jnp.maximum(count, 1)
    m = jnp.where(count > 0, jnp.clip(solved, least, most), jnp.where(from_top, least, most))
    kept = jnp.where(total(size) <= target, size, size_from - sign * m)
    kept = jnp.clip(kept, 0, room)
    # The rounding of lam is that of the largest entry: take off what it left above a small radius.
    kept = kept * jnp.minimum(1, target / jnp.maximum(jnp.sum(kept, 1, keepdims=True), tiny))
    return jnp.sign(delta) * kept.astype(delta.dtype)


def _project_l0(delta: Array, low: Array, high: Array, radius: Array) -> Array:
    """Keeps, clipped, the floor(radius) entries whose loss would cost most."""
    clipped = jnp.clip(delta, low, high)
    gain = delta * delta - (delta - clipped) * (delta - clipped)
    order = jnp.argsort(-gain, axis=1)
    rank = jnp.argsort(order, axis=1)
    return jnp.where(rank < jnp.floor(radius).astype(rank.dtype), clipped, 0)


def displace(x: Array, delta: Array, bounds: Bounds) -> Array:
    """Adds a perturbation without leaving the box or, by rounding, going beyond it.

    Args:
      x: ``[B, ...]``, within ``bounds``.
      delta: a feasible perturbation of the same shape.
      bounds: valid range.

    Returns:
      ``x + delta`` rounded towards ``x`` and clipped, so that every entry lies in bounds and no
      entry is farther from ``x`` than ``|delta|``.

    Raises:
      ValueError: if a bound does not broadcast to ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.5]], jnp.bfloat16)
      >>> abs(displace(x, jnp.array([[0.1]], jnp.bfloat16), (0.0, 1.0)) - x).item() <= 0.1
      True
    """
    low, high = box(bounds, x)
    z = jnp.clip(x + delta, low, high)
    return jnp.where(jnp.abs(z - x) > jnp.abs(delta), jnp.nextafter(z, x), z)


def steepest(grad: Array, norm: str, *, blocked: Array | None = None, share: float = 0.0) -> Array:
    """Direction of unit norm in which a linear function rises fastest.

    linf: the sign; l2: the gradient, normalised; l1 and l0: the signs of its largest entries,
    scaled to norm one (l1). Entries that are not finite count as 0, and a zero gradient gives a
    zero direction.

    Args:
      grad: ``[B, ...]``.
      norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.
      blocked: bool ``[B, ...]``, entries that cannot move (at the box); used by l1 and l0.
      share: static share of the entries that an l1 or l0 direction uses; at least one is used.

    Returns:
      ``[B, ...]`` in the dtype of ``grad``.

    Raises:
      ValueError: on another norm, or a share outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> steepest(jnp.array([[1.0, -3.0]]), "l1").tolist()
      [[0.0, -1.0]]

    References:
      F. Tramer, D. Boneh, Adversarial training and robustness for multiple perturbations, 2019,
      arXiv:1904.13000, Section 4 (the l1 step).
    """
    check_choice("norm", norm, _NORMS)
    check_number("share", share, low=0, high=1)
    g = jnp.where(jnp.isfinite(grad), grad, 0)
    if norm == "linf":
        return jnp.sign(g)
    if norm == "l2":
        scaled, _ = _scaled(g)
        size = _plain_l2(scaled)
        return (scaled / expand(jnp.where(size > 0, size, 1), scaled)).astype(grad.dtype)
    if blocked is not None:
        g = jnp.where(blocked, 0, g)
    flat = _flat(g)
    count = max(1, round(share * flat.shape[1]))
    places = lax.top_k(jnp.abs(flat), count)[1]
    used = jax.vmap(lambda g, i: jnp.zeros_like(g).at[i].set(jnp.sign(g[i])))(flat, places)
    if norm == "l1":
        used = used / jnp.maximum(jnp.sum(jnp.abs(used), axis=1, keepdims=True), 1)
    return used.reshape(grad.shape)


def example_keys(key: Key, x: Array) -> Array:
    """One key per example, ``fold_in(key, i)``: what is drawn for one ignores its neighbours.

    Args:
      key: a random key.
      x: ``[B, ...]``; only its length is used.

    Returns:
      Keys ``[B]``.

    Raises:
      TypeError: if ``key`` is not a random key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> many, few = (example_keys(jax.random.key(0), jnp.zeros(n)) for n in (3, 1))
      >>> bool(many[0] == few[0])
      True
    """
    rows = jnp.arange(x.shape[0]) + zeros_by_example(x, jnp.int32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def zeros_by_example(x: Array, dtype: Any) -> Array:
    """Zeros ``[B]`` that are sharded as ``x`` is: what one `vmap` maps over has to agree.

    Args:
      x: ``[B, ...]``; only its length and its sharding are used.
      dtype: of the zeros.

    Returns:
      ``[B]``.

    Raises:
      AttributeError: if ``x`` is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> zeros_by_example(jnp.ones((2, 3)), jnp.int32).tolist()
      [0, 0]
    """
    return jnp.sum(jnp.zeros_like(x, dtype), axis=tuple(range(1, x.ndim)), dtype=dtype)


def sample(key: Key, x: Array, eps: Number, norm: str) -> Array:
    """Uniform perturbations in the eps-ball, one per example, before any clipping to the box.

    Args:
      key: a random key, consumed; example i draws from ``fold_in(key, i)``.
      x: ``[B, ...]``; only its shape and dtype are used.
      eps: radius, scalar or ``[B]``.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
      ``[B, ...]`` in the dtype of ``x``, uniform in the ball.

    Raises:
      ValueError: on another norm, or concrete ``eps < 0``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> delta = sample(jax.random.key(0), jnp.zeros((2, 5)), 0.1, "l2")
      >>> bool((jnp.linalg.norm(delta, axis=1) <= 0.1).all())
      True
    """
    check_choice("norm", norm, ("linf", "l2", "l1"))
    check_number("eps", eps, low=0)
    shape, size = x.shape[1:], max(math.prod(x.shape[1:]), 1)
    dtype = wide(x)

    def unit(key: Key) -> Array:
        if norm == "linf":
            return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
        key_direction, key_radius = jax.random.split(key)
        if norm == "l2":
            g = jax.random.normal(key_direction, (size,), dtype)
            radius = jax.random.uniform(key_radius, (), dtype) ** (1.0 / size)
            return (radius * g / jnp.linalg.norm(g)).reshape(shape)
        # D + 1 exponentials, normalised: the first D are uniform in the corner of the simplex.
        e = jax.random.exponential(key_direction, (size + 1,), dtype)
        signs = jax.random.rademacher(key_radius, (size,), dtype)
        return (signs * e[:-1] / jnp.sum(e)).reshape(shape)

    draws = jax.vmap(unit)(example_keys(key, x))
    return draws.astype(x.dtype) * jnp.maximum(expand(eps, x), 0)
