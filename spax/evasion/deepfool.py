"""DeepFool: steps to the nearest of the linearised decision boundaries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax import loops
from spax.checks import check_batch, check_choice, check_count, check_key, check_number
from spax.gradients.convolutions import canonical_convolutions
from spax.losses import misclassified
from spax.norms import box, steepest
from spax.norms import norm as norm_of
from spax.typing import Array, Bounds, Key, Model, Number, Stochastic, call, each_row, expand, wide

__all__ = ["Plane", "deepfool", "nearest_plane", "wrong_classes"]

_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
_AT_ONCE = 16  # classes whose gradients are held together; more of them take turns


class Plane(NamedTuple):
    """The boundary between the label and another class, linearised at z: ``f + w . d = 0``."""

    distance: Array  # [B], |f| / |w|_q; inf where the gradient vanishes or is not finite
    f: Array  # [B], Z_k - Z_y
    w: Array  # [B, ...], its gradient; 0 where the distance is inf


def wrong_classes(logits: Array, y: Array, count: int) -> Array:
    """The ``count`` classes of highest logit but the label, likeliest first, int32."""
    is_label = y.astype(jnp.int32)[:, None] == jnp.arange(logits.shape[1])[None, :]
    others = jnp.where(is_label, jnp.array(-jnp.inf, logits.dtype), logits)
    return lax.top_k(others, count)[1].astype(jnp.int32)


def nearest_plane(
    logits_fn: Model, z: Array, y: Array, classes: Array, norm: str, key: Key | None = None
) -> Plane:
    """The nearest in the norm of the boundaries to ``classes`` (``[B, C]``), linearised at z.

    One forward pass, and C backward passes that share it.
    """
    y = y.astype(jnp.int32)  # a narrower label could not be compared with every class
    logits, pull = jax.vjp(lambda z: call(logits_fn, z, key), z)
    batch, num_classes = logits.shape
    dtype = wide(z)
    label = jax.nn.one_hot(y, num_classes, dtype=logits.dtype)

    def plane(k: Array) -> tuple[Array, Array]:
        toward = jax.nn.one_hot(k, num_classes, dtype=logits.dtype) - label
        # Picked and not multiplied out: 0 times an infinite logit is NaN.
        picked = jnp.take_along_axis(logits, jnp.stack([k, y], axis=1), axis=1).astype(dtype)
        return picked[:, 0] - picked[:, 1], pull(toward)[0].astype(dtype)

    def nearest(classes: Array) -> Plane:
        f, w = jax.vmap(plane)(classes)
        size = jax.vmap(lambda w: norm_of(w, _DUAL[norm]))(w)
        usable = jnp.isfinite(size) & (size > 0) & jnp.isfinite(f)
        distance = jnp.where(usable, jnp.abs(f) / jnp.where(usable, size, 1), jnp.inf)
        chosen = jnp.arange(len(classes))[:, None] == jnp.argmin(distance, axis=0)[None]

        def take(v: Array) -> Array:
            rows = (chosen & usable).reshape(chosen.shape + (1,) * (v.ndim - 2))
            return jnp.sum(jnp.where(rows, v, 0), axis=0)

        return Plane(jnp.min(distance, axis=0), take(f), take(w))

    classes = classes.T
    if len(classes) <= _AT_ONCE:
        return nearest(classes)

    def nearer(best: Plane, classes: Array) -> tuple[Plane, None]:
        rival = nearest(classes)
        wins = rival.distance < best.distance
        rows = each_row(wins, z)
        return Plane(
            jnp.where(wins, rival.distance, best.distance),
            jnp.where(wins, rival.f, best.f),
            jnp.where(rows, rival.w, best.w),
        ), None

    # The last class fills the last turn up.
    turns = -(-len(classes) // _AT_ONCE)
    short = turns * _AT_ONCE - len(classes)
    filled = jnp.concatenate([classes, *[classes[-1:]] * short])
    in_turn = filled.reshape(turns, _AT_ONCE, batch)
    return loops.scan(nearer, nearest(in_turn[0]), in_turn[1:])[0]


class _State(NamedTuple):
    step: Array
    r: Array  # without the overshoot
    z: Array  # with it
    fooled: Array


def deepfool(
    logits_fn: Model,
    x: Array,
    y: Array | None = None,
    *,
    key: Key | None = None,
    overshoot: Number = 0.02,
    norm: str = "l2",
    steps: int = 50,
    candidates: int = 10,
    overshoot_each_step: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """DeepFool: step by step to the nearest decision boundary of the linearised model.

    At ``z = x + r``: for every candidate class k, ``f_k = Z_k - Z_y`` and ``w_k`` its gradient; r
    grows by the least step to one of the planes ``f_k + w_k . d = 0``, which is
    ``|f_k| / |w_k|_2^2 w_k`` (l2) or ``|f_k| / |w_k|_1 sign(w_k)`` (linf). The result is
    ``x + (1 + overshoot) r``. Fast (a few steps), and close to the nearest point that fools, not
    at it; `fab` and `carlini_wagner` search longer and end nearer.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: the labels to leave, int ``[B]`` in [0, K); None: the model's own predictions.
      key: a random key, for a Stochastic model: every evaluation is a draw.
      overshoot: what the perturbation is lengthened by to cross the boundary, >= 0, scalar or
        ``[B]``.
      norm: ``"l2"`` or ``"linf"``.
      steps: number of steps, static, >= 1; the loop ends when all examples are done.
      candidates: how many classes are looked at, the label among them, static, >= 2: the likeliest
        at ``x``. A step costs ``candidates - 1`` backward passes.
      overshoot_each_step: whether a step starts from ``x + (1 + overshoot) r``, as in the authors'
        program and in Foolbox, or from ``x + r``, as in the paper.
      bounds: valid range of the inputs.

    Returns:
      The first point on the way that fools, with its overshoot, and ``x`` itself where there was
      none within ``steps`` or where ``x`` fools already.

    Guarantees:
      Within ``bounds``; no example's result depends on its neighbours. The result cannot be
      differentiated in reverse mode.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, a label is outside the classes, overshoot < 0, steps < 1 or candidates < 2; if the
        model draws and key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y: deepfool(lambda x: x @ w, x, y, overshoot=0.1))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.4]]), jnp.array([0]))
      >>> [round(v, 2) for v in x_adv[0].tolist()]
      [0.49, 0.51]

    References:
      S. Moosavi-Dezfooli, A. Fawzi, P. Frossard, DeepFool: a simple and accurate method to fool
      deep neural networks, 2015, arXiv:1511.04599, Algorithm 2, Eqs 10 and 11. Deviations: the
      box; a point is judged with its overshoot, which ends an example as soon as what would be
      returned fools; and after the first, steps are longer by 1e-4 of ``|r|``, for float32 would
      stall in front of a boundary.
    """
    check_choice("norm", norm, ("l2", "linf"))
    check_batch(x, y, bounds)
    check_number("overshoot", overshoot, low=0)
    check_count("steps", steps)
    check_count("candidates", candidates, minimum=2)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")

    dtype = wide(x)
    origin = x.astype(dtype)
    low, high = (b.astype(dtype) for b in box(bounds, x))
    stretch = 1 + expand(overshoot, origin)

    def key_at(i: Array | int) -> Key | None:
        return None if key is None else jax.random.fold_in(key, i)

    def at(delta: Array) -> Array:
        return jnp.clip(origin + delta, low, high).astype(x.dtype)

    logits = call(logits_fn, x, key_at(0))
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must have shape [B, K] with K >= 2 (got logits.shape={logits.shape})"
        )
    label = jnp.argmax(logits, axis=1).astype(jnp.int32) if y is None else jnp.asarray(y)
    already = misclassified(logits, label)
    classes = wrong_classes(logits, label, min(candidates, logits.shape[1]) - 1)
    look = canonical_convolutions(lambda z, k: nearest_plane(logits_fn, z, label, classes, norm, k))
    judge = canonical_convolutions(lambda z, k: misclassified(call(logits_fn, z, k), label))

    def advance(state: _State) -> _State:
        start = state.z if overshoot_each_step else at(state.r)
        plane = look(start, key_at(2 * state.step + 1))
        length = jnp.where(plane.distance < jnp.inf, plane.distance, 0)
        length = length + 1e-4 * norm_of(state.r, norm)
        r = state.r + expand(length, origin) * steepest(plane.w, norm)
        active = ~state.fooled
        rows = each_row(active, x)
        z = jnp.where(rows, at(stretch * r), state.z)
        fooled = state.fooled | judge(z, key_at(2 * state.step + 2))
        return _State(state.step + 1, jnp.where(rows, r, state.r), z, fooled)

    state = _State(jnp.zeros((), jnp.int32), jnp.zeros_like(origin), x, already)
    state = loops.while_loop(lambda s: (s.step < steps) & ~s.fooled.all(), advance, state)
    rows = each_row(state.fooled, x)
    return jnp.where(rows, state.z, x)
