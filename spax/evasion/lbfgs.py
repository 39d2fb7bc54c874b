"""The L-BFGS attack, and the box-constrained minimiser behind it."""

from collections.abc import Callable
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from spax import loops
from spax.checks import check_batch, check_count, check_key, check_number
from spax.gradients.convolutions import canonical_convolutions
from spax.losses import cross_entropy, hits
from spax.norms import box
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Key,
    Model,
    Number,
    PerExampleLoss,
    PyTree,
    Stochastic,
    call,
    each_row,
    wide,
)

__all__ = ["Info", "lbfgs", "minimize_lbfgs_box"]

_HALVINGS = 12
_SLOPE = 1e-4  # Armijo's
_FLAT = 1e-10  # pairs of less curvature than this are no use


class Info(NamedTuple):
    """What the judge cannot recompute: the weight of the loss, ``[B]``; inf: nothing found."""

    const: Array


class _Pairs(NamedTuple):
    """The last steps s and changes q of the gradient, ``[m, B, D]``, oldest first; 0: unused."""

    s: Array
    q: Array


class _Search(NamedTuple):
    step: Array
    z: Array
    f: Array
    g: Array
    pairs: _Pairs
    fresh: Array  # bool [B]: no pair yet
    active: Array


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=-1, keepdims=True)


