"""Attacks that see decisions only: along the boundary, from an example that fools already."""

import math
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import lax

from spax import loops
from spax.checks import check_choice, check_count, check_key, check_number
from spax.evasion.oracle import Info
from spax.evasion.starts import (
    bisect,
    distance_of,
    find_start,
    normal,
    prepare,
    tolerance,
    verdict,
)
from spax.norms import box, example_keys, steepest
from spax.norms import norm as norm_of
from spax.typing import Array, Bounds, Criterion, Key, Model, Number, PyTree, each_row, expand, wide

__all__ = ["boundary", "hop_skip_jump"]

_CHUNK = 25  # directions in one evaluation of the model, at most
_HALVINGS = 25  # of a step that does not fool
_EVERY, _SPHERICAL, _FULL = 10, 100, 30  # Boundary: how often it looks, and its two windows
_CONVERGED = 1e-7


class _Walk(NamedTuple):
    t: Array
    z: Array
    best: Array
    nearest: Array
    queries: Array
    active: Array


@overload
def hop_skip_jump(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    x_init: Array | None = ...,
    max_queries: Number | None = ...,
    steps: int = ...,
    init_evals: int = ...,
    max_evals: int = ...,
    norm: str = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    criterion: Criterion | None = ...,
    return_info: Literal[False] = ...,
) -> Array: ...
@overload
def hop_skip_jump(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    x_init: Array | None = ...,
    max_queries: Number | None = ...,
    steps: int = ...,
    init_evals: int = ...,
    max_evals: int = ...,
    norm: str = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    criterion: Criterion | None = ...,
    return_info: Literal[True],
) -> tuple[Array, Info]: ...
def hop_skip_jump(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    x_init: Array | None = None,
    max_queries: Number | None = None,
    steps: int = 40,
    init_evals: int = 100,
    max_evals: int = 10000,
    norm: str = "l2",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    criterion: Criterion | None = None,
    return_info: bool = False,
) -> Array | tuple[Array, Info]:
    """HopSkipJump: the nearest point that fools, from decisions alone, by estimated gradients.

    From a point that fools: bisection to the boundary on the way to x; there, the direction in
    which the decision changes, from ``B_t = init_evals sqrt(t)`` points around it; a step of length
    ``distance / sqrt(t)`` along it (linf: along its sign), halved until it fools; and again.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``: plain, Stochastic, or an `Oracle`.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K).
      key: a random key, always needed.
      x_init: points to start from, ``[B, ...]`` within ``bounds``, that fool: for a targeted attack
        examples of the wanted class. None: up to 100 draws of noise for each example, uniform
        at first, then darker and brighter.
      max_queries: rows that an example may cost, scalar or ``[B]``; None: no limit but the steps.
      steps: number of steps, static, >= 1.
      init_evals: decisions in the first gradient, static, >= 1.
      max_evals: decisions in a gradient at most, static, >= 1.
      norm: ``"l2"`` or ``"linf"``.
      targeted: whether ``y`` are wanted labels.
      bounds: valid range of the inputs, finite.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted. All that the attack sees of a model.
      return_info: static; whether to return the `Info` too.

    Returns:
      ``x_adv``, the nearest point on the boundary found, and ``x`` itself where no start fools or
      where ``x`` succeeds already; with ``return_info=True`` also ``Info(queries)``: the rows
      asked, x and the starts included.

    Guarantees:
      Within ``bounds``; never more than ``max_queries`` rows an example, and finished examples are
      not asked. No example's result depends on its neighbours.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, a label is outside the classes, or a number out of its range; if key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y, key: hop_skip_jump(
      ...     lambda x: x @ w, x, y, key=key, steps=10))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.4]]), jnp.array([0]), jax.random.key(0))
      >>> bool(x_adv[0, 1] > x_adv[0, 0]), x_adv.round(2).tolist()
      (True, [[0.5, 0.5]])

    References:
      J. Chen, M. Jordan, M. Wainwright, HopSkipJumpAttack: a query-efficient decision-based attack,
      2019, arXiv:1904.02144, Algorithm 2. Deviations: bisection stops at ``D^-1.5`` (l2) or
      ``D^-2`` (linf) of the way, kept within [1e-6, 1e-3]; a budget is not spent on a gradient
      that leaves too little for a step and the bisection after it.
    """
    check_choice("norm", norm, ("l2", "linf"))
    for name, count in (("steps", steps), ("init_evals", init_evals), ("max_evals", max_evals)):
        check_count(name, count)
    budget = prepare(x, y, x_init, max_queries, bounds)
    fools = verdict(logits_fn, y, criterion, targeted)
    key_start, key_walk = jax.random.split(check_key(key, "hop_skip_jump"))

    dtype, size = wide(x), max(math.prod(x.shape[1:]), 1)
    theta = tolerance(x, norm)
    low, high = box(bounds, x)
    side = jnp.mean((high - low).astype(dtype), axis=tuple(range(1, x.ndim)))
    wanted = jnp.asarray(
        [0] + [min(int(init_evals * math.sqrt(t)), max_evals) for t in range(1, steps + 1)],
        jnp.int32,
    )
    chunk = min(_CHUNK, init_evals, max_evals)
    # A gradient is of no use without a step and the way back to the boundary.
    reserve = 1 + math.ceil(-math.log2(theta))

    def unit(key: Key) -> Array:
        if norm == "l2":
            u = normal(key, x)
        else:
            draw = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:], dtype, -1.0, 1.0))
            u = draw(example_keys(key, x))
        return u / expand(norm_of(u, "l2"), u)

    def slope(z: Array, delta: Array, evals: Array, key: Key) -> Array:
        """The direction in which the criterion's sign rises, from ``evals [B]`` decisions."""

        def look(carry: tuple) -> tuple:
            i, sum_u, sum_hit, hits_ = carry
            key_u, key_ask = jax.random.split(jax.random.fold_in(key, i))
            live = (i * chunk + jnp.arange(chunk))[:, None] < evals[None, :]
            u = jax.vmap(unit)(jax.random.split(key_u, chunk))
            step = expand(delta, z.astype(dtype))[None]
            p = z.astype(dtype)[None] + step * u
            p = jnp.clip(p.astype(x.dtype), low[None], high[None])
            hit = fools(p, live, key_ask)
            # What was asked, after clipping and rounding.
            u = jnp.where(each_row(live, p), (p.astype(dtype) - z.astype(dtype)[None]) / step, 0)
            return (
                i + 1,
                sum_u + u.sum(0),
                sum_hit + jnp.where(each_row(hit, u), u, 0).sum(0),
                hits_ + hit.sum(0, dtype=dtype),
            )

        none = jnp.zeros(x.shape, dtype)
        carry = (jnp.zeros((), jnp.int32), none, none, jnp.zeros(x.shape[:1], dtype))
        _, sum_u, sum_hit, hits_ = loops.while_loop(
            lambda c: jnp.any(c[0] * chunk < evals), look, loops.varying(carry, x)
        )
        # phi = 2 hit - 1; its mean is the baseline, unless all agree.
        mean = 2 * hits_ / jnp.maximum(evals, 1).astype(dtype) - 1
        baseline = jnp.where(jnp.abs(mean) >= 1, 0, mean)
        return steepest(2 * sum_hit - sum_u - expand(baseline, sum_u) * sum_u, norm)

    def stride(walk: _Walk, direction: Array, length: Array, live: Array, key: Key) -> tuple:
        """The first point on the way out that fools: (point, whether there is one, queries)."""
        z = walk.z.astype(dtype)

        def open_(i: Array, _: Array, found: Array, queries: Array) -> Array:
            return live & ~found & (queries < budget) & (i < _HALVINGS)

        def attempt(carry: tuple) -> tuple:
            i, point, found, queries = carry
            asked = open_(*carry)
            out = z + expand(length * 0.5 ** i.astype(dtype), z) * direction
            candidate = jnp.clip(out.astype(x.dtype), low, high)
            hit = fools(candidate, asked, jax.random.fold_in(key, i))
            return (
                i + 1,
                jnp.where(each_row(hit, x), candidate, point),
                found | hit,
                queries + asked.astype(jnp.int32),
            )

        carry = (jnp.zeros((), jnp.int32), walk.z, jnp.zeros_like(live), walk.queries)
        return loops.while_loop(lambda c: jnp.any(open_(*c)), attempt, carry)[1:]

    def advance(walk: _Walk) -> _Walk:
        keys = jax.random.split(jax.random.fold_in(key_walk, walk.t), 3)
        distance = distance_of(walk.z, x, norm)
        affordable = budget - walk.queries - reserve
        evals = jnp.where(walk.active, jnp.minimum(wanted[walk.t], affordable), 0)
        going = evals > 0
        evals = jnp.where(going, evals, 0)
        scale = math.sqrt(size) * theta if norm == "l2" else size * theta
        delta = jnp.where(walk.t == 1, 0.1 * side, scale * distance)
        delta = jnp.maximum(delta, math.sqrt(size) * float(jnp.finfo(x.dtype).eps) * side)
        direction = slope(walk.z, delta, evals, keys[0])
        walk = walk._replace(queries=walk.queries + evals)

        length = distance / jnp.sqrt(jnp.maximum(walk.t, 1).astype(dtype))
        z, moved, queries = stride(walk, direction, length, going, keys[1])
        # The first round only brings the start to the boundary.
        moved = jnp.where(walk.t == 0, walk.active, moved)
        z, queries = bisect(
            fools, x, z, moved, queries, keys[2],
            budget=budget, norm=norm, theta=theta, bounds=bounds,
        )  # fmt: skip
        distance = distance_of(z, x, norm)
        nearer = moved & (distance < walk.nearest)
        return _Walk(
            walk.t + 1,
            z,
            jnp.where(each_row(nearer, x), z, walk.best),
            jnp.where(nearer, distance, walk.nearest),
            queries,
            walk.active & (going | (walk.t == 0)) & (queries + reserve < budget) & (distance > 0),
        )

    start = find_start(fools, x, x_init, key_start, budget, bounds)
    far = jnp.where(start.found, distance_of(start.z, x, norm), jnp.inf)
    walk = _Walk(jnp.zeros((), jnp.int32), start.z, start.z, far, start.queries, start.found)
    walk = loops.while_loop(lambda w: (w.t <= steps) & jnp.any(w.active), advance, walk)
    return (walk.best, Info(walk.queries)) if return_info else walk.best


