"""Fast adaptive boundary attack: projections on the linearised decision boundary and the box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax import loops
from spax.checks import (
    check_batch,
    check_choice,
    check_count,
    check_key,
    check_labels,
    check_number,
)
from spax.evasion.deepfool import nearest_plane, wrong_classes
from spax.gradients.convolutions import canonical_convolutions
from spax.losses import margin, misclassified
from spax.norms import box, sample
from spax.norms import norm as norm_of
from spax.typing import Array, Bounds, Key, Model, Number, Stochastic, call, each_row, expand, wide

__all__ = ["fab", "project_on_plane"]


def project_on_plane(w: Array, c: Array, low: Array, high: Array, norm: str) -> Array:
    """The shortest d in the norm with ``w . d = c`` and ``low <= d <= high``, for flat rows.

    Where the box does not reach the plane, the point of the box nearest to it. Exact up to
    rounding. Entries with ``w = 0`` stay 0.

    Args:
      w: normals ``[B, D]``.
      c: ``[B]``.
      low: ``[B, D]``, <= 0.
      high: ``[B, D]``, >= 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
      ``[B, D]``.
    """
    # Squares of w must neither overflow nor vanish.
    top = jnp.max(jnp.abs(w), axis=1, initial=0.0)
    scale = jnp.where(top > 0, top, 1)
    w, c = w / scale[:, None], c / scale
    away = jnp.sign(w) * jnp.where(c >= 0, 1, -1)[:, None].astype(w.dtype)
    size, goal = jnp.abs(w), jnp.abs(c)[:, None]
    room = jnp.maximum(jnp.where(away > 0, high, -low), 0)
    if norm == "l1":
        return away * _spend(size, room, goal)

    # |d_i| = min(lam rate_i, room_i) for one lam >= 0, and what it gains, sum_i size_i |d_i|, is
    # concave in lam: Newton's steps from 0 come from below, entries meet their room one after
    # another, and once none is new lam solves the plane exactly.
    rate = size if norm == "l2" else jnp.ones_like(size)

    def solve(free: Array) -> Array:
        gained = jnp.sum(jnp.where(free, 0, size * room), axis=1, keepdims=True)
        slope = jnp.sum(jnp.where(free, size * rate, 0), axis=1, keepdims=True)
        return jnp.where(slope > 0, (goal - gained) / jnp.where(slope > 0, slope, 1), 0)

    def more(state: tuple[Array, Array]) -> tuple[Array, Array]:
        free, _ = state
        still = free & (solve(free) * rate < room)
        return still, (still != free).any()

    start = (size > 0) & (room > 0), jnp.ones((), bool)
    free, _ = loops.while_loop(lambda state: state[1], more, start)
    return away * jnp.where(free, solve(free) * rate, room)


def _spend(size: Array, room: Array, goal: Array) -> Array:
    """The least sum of |d| that gains ``sum_i size_i |d_i| = goal``: dearest entries first.

    The size down to which entries are used up is bisected, which is quicker than sorting; what is
    lacking then is shared among the entries of that size.
    """
    gain = size * room

    def gained(above: Array) -> Array:
        return jnp.sum(jnp.where(size > above, gain, 0), axis=1, keepdims=True)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        less, more = ends
        middle = (less + more) / 2
        enough = gained(middle) >= goal
        return jnp.where(enough, middle, less), jnp.where(enough, more, middle)

    top = jnp.max(jnp.where(room > 0, size, 0), axis=1, keepdims=True, initial=0.0)
    less, more = loops.fori_loop(0, 32, halve, (jnp.zeros_like(top), top))
    used = size > more
    last = (size > less) & ~used
    lacking = goal - jnp.sum(jnp.where(used, gain, 0), axis=1, keepdims=True)
    whole = jnp.sum(jnp.where(last, gain, 0), axis=1, keepdims=True)
    share = jnp.clip(lacking / jnp.where(whole > 0, whole, 1), 0, 1)
    return jnp.where(used, room, jnp.where(last, share * room, 0))


class _Best(NamedTuple):
    x: Array
    distance: Array  # inf: nothing found


def fab(
    logits_fn: Model,
    x: Array,
    y: Array,
    *,
    key: Key | None = None,
    eps: Number | None = None,
    alpha_max: Number = 0.1,
    eta: Number = 1.05,
    beta: Number = 0.9,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    targets: int | Array | None = None,
    final_steps: int = 3,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """Fast adaptive boundary attack (FAB, FAB-T): the nearest point that fools, in any of 3 norms.

    At z: the nearest of the decision boundaries, linearised; z and x are both projected on its
    intersection with the box, by d and d'; then ``z = clip((1 - a)(z + eta d) + a (x + eta d'))``
    with ``a = min(|d| / (|d| + |d'|), alpha_max)``. Where that fools, it is kept if it is the
    nearest yet, and z goes back towards x, to ``x + beta (z - x)``. It has no step size, does not
    change when the logits are scaled, and projects on the box exactly.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels int ``[B]`` in [0, K).
      key: a random key, for restarts or a Stochastic model (every evaluation is a draw).
      eps: the radius beyond which nothing counts, >= 0, scalar or ``[B]``, a traced value below 0
        means 0; None: none. It also limits the random starts.
      alpha_max: the largest weight a of the point projected from x, in [0, 1].
      eta: the factor by which a step goes beyond the boundary, >= 1.
      beta: the share of the way from x that is kept after a success, in [0, 1).
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      steps: steps of a run, static, >= 1.
      restarts: runs, static, >= 1; but for the first, from random points at half the distance of
        the best point so far (or half of eps, if that is less).
      targets: None: of the boundaries to all K - 1 other classes the nearest, for K - 1 backward
        passes a step. A static int: one after another, those to the likeliest wrong classes at x,
        this many, each in runs of its own with one backward pass a step (FAB-T). Or an int array
        ``[B]`` or ``[B, T]`` of those classes. To fool is to leave y in any case.
      final_steps: steps of the closing search, static, >= 0: on the segment from x to the point
        found, nine tenths of the way to where the margin would be 0 were it linear.
      bounds: valid range of the inputs.

    Returns:
      The nearest point found that fools within eps, and ``x`` itself where there was none or where
      ``x`` fools already.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` if given; no example's result depends on its
      neighbours. The result cannot be differentiated in reverse mode.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, a label or a target is outside the classes, or a number is out of its range; if
        something draws and key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y: fab(lambda x: x @ w, x, y, steps=5))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.4]]), jnp.array([0]))
      >>> bool(x_adv[0, 1] > x_adv[0, 0]), [round(v, 2) for v in x_adv[0].tolist()]
      (True, [0.5, 0.5])

    References:
      F. Croce, M. Hein, Minimally distorted adversarial examples with a fast adaptive boundary
      attack, 2019, arXiv:1907.02044, Algorithm 1 (its closing search goes all the way, where a
      linear margin is 0 up to rounding, and half of the results do not fool).
      F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, arXiv:2003.01690 (FAB-T; its program has no closing search:
      ``final_steps=0``).
    """
    check_choice("norm", norm, ("linf", "l2", "l1"))
    check_batch(x, y, bounds)
    if eps is not None:
        check_number("eps", eps, low=0)
    check_number("alpha_max", alpha_max, low=0, high=1)
    check_number("eta", eta, low=1)
    check_number("beta", beta, low=0, high=1, high_open=True)
    check_count("steps", steps)
    check_count("restarts", restarts)
    check_count("final_steps", final_steps, minimum=0)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")
    if restarts > 1:
        check_key(key, f"restarts={restarts}")

    dtype = wide(x)
    origin = x.astype(dtype)
    low, high = (b.astype(dtype) for b in box(bounds, x))
    batch = x.shape[0]
    radius = jnp.inf if eps is None else jnp.maximum(jnp.asarray(eps, dtype), 0)
    radius = jnp.broadcast_to(jnp.asarray(radius, dtype), (batch,))

    def key_at(key: Key | None, i: Array | int) -> Key | None:
        return None if key is None else jax.random.fold_in(key, i)

    def rounded(z: Array) -> Array:
        return jnp.clip(z, low, high).astype(x.dtype)

    logits = call(logits_fn, x, key_at(key, 0))
    already = misclassified(logits, y)
    classes, runs = _classes(logits, y, targets)
    judge = canonical_convolutions(lambda z, k: margin_and_verdict(logits_fn, z, y, k))

    def keep(best: _Best, z: Array, fooled: Array) -> _Best:
        distance = norm_of(z.astype(dtype) - origin, norm)
        nearer = fooled & (distance < best.distance) & (distance <= radius)
        rows = each_row(nearer, x)
        return _Best(jnp.where(rows, z, best.x), jnp.where(nearer, distance, best.distance))

    def flat(v: Array) -> Array:
        return v.reshape(batch, -1) if batch else v.reshape(0, 1)

    def descend(run: Array, z: Array, key: Key | None, best: _Best) -> _Best:
        chosen = lax.dynamic_slice_in_dim(
            classes, run * (classes.shape[1] // runs), classes.shape[1] // runs, axis=1
        )
        look = canonical_convolutions(lambda z, k: nearest_plane(logits_fn, z, y, chosen, norm, k))

        def step(i: Array, carry: tuple[Array, _Best]) -> tuple[Array, _Best]:
            z, best = carry
            plane = look(z, key_at(key, 2 * i))
            at, w = z.astype(dtype), plane.w
            reach = jnp.sum(flat(w * (at - origin)), axis=1)
            from_z, from_x = jax.vmap(project_on_plane, (None, 0, 0, 0, None))(
                flat(w),
                jnp.stack([-plane.f, reach - plane.f]),
                jnp.stack([flat(low - at), flat(low - origin)]),
                jnp.stack([flat(high - at), flat(high - origin)]),
                norm,
            ).reshape(2, *x.shape)
            near, far = norm_of(from_z, norm), norm_of(from_x, norm)
            a = near / jnp.where(near + far > 0, near + far, 1)
            a = expand(jnp.minimum(a, jnp.asarray(alpha_max, dtype)), at)
            over = expand(eta, at)
            z = rounded((1 - a) * (at + over * from_z) + a * (origin + over * from_x))
            _, fooled = judge(z, key_at(key, 2 * i + 1))
            best = keep(best, z, fooled)
            back = rounded(origin + expand(beta, at) * (z.astype(dtype) - origin))
            rows = each_row(fooled, x)
            return jnp.where(rows, back, z), best

        return loops.fori_loop(0, steps, step, (z, best))[1]

    def attempt(i: Array, best: _Best) -> _Best:
        key_run = key_at(key, i + 1)
        start, key_steps = x, key_run
        if restarts > 1:
            key_start, key_steps = jax.random.split(check_key(key_run, "a restart"))
            half = jnp.minimum(best.distance, radius) / 2
            half = jnp.where(half < jnp.inf, half, norm_of(high - low, norm) / 2)
            half = jnp.where(half < jnp.inf, half, 0)
            delta = sample(key_start, origin, 1.0, norm)
            size = expand(norm_of(delta, norm), origin)
            delta = expand(half, origin) * delta / jnp.where(size > 0, size, 1)
            start = jnp.where(i % restarts == 0, x, rounded(origin + delta))
        return descend(i // restarts, start, key_steps, best)

    best = _Best(x, jnp.where(already, jnp.zeros((), dtype), jnp.inf))
    best = loops.fori_loop(0, runs * restarts, attempt, best)
    key_end = key_at(key, runs * restarts + 1)

    def close(i: Array, carry: tuple[Array, Array, Array, _Best]) -> tuple:
        inner, value, outer_value, best = carry
        # Where the line through both margins is 0; the inner point is right, the outer one wrong.
        # Short of it: at the point itself rounding decides, which depends on the size of the batch.
        gap = outer_value - value
        share = 0.9 * jnp.clip(outer_value / jnp.where(gap > 0, gap, 1), 0, 1)
        outer = best.x.astype(dtype)
        z = rounded(outer - expand(share, outer) * (outer - inner))
        reached, fooled = judge(z, key_at(key_end, i))
        found = keep(best, z, fooled)
        moved = found.distance < best.distance
        rows = each_row(moved, x)
        return (
            jnp.where(rows, inner, z.astype(dtype)),
            jnp.where(moved, value, reached),
            jnp.where(moved, reached, outer_value),
            found,
        )

    if final_steps:
        value = margin(logits, y).astype(dtype)
        outer_value, _ = judge(best.x, key_at(key_end, final_steps))
        state = (origin, value, outer_value, best)
        *_, best = loops.fori_loop(0, final_steps, close, state)
    return best.x


def margin_and_verdict(
    logits_fn: Model, z: Array, y: Array, key: Key | None
) -> tuple[Array, Array]:
    """The margin and whether z fools, from one evaluation."""
    logits = call(logits_fn, z, key)
    return margin(logits, y).astype(wide(z)), misclassified(logits, y)


def _classes(logits: Array, y: Array, targets: int | Array | None) -> tuple[Array, int]:
    """The classes whose boundaries are looked at, ``[B, runs * each]``, and the number of runs."""
    num_classes = logits.shape[1]
    if targets is None:
        return wrong_classes(logits, y, num_classes - 1), 1
    if isinstance(targets, int):
        check_count("targets", targets)
        if targets >= num_classes:
            raise ValueError(
                f"targets must be below the number of classes, {num_classes} (got {targets})"
            )
        return wrong_classes(logits, y, targets), targets
    classes = jnp.asarray(targets)
    check_labels(classes, num_classes)
    classes = classes[:, None] if classes.ndim == 1 else classes
    if classes.ndim != 2 or classes.shape[0] != y.shape[0] or classes.shape[1] < 1:
        raise ValueError(
            f"targets must be an int, or classes [B] or [B, T] with B = {y.shape[0]} "
            f"(got targets.shape={jnp.shape(targets)})"
        )
    return classes.astype(jnp.int32), classes.shape[1]