def _direction(g: Array, pairs: _Pairs, free: Array) -> Array:
    """The two-loop recursion among the free entries."""
    g = jnp.where(free, g, 0)
    s = jnp.where(free[None], pairs.s, 0)
    q = jnp.where(free[None], pairs.q, 0)
    curvature = _dot(s, q)
    useful = curvature > _FLAT * _dot(q, q)
    rho = jnp.where(useful, 1 / jnp.where(useful, curvature, 1), 0)

    def down(v: Array, pair: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        s, q, rho = pair
        a = rho * _dot(s, v)
        return v - a * q, a

    def up(v: Array, pair: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        s, q, rho, a = pair
        return v + (a - rho * _dot(q, v)) * s, None

    # The first step has length one; later ones take the scale of the newest useful pair.
    size = jnp.sqrt(_dot(g, g))
    first = 1 / jnp.where(size > 0, size, 1)

    def newest(scale: Array, pair: tuple[Array, Array, Array]) -> tuple[Array, None]:
        q, curvature, useful = pair
        ratio = curvature / jnp.where(useful, _dot(q, q), 1)
        return jnp.where(useful, ratio, scale), None

    scale, _ = loops.scan(newest, first, (q, curvature, useful))
    v, a = loops.scan(down, g, (s, q, rho), reverse=True)
    v, _ = loops.scan(up, scale * v, (s, q, rho, a))
    d = -jnp.where(free, v, 0)
    # Rounding, or a loss that is not smooth, can turn it uphill.
    return jnp.where(_dot(d, g) < 0, d, -first * g)


def minimize_lbfgs_box(
    fun: Callable[[Array], Array],
    z0: Array,
    low: Number,
    high: Number,
    *,
    steps: int = 100,
    history: int = 10,
) -> tuple[Array, Array]:
    """Minimises many functions at once inside a box, by projected L-BFGS.

    A step: entries at the box whose gradient points out of it are held; among the others the
    two-loop recursion gives a direction d; the point moves to ``clip(z + a d)`` for the first a of
    1, 1/2, ..., 2^-12 that satisfies Armijo's condition. A row ends when no step lowers its
    function measurably, with the memory forgotten once before.

    Args:
      fun: ``[B, D] -> [B]``, differentiable, row by row.
      z0: where to start, floating ``[B, D]``, clipped to the box.
      low: lower ends, a scalar, ``[D]`` or ``[B, D]``; may be -inf.
      high: upper ends, likewise.
      steps: steps, static, >= 1; the loop ends when all rows have.
      history: pairs that are remembered, static, >= 1.

    Returns:
      ``(z [B, D], f [B])``, the last points and their values, never above those of ``z0``.

    Guarantees:
      Within the box; the values never rise; no row's result depends on its neighbours. The result
      cannot be differentiated in reverse mode.

    Raises:
      ValueError: if ``z0`` is not a floating ``[B, D]``, a concrete low > high, or steps or
        history < 1; if ``fun`` does not give one value a row.

    Example:
      >>> import jax.numpy as jnp
      >>> z, f = minimize_lbfgs_box(
      ...     lambda z: ((z - 2.0) ** 2).sum(1), jnp.zeros((1, 2)), 0.0, jnp.array([1.0, 5.0]))
      >>> [round(v, 3) for v in z[0].tolist()]
      [1.0, 2.0]

    References:
      R. Byrd, P. Lu, J. Nocedal, C. Zhu, A limited memory algorithm for bound constrained
      optimization, 1995, for the problem (the L-BFGS-B of SciPy). Here the active set comes from
      the gradient's signs, and the arc of the projection is searched, as in D. Bertsekas,
      Projected Newton methods for optimization problems with simple constraints, 1982.
    """
    check_count("steps", steps)
    check_count("history", history)
    check_batch(z0)
    if z0.ndim != 2:
        raise ValueError(f"z0 must have shape [B, D] (got z0.shape={z0.shape})")
    low, high = (_ends(name, end, z0) for name, end in (("low", low), ("high", high)))
    check_number("high - low", high - low, low=0)
    dtype = wide(z0)

    def value(z: Array) -> Array:
        f = fun(z)
        if f.shape != z.shape[:1]:
            raise ValueError(
                f"fun must give one value a row, shape {z.shape[:1]} (got shape {f.shape})"
            )
        return f.astype(dtype)

    def total(z: Array) -> tuple[Array, Array]:
        f = value(z)
        return jnp.sum(f), f

    look = canonical_convolutions(jax.grad(total, has_aux=True))
    try_out = canonical_convolutions(value)

    def slope(z: Array) -> tuple[Array, Array]:
        g, f = look(z)
        g = g.astype(dtype)
        return f, jnp.where(jnp.isfinite(g), g, 0)

    def line_search(state: _Search, d: Array) -> tuple[Array, Array, Array]:
        """The first point on the arc that is low enough: (z, f, whether there is one)."""

        def halve(carry: tuple) -> tuple:
            i, length, z, f, searching = carry
            rival = jnp.clip(state.z + (length * d).astype(z.dtype), low, high)
            rival_f = try_out(rival)
            gain = _dot(state.g, (rival - state.z).astype(dtype))[:, 0]
            found = searching & (rival_f <= state.f + _SLOPE * gain) & (rival_f < state.f)
            z = jnp.where(found[:, None], rival, z)
            return i + 1, length / 2, z, jnp.where(found, rival_f, f), searching & ~found

        start = jnp.zeros((), jnp.int32), jnp.ones((), dtype), state.z, state.f, state.active
        *_, z, f, searching = loops.while_loop(
            lambda c: (c[0] <= _HALVINGS) & c[4].any(), halve, start
        )
        return z, f, state.active & ~searching

    def advance(state: _Search) -> _Search:
        held = ((state.z <= low) & (state.g > 0)) | ((state.z >= high) & (state.g < 0))
        d = _direction(state.g, state.pairs, ~held)
        z, f, moved = line_search(state, d)
        _, g = slope(z)
        s, q = (z - state.z).astype(dtype), g - state.g
        useful = (moved & (_dot(s, q)[:, 0] > _FLAT * _dot(q, q)[:, 0]))[None, :, None]

        def push(old: Array, new: Array) -> Array:
            pushed = jnp.where(useful, jnp.concatenate([old[1:], new[None]]), old)
            return jnp.where(moved[None, :, None], pushed, 0)

        measurable = state.f - f > jnp.finfo(dtype).eps * jnp.abs(state.f)
        # A row that came to rest with a memory gets one more try without.
        stays = state.active & jnp.where(moved, measurable, ~state.fresh)
        pairs = _Pairs(push(state.pairs.s, s), push(state.pairs.q, q))
        fresh = jnp.where(moved, state.fresh & ~useful[0, :, 0], True)
        return _Search(state.step + 1, z, f, g, pairs, fresh, stays)

    z = jnp.clip(z0, low, high)
    f, g = slope(z)
    nothing = jnp.broadcast_to(jnp.zeros_like(z, dtype), (history, *z.shape))
    rows = jnp.ones(z.shape[:1], bool)
    first = _Search(jnp.zeros((), jnp.int32), z, f, g, _Pairs(nothing, nothing), rows, rows)
    last = loops.while_loop(lambda s: (s.step < steps) & s.active.any(), advance, first)
    return last.z, last.f


def _ends(name: str, end: Number, z: Array) -> Array:
    end = jnp.asarray(end, z.dtype)
    if end.shape not in ((), z.shape[1:], z.shape):
        raise ValueError(
            f"{name} must be a scalar, or of shape {z.shape[1:]} or {z.shape} (got {end.shape})"
        )
    return jnp.broadcast_to(end if end.ndim == 2 else end.reshape(1, -1), z.shape)


class _Bracket(NamedTuple):
    low: Array  # the largest weight that failed
    high: Array  # the smallest that hit; inf: none
    weight: Array
    x: Array
    distance: Array
    const: Array


@overload
def lbfgs(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    initial_weight: Number = ...,
    steps: int = ...,
    history: int = ...,
    search_steps: int = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    loss: PerExampleLoss = ...,
    criterion: Criterion | None = ...,
    return_info: Literal[False] = ...,
) -> Array: ...
@overload
def lbfgs(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    initial_weight: Number = ...,
    steps: int = ...,
    history: int = ...,
    search_steps: int = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    loss: PerExampleLoss = ...,
    criterion: Criterion | None = ...,
    return_info: Literal[True],
) -> tuple[Array, Info]: ...
def lbfgs(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    initial_weight: Number = 1e-2,
    steps: int = 100,
    history: int = 10,
    search_steps: int = 15,
    targeted: bool = True,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    criterion: Criterion | None = None,
    return_info: bool = False,
) -> Array | tuple[Array, Info]:
    """L-BFGS attack: the least perturbation (l2) towards a wanted label, the first of its kind.

    Minimises ``|z - x|_2^2 + w loss(logits(z), y)`` over the box by `minimize_lbfgs_box`, each time
    from x, in ``search_steps`` rounds: per example, w grows tenfold until a round hits, at most six
    times, and is bisected afterwards, in its logarithm. The smallest w that hits costs least.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic (then one draw a round, for
        a line search must compare like with like).
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: the wanted labels, int ``[B]`` in [0, K).
      key: a random key, for a Stochastic model.
      initial_weight: first weight w of the loss, > 0, scalar or ``[B]``: the paper's 1 / c.
      steps: steps of L-BFGS a round, static, >= 1.
      history: pairs that L-BFGS remembers, static, >= 1.
      search_steps: rounds, static, >= 1.
      targeted: True; there is no other form.
      bounds: valid range of the inputs.
      loss: ``(outputs, y) -> [B]``, differentiable, lowered.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.hits`.
      return_info: static; whether to return the `Info` too.

    Returns:
      ``x_adv``, the nearest of the rounds' results that hit, and ``x`` itself where none did or
      where ``x`` hits already; with ``return_info=True`` also ``Info(const)``: the w at which it
      was found (0 for x itself, inf for none).

    Guarantees:
      Within ``bounds``; no example's result depends on its neighbours. The result cannot be
      differentiated in reverse mode.

    Raises:
      ValueError: if targeted is False; on a wrong shape or dtype; if concrete inputs are not finite
        or out of bounds, a label is outside the classes, or a number is out of its range; if the
        model draws and key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y: lbfgs(lambda x: x @ w, x, y, steps=10, search_steps=9))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.4]]), jnp.array([1]))
      >>> bool(x_adv[0, 1] > x_adv[0, 0]), [round(v, 2) for v in x_adv[0].tolist()]
      (True, [0.5, 0.5])

    References:
      C. Szegedy et al., Intriguing properties of neural networks, 2013, arXiv:1312.6199,
      Section 4.1. Its penalty is ``c |r|``; the square is smooth at 0, where the search starts.
      Bae et al. write the problem without the box and the penalty that is solved (Eq 8).
    """
    if not targeted:
        raise ValueError("lbfgs has a targeted form only (got targeted=False)")
    check_batch(x, y, bounds)
    check_number("initial_weight", initial_weight, low=0, low_open=True)
    check_count("steps", steps)
    check_count("history", history)
    check_count("search_steps", search_steps)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")

    judged = criterion or hits
    dtype = wide(x)
    batch = x.shape[0]
    size = x.size // batch if batch else 0
    low, high = (b.astype(dtype).reshape(batch, size) for b in box(bounds, x))
    origin = x.astype(dtype).reshape(batch, size)

    def key_at(i: Array | int) -> Key | None:
        return None if key is None else jax.random.fold_in(key, i)

    def outputs(z: Array, key: Key | None) -> PyTree:
        return call(logits_fn, z.reshape(x.shape).astype(x.dtype), key)

    def squared(z: Array) -> Array:
        return jnp.sum((z - origin) ** 2, axis=1)

    verdict = canonical_convolutions(lambda z, k: judged(outputs(z, k), y))

    def round_(r: Array, state: _Bracket) -> _Bracket:
        key = key_at(r + 1)

        def objective(z: Array) -> Array:
            return squared(z) + state.weight * loss(outputs(z, key), y).astype(dtype)

        z, _ = minimize_lbfgs_box(objective, origin, low, high, steps=steps, history=history)
        z = z.reshape(x.shape).astype(x.dtype)
        hit = verdict(z, key)
        distance = squared(z.astype(dtype).reshape(batch, size))
        nearer = hit & (distance < state.distance)
        rows = each_row(nearer, x)
        lower = jnp.where(hit, state.low, state.weight)
        upper = jnp.where(hit, state.weight, state.high)
        more = jnp.where(r < 6, state.weight * 10, state.weight)
        middle = jnp.where(lower > 0, jnp.sqrt(lower) * jnp.sqrt(upper), upper / 10)
        return _Bracket(
            lower,
            upper,
            jnp.where(upper < jnp.inf, middle, more),
            jnp.where(rows, z, state.x),
            jnp.where(nearer, distance, state.distance),
            jnp.where(nearer, state.weight, state.const),
        )

    already = verdict(x, key_at(0))
    none = jnp.full(x.shape[:1], jnp.inf, dtype)
    known = jnp.where(already, 0, none)
    weight = jnp.broadcast_to(jnp.asarray(initial_weight, dtype), x.shape[:1])
    state = _Bracket(jnp.zeros_like(none), none, weight, x, known, known)
    state = loops.fori_loop(0, search_steps, round_, state)
    return (state.x, Info(state.const)) if return_info else state.x