class _Chain(NamedTuple):
    i: Array
    z: Array
    spherical: Array
    source: Array
    window: Array  # bool [B, 100]: which of the last proposals on the sphere fooled
    seen: Array  # how many of them there are
    window_full: Array  # bool [B, 30]: the same of the proposals with their step to x
    seen_full: Array
    queries: Array
    active: Array


@overload
def boundary(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    x_init: Array | None = ...,
    max_queries: Number | None = ...,
    spherical_step: Number = ...,
    source_step: Number = ...,
    adaptation: Number = ...,
    steps: int = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    criterion: Criterion | None = ...,
    return_info: Literal[False] = ...,
) -> Array: ...
@overload
def boundary(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    x_init: Array | None = ...,
    max_queries: Number | None = ...,
    spherical_step: Number = ...,
    source_step: Number = ...,
    adaptation: Number = ...,
    steps: int = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    criterion: Criterion | None = ...,
    return_info: Literal[True],
) -> tuple[Array, Info]: ...
def boundary(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    x_init: Array | None = None,
    max_queries: Number | None = None,
    spherical_step: Number = 0.01,
    source_step: Number = 0.01,
    adaptation: Number = 1.5,
    steps: int = 5000,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    criterion: Criterion | None = None,
    return_info: bool = False,
) -> Array | tuple[Array, Info]:
    """Boundary attack: the nearest point (l2) that fools, by a walk along the boundary.

    From a point that fools, brought to the boundary by bisection: a random move on the sphere
    around x, then a step towards x, accepted if it fools. Of every tenth move it is also asked
    whether it fools by itself; both lengths follow the shares of success, by the windows and
    thresholds of the authors' own implementation (100 and 30 moves; 0.5 and 0.2, 0.25 and 0.1).

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``: plain, Stochastic, or an `Oracle`.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K).
      key: a random key, always needed.
      x_init: points to start from, ``[B, ...]`` within ``bounds``, that fool: for a targeted attack
        examples of the wanted class. None: up to 100 draws of noise for each example, uniform
        at first, then darker and brighter.
      max_queries: rows that an example may cost, scalar or ``[B]``; None: no limit but the steps.
      spherical_step: first length of a move on the sphere, > 0, as a share of the distance.
      source_step: first length of a step towards x, > 0, likewise. An example rests once its own
        is below 1e-7.
      adaptation: factor by which the lengths change, >= 1.
      steps: number of moves, static, >= 1.
      targeted: whether ``y`` are wanted labels.
      bounds: valid range of the inputs, finite.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted. All that the attack sees of a model.
      return_info: static; whether to return the `Info` too.

    Returns:
      ``x_adv``, the last point, which is the nearest one; ``x`` itself where no start fools or
      where ``x`` succeeds already; with ``return_info=True`` also ``Info(queries)``: the rows
      asked, x and the starts included.

    Guarantees:
      As `hop_skip_jump`. The distance never rises.

    Raises:
      ValueError: on a wrong shape or dtype; if concrete inputs are not finite or out of bounds, a
        label is outside the classes, or a number out of its range; if key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y, key: boundary(
      ...     lambda x: x @ w, x, y, key=key, steps=300))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.4]]), jnp.array([0]), jax.random.key(0))
      >>> bool(x_adv[0, 1] > x_adv[0, 0]), bool(jnp.linalg.norm(x_adv - 0.5) < 0.2)
      (True, True)

    References:
      W. Brendel, J. Rauber, M. Bethge, Decision-based adversarial attacks: reliable attacks against
      black-box machine learning models, 2017, arXiv:1712.04248, Algorithm 1. Deviation: the start
      is brought to the boundary by bisection.
    """
    check_number("spherical_step", spherical_step, low=0, low_open=True)
    check_number("source_step", source_step, low=0, low_open=True)
    check_number("adaptation", adaptation, low=1)
    check_count("steps", steps)
    budget = prepare(x, y, x_init, max_queries, bounds)
    fools = verdict(logits_fn, y, criterion, targeted)
    key_start, key_bisect, key_walk = jax.random.split(check_key(key, "boundary"), 3)
    dtype, batch = wide(x), x.shape[:1]
    low, high = box(bounds, x)
    origin = x.astype(dtype)
    factor = jnp.broadcast_to(jnp.asarray(adaptation, dtype), batch)

    def clipped(z: Array) -> Array:
        return jnp.clip(z.astype(x.dtype), low, high)

    def propose(chain: _Chain, key: Key) -> tuple[Array, Array]:
        """A point on the sphere around x, and that point a step nearer."""
        away = chain.z.astype(dtype) - origin
        distance = norm_of(away, "l2")
        direction = away / expand(jnp.where(distance > 0, distance, 1), away)
        eta = normal(key, x)
        axes = tuple(range(1, x.ndim))
        eta = eta - expand(jnp.sum(eta * direction, axes), eta) * direction
        size = norm_of(eta, "l2")
        eta = eta * expand(chain.spherical * distance / jnp.where(size > 0, size, 1), eta)
        around = origin + (away + eta) / expand(jnp.sqrt(1 + chain.spherical**2), eta)
        around = clipped(around)
        back = origin - around.astype(dtype)
        length = norm_of(back, "l2")
        # To (1 - source) of the distance before, whatever clipping did.
        step = jnp.maximum(chain.source * distance + length - distance, 0)
        nearer = around.astype(dtype) + expand(step / jnp.where(length > 0, length, 1), back) * back
        return around, clipped(nearer)

    def record(window: Array, seen: Array, hit: Array, where: Array) -> tuple[Array, Array]:
        moved = jnp.concatenate([window[:, 1:], hit[:, None]], axis=1)
        seen = seen + where.astype(seen.dtype)
        return jnp.where(where[:, None], moved, window), jnp.minimum(seen, window.shape[1])

    def adapt(window: Array, seen: Array, most: float, least: float) -> tuple[Array, Array]:
        """The factor that a full window asks for; a window that was used starts anew."""
        share, full = jnp.mean(window.astype(dtype), axis=1), seen == window.shape[1]
        up, down = full & (share > most), full & (share < least)
        change = jnp.where(up, factor, jnp.where(down, 1 / factor, 1))
        return change, jnp.where(up | down, 0, seen)

    def look(chain: _Chain, around: Array, key: Key) -> tuple[_Chain, Array, Array]:
        """Asks for the point on the sphere: (chain, who was asked, who fooled)."""
        asked = chain.active & (chain.queries < budget)
        hit = fools(around, asked, key)
        window, seen = record(chain.window, chain.seen, hit, asked)
        queries = chain.queries + asked.astype(jnp.int32)
        return chain._replace(window=window, seen=seen, queries=queries), asked, hit

    def advance(chain: _Chain) -> _Chain:
        keys = jax.random.split(jax.random.fold_in(key_walk, chain.i), 3)
        around, candidate = propose(chain, keys[0])
        looking = chain.i % _EVERY == 0
        nobody = loops.varying(jnp.zeros(batch, bool), x)
        chain, looked, on_sphere = lax.cond(
            looking,
            lambda chain: look(chain, around, keys[1]),
            lambda chain: (chain, nobody, nobody),
            chain,
        )
        nearer = distance_of(candidate, x, "l2") < distance_of(chain.z, x, "l2")
        asked = chain.active & nearer & (chain.queries < budget)
        hit = fools(candidate, asked, keys[2])
        queries = chain.queries + asked.astype(jnp.int32)
        z = jnp.where(each_row(hit, x), candidate, chain.z)

        window_full, seen_full = record(chain.window_full, chain.seen_full, hit, on_sphere)
        change, seen = adapt(chain.window, chain.seen, 0.5, 0.2)
        change_full, seen_full = adapt(window_full, seen_full, 0.25, 0.1)
        change, change_full = (jnp.where(looked, c, 1) for c in (change, change_full))
        seen = jnp.where(looked, seen, chain.seen)
        spherical, source = chain.spherical * change, chain.source * change * change_full
        active = chain.active & (source >= _CONVERGED) & (queries < budget)
        return _Chain(
            chain.i + 1, z, spherical, source, chain.window, seen, window_full, seen_full,
            queries, active,
        )  # fmt: skip

    start = find_start(fools, x, x_init, key_start, budget, bounds)
    z, queries = bisect(
        fools, x, start.z, start.found, start.queries, key_bisect,
        budget=budget, norm="l2", theta=tolerance(x, "l2"), bounds=bounds,
    )  # fmt: skip
    count = jnp.zeros(batch, jnp.int32)
    chain = _Chain(
        jnp.zeros((), jnp.int32),
        z,
        jnp.broadcast_to(jnp.asarray(spherical_step, dtype), batch),
        jnp.broadcast_to(jnp.asarray(source_step, dtype), batch),
        jnp.zeros((*batch, _SPHERICAL), bool),
        count,
        jnp.zeros((*batch, _FULL), bool),
        count,
        queries,
        start.found & (queries < budget),
    )
    chain = loops.while_loop(lambda c: (c.i < steps) & jnp.any(c.active), advance, chain)
    return (chain.z, Info(chain.queries)) if return_info else chain.z
