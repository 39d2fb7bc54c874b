"""Square attack: random search with squares, from scores alone."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax import loops
from spax.checks import check_choice, check_count, check_key, check_number
from spax.evasion.adaptive_ascent import radii
from spax.evasion.fgsm import _Best, _check, _fold_in, objective
from spax.gradients.convolutions import canonical_convolutions
from spax.losses import margin
from spax.norms import displace, example_keys, project, zeros_by_example
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Key,
    Model,
    Number,
    PerExampleLoss,
    call,
    each_row,
    wide,
)

__all__ = ["SquareInfo", "square"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 iterations


class SquareInfo(NamedTuple):
    """What the judge cannot recompute, ``[B]``."""

    queries: Array  # int32, up to the first success


def shares(steps: int, reschedule: bool) -> np.ndarray:
    """By what p is multiplied at every iteration, 1 down to 1/512, ``[steps]``."""
    i = np.arange(steps)
    at = (i * 10_000) // max(steps, 1) if reschedule else i
    return 0.5 ** np.sum(at[:, None] > np.asarray(_HALVINGS)[None, :], axis=1)


class _Grid(NamedTuple):
    """An example as an image: its extents, and how many channels."""

    sides: tuple[int, ...]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.sides, self.channels)

    def axis(self, d: int) -> Array:
        """Coordinates along extent d, broadcasting against an image ``[..., channels]``."""
        shape = [1] * (len(self.sides) + 1)
        shape[d] = self.sides[d]
        return jnp.arange(self.sides[d], dtype=jnp.int32).reshape(shape)


def _grid(x: Array) -> _Grid:
    if x.ndim < 3:
        return _Grid((math.prod(x.shape[1:]),), 1)
    return _Grid(x.shape[1:-1], x.shape[-1])


def _signs(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.rademacher(key, shape, dtype)


def _side(p: Array, grid: _Grid) -> Array:
    """The side of a square that holds a share p of the pixels, an integer; at least 1."""
    exact = (p * math.prod(grid.sides)) ** (1 / len(grid.sides))
    return jnp.maximum(jnp.round(exact), 1).astype(jnp.int32)


def _corner(key: Key, side: Array, grid: _Grid) -> list[Array]:
    """Uniform among the places of a square of this side."""
    u = jax.random.uniform(key, (len(grid.sides),))
    room = [jnp.maximum(n - side, 0) for n in grid.sides]
    return [
        jnp.minimum((u[d] * (r + 1).astype(u.dtype)).astype(jnp.int32), r)
        for d, r in enumerate(room)
    ]


def _inside(corner: list[Array], side: Array, grid: _Grid) -> Array:
    """Mask of a square, ``[*sides, 1]``: its side is traced, so that it cannot be a slice."""
    mask = jnp.ones((1,) * (len(grid.sides) + 1), bool)
    for d, c in enumerate(corner):
        mask = mask & (grid.axis(d) >= c) & (grid.axis(d) < c + side)
    return mask


# ---- linf


def _stripes(key: Key, grid: _Grid, dtype: Any) -> Array:
    """Random signs, constant along the first extent of an image."""
    shape = (1, *grid.shape[1:]) if len(grid.sides) > 1 else grid.shape
    return jnp.broadcast_to(_signs(key, shape, dtype), grid.shape)


def _recolour(key: Key, delta: Array, eps: Array, p: Array, grid: _Grid) -> Array:
    """A square of one sign a channel: added and clipped to the ball, it replaces what is there."""
    key_corner, key_signs = jax.random.split(key)
    side = _side(p, grid)
    colour = _signs(key_signs, (1,) * len(grid.sides) + (grid.channels,), delta.dtype)
    return jnp.where(_inside(_corner(key_corner, side, grid), side, grid), eps * colour, delta)


# ---- l2


def _bump(row: Array, col: Array, high: Any, across: Any, sums: Array) -> Array:
    """Squares nested around the middle of a rectangle, of heights 1/k^2; 0 outside of it."""
    layers = jnp.maximum(high // 2, across // 2) + 1
    ring = jnp.maximum(jnp.abs(row - high // 2), jnp.abs(col - across // 2))
    last = sums.shape[0] - 1
    value = sums[jnp.minimum(layers, last)] - sums[jnp.minimum(ring, last)]
    inside = (row >= 0) & (row < high) & (col >= 0) & (col < across)
    return jnp.where(inside & (ring < layers), value, 0)


def _unit(v: Array, axis: Any = None) -> Array:
    size = jnp.sqrt(jnp.sum(v * v, axis=axis, keepdims=True))
    return v / jnp.where(size > 0, size, 1)


def _dipole(row: Array, col: Array, side: Any, sums: Array) -> Array:
    """Two bumps of opposite signs, one above the other, that fill a square; of l2 norm 1."""
    upper = side // 2
    return _unit(
        _unit(_bump(row, col, upper, side, sums))
        - _unit(_bump(row - upper, col, side - upper, side, sums))
    )


def _sums(size: int) -> Array:
    """``sum_{k <= i} 1 / k^2`` for i = 0 to ``size``."""
    return jnp.asarray(np.cumsum([0.0, *(1 / k**2 for k in range(1, size + 1))]), jnp.float32)


def _tiles(key: Key, grid: _Grid, dtype: Any) -> Array:
    """Dipoles of random signs and directions, 5 to the shorter side; of l2 norm 1 together."""
    height, width = grid.sides
    side = max(min(height, width) // 5, 1)
    counts = height // side, width // side
    key_signs, key_flips = jax.random.split(key)
    at = jnp.arange(side, dtype=jnp.int32)
    row, col = jnp.broadcast_arrays(at[:, None], at[None, :])
    upright = _dipole(row, col, jnp.int32(side), _sums(side + 1))
    signs = _signs(key_signs, (*counts, grid.channels), upright.dtype)
    flips = jax.random.bernoulli(key_flips, shape=(*counts, 1, 1))
    tiles = jnp.where(flips, upright.T[None, None], upright[None, None])  # [down, across, s, s]
    image = jnp.swapaxes(tiles, 1, 2).reshape(counts[0] * side, counts[1] * side, 1)
    image = image * jnp.repeat(jnp.repeat(signs, side, axis=0), side, axis=1)
    rest = [n - c * side for n, c in zip(grid.sides, counts, strict=True)]
    pads = [(r // 2, r - r // 2) for r in rest]
    return _unit(jnp.pad(image, [*pads, (0, 0)])).astype(dtype)


def _move_mass(key: Key, delta: Array, eps: Array, p: Array, grid: _Grid) -> Array:
    """Algorithm 3: what a second window holds, and what the ball leaves, goes to a first one."""
    keys = jax.random.split(key, 4)
    largest = min(grid.sides) - 1 + min(grid.sides) % 2
    side = jnp.minimum(jnp.maximum(_side(p, grid), 3) | 1, largest)
    corner, other = (_corner(k, side, grid) for k in keys[:2])
    first, second = (_inside(c, side, grid) for c in (corner, other))
    row, col = (grid.axis(d)[..., 0] - corner[d] for d in (0, 1))
    flip = jax.random.bernoulli(keys[2])
    row, col = jnp.where(flip, col, row), jnp.where(flip, row, col)
    fresh = _dipole(row, col, side, _sums(max(grid.sides) + 1))[..., None].astype(delta.dtype)
    fresh = fresh * _signs(keys[3], (1, 1, grid.channels), delta.dtype)

    def squares(v: Array) -> Array:
        return jnp.sum(v * v, axis=(0, 1), keepdims=True)

    unused = jnp.maximum(eps * eps - jnp.sum(delta * delta), 0)
    budget = squares(jnp.where(first | second, delta, 0)) + unused / grid.channels
    old = _unit(jnp.where(first, delta, 0), axis=(0, 1))
    filled = jnp.sqrt(budget) * _unit(fresh + old, axis=(0, 1))
    return jnp.where(first, filled, jnp.where(second, 0, delta))


def search(
    goal: Any,
    x: Array,
    keys: Array,
    key: Key | None,
    *,
    eps: Number,
    p_init: Number,
    steps: int,
    reschedule: bool,
    norm: str,
    bounds: Bounds,
    active: Array,
) -> tuple[_Best, Array]:
    """The search, from one key ``[B]`` an example; rows that are not active do not count.

    Returns:
      The best points, and the queries ``[B]`` that each example took.
    """
    grid = _grid(x)
    begin, change = (_stripes, _recolour) if norm == "linf" else (_tiles, _move_mass)
    radius = radii(eps, x).astype(x.dtype)
    p = jnp.asarray(p_init, wide(x)) + zeros_by_example(x, wide(x))
    share = jnp.asarray(shares(steps, reschedule), wide(x))
    look = canonical_convolutions(lambda z, k: call(goal, z, k))

    def propose(i: Array, z: Array) -> Array:
        def first(key: Key, delta: Array, eps: Array, p: Array) -> Array:
            return eps * begin(key, grid, delta.dtype)

        def later(key: Key, delta: Array, eps: Array, p: Array) -> Array:
            return change(key, delta, eps, p * share[i], grid)

        deltas = (z - x).reshape(-1, *grid.shape)
        drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        new = lax.cond(i == 0, jax.vmap(first), jax.vmap(later), drawn, deltas, radius, p)
        return displace(x, project(new.reshape(x.shape), x, eps, norm, bounds), bounds)

    value, fooled = jax.eval_shape(lambda z, k: call(goal, z, k), x, key)
    lowest = jnp.full(value.shape, -jnp.inf, value.dtype)

    def running(best: _Best) -> Array:
        return active & (best.fooled < 1)

    def go(carry: tuple[Array, _Best, Array]) -> Array:
        return (carry[0] < steps) & jnp.any(running(carry[1]))

    def step(carry: tuple[Array, _Best, Array]) -> tuple[Array, _Best, Array]:
        i, best, queries = carry
        z = propose(i, best.x)
        value, fooled = look(z, _fold_in(key, i))
        now = running(best)
        wins = now & ((value > best.value) | (fooled > best.fooled))
        rows = each_row(wins, x)
        best = _Best(
            jnp.where(rows, z, best.x),
            jnp.where(wins, fooled, best.fooled),
            jnp.where(wins, value, best.value),
        )
        return i + 1, best, queries + now.astype(jnp.int32)

    unseen = _Best(x, jnp.full(fooled.shape, -1, fooled.dtype), lowest)
    start = (jnp.int32(0), unseen, jnp.zeros(x.shape[:1], jnp.int32))
    _, best, queries = loops.while_loop(go, step, start)
    return best, queries


def square(
    logits_fn: Model,
    x: Array,
    y: Any,
    *,
    key: Key | None = None,
    eps: Number,
    p_init: Number = 0.8,
    steps: int = 5000,
    reschedule: bool = True,
    norm: str = "linf",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = margin,
    criterion: Criterion | None = None,
    return_info: bool = False,
) -> Any:
    """Square attack: random search by squares, which needs the scores of the model alone.

    linf: from random vertical stripes, a square at a random place gets plus or minus eps in each
    channel. l2: from a grid of bumps, the mass of a random window moves to another. A change is
    kept where the loss rises or the criterion holds. The squares shrink as the search goes on.

    The last dimension of ``x`` is its channels, those before it its extents; with one extent the
    squares are intervals, and ``[B, D]`` is one extent of one channel.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic. It is never differentiated.
      x: inputs ``[B, ...]``, floating, within ``bounds``; for l2 images ``[B, H, W, C]``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K); any pytree with leading B
        that ``loss`` and ``criterion`` understand.
      key: a random key.
      eps: radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      p_init: share of the pixels in the first squares, in (0, 1], scalar or ``[B]``. It is halved
        after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 steps.
      steps: number of queries, the start included, static.
      reschedule: whether that schedule is shrunk to ``steps`` (as the paper's authors do for other
        budgets), or taken as it is (as AutoAttack does: 5,000 steps, of the schedule of 10,000).
      norm: ``"linf"`` or ``"l2"``.
      targeted: whether to lower the loss of ``y`` instead of raising it.
      bounds: valid range of the inputs.
      loss: ``(outputs, y) -> [B]``.
      criterion: ``(outputs, y) -> bool [B]``, success; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted.
      return_info: whether to return ``SquareInfo(queries)`` too.

    Returns:
      The first point seen that fools, else the one of highest loss; with ``return_info`` the pair
      ``(x_adv, SquareInfo)``.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in the norm, up to one rounding of the norm itself.
      An example is searched until it fools, the loop runs until all do; places and signs are drawn
      for each example on its own.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, a label is outside the classes, eps < 0 or p_init outside (0, 1]; if steps < 1; if
        key is None; for l2 if x is not ``[B, H, W, C]`` with H, W >= 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(
      ...     lambda w, x, y, key: square(lambda x: x @ w, x, y, key=key, eps=0.1, steps=20))
      >>> x = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]), jnp.array([0]), jax.random.key(0))
      >>> bool(x[0, 1] > x[0, 0])
      True

    References:
      M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, Square attack: a query-efficient
      black-box adversarial attack via random search, 2019, arXiv:1912.00049, Algorithms 1 to 3.
      The published code draws one place a step for the whole batch, and never the last one.
    """
    check_choice("norm", norm, ("linf", "l2"))
    _check(logits_fn, x, y, key, eps, bounds)
    check_number("p_init", p_init, low=0, low_open=True, high=1)
    check_count("steps", steps)
    if norm == "l2" and (x.ndim != 4 or min(x.shape[1:3]) < 3):
        raise ValueError(
            f"square with norm='l2' needs images [B, H, W, C], H, W >= 3 (got x.shape={x.shape})"
        )
    key_search, key_model = jax.random.split(check_key(key, "square"))
    best, queries = search(
        objective(logits_fn, y, loss=loss, criterion=criterion, targeted=targeted),
        x,
        example_keys(key_search, x),
        key_model,
        eps=eps,
        p_init=p_init,
        steps=steps,
        reschedule=reschedule,
        norm=norm,
        bounds=bounds,
        active=jnp.ones(x.shape[:1], bool),
    )
    return (best.x, SquareInfo(queries)) if return_info else best.x
