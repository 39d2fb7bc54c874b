"""Expectation over transformation with a visual penalty."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax import loops
from spax.checks import check_batch, check_count, check_key, check_number
from spax.evasion.adam import Moments, adam, no_moments
from spax.evasion.physical import Transform
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import eot
from spax.losses import cross_entropy, hits, misclassified
from spax.norms import box
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Gradient,
    Key,
    Model,
    Number,
    PerExampleLoss,
    PyTree,
    Stochastic,
    call,
    each_row,
    expand,
    wide,
)

__all__ = ["eot_attack", "lab_distance"]

# sRGB primaries and the D65 white point.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ],
    np.float32,
)
_WHITE = _TO_XYZ.sum(axis=1)


def _lab_curve(t: Array) -> Array:
    """The cube root of LAB, with its straight piece near 0, where the root has no derivative."""
    edge = (6 / 29) ** 3
    safe = jnp.where(t > edge, t, 1)
    return jnp.where(t > edge, jnp.cbrt(safe), t / (3 * (6 / 29) ** 2) + 4 / 29)


def _lab(x: Array) -> Array:
    """CIE LAB of sRGB values in [0, 1], ``[..., 3]``; the lightness alone of grey ``[..., 1]``."""
    dark = x <= 0.04045
    light = ((jnp.where(dark, 1, x) + 0.055) / 1.055) ** 2.4
    linear = jnp.where(dark, x / 12.92, light)
    if x.shape[-1] == 1:
        return 116 * _lab_curve(linear) - 16
    xyz = jnp.einsum("...c,dc->...d", linear, _TO_XYZ.astype(x.dtype), precision="highest")
    f = _lab_curve(xyz / _WHITE.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (3,)))
    fx, fy, fz = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


def lab_distance(a: Array, b: Array) -> Array:
    """Visible difference of two images: the l2 norm of the difference of their LAB values.

    Args:
      a: sRGB images ``[B, H, W, 3]`` or grey ones ``[B, H, W, 1]`` (lightness only), in [0, 1].
      b: the same shape.

    Returns:
      ``[B]``, in the dtype of ``a``, >= 0: a difference of 1 in one pixel is barely visible. The
      derivative is 0 where the images are equal; what is within rounding counts as equal.

    Raises:
      ValueError: if the shapes differ, or the last dimension is neither 1 nor 3.

    Example:
      >>> import jax.numpy as jnp
      >>> black, white = jnp.zeros((1, 1, 1, 3)), jnp.ones((1, 1, 1, 3))
      >>> round(float(lab_distance(black, white)[0]), 2)
      100.0

    References:
      A. Athalye, L. Engstrom, A. Ilyas, K. Kwok, Synthesizing robust adversarial examples, 2017,
      arXiv:1707.07397, Section 2.3. CIE 15:2004, Colorimetry (the LAB values).
    """
    if jnp.shape(a) != jnp.shape(b):
        raise ValueError(f"a and b must have one shape (got {jnp.shape(a)} and {jnp.shape(b)})")
    if a.ndim < 2 or a.shape[-1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, last (got shape {a.shape})")
    dtype = wide(a)
    apart = _lab(a.astype(dtype)) - _lab(b.astype(dtype))
    square = jnp.sum(apart * apart, axis=tuple(range(1, a.ndim)))
    # Rounding has a direction too, and at equal images it would be the derivative.
    some = square > math.prod(a.shape[1:]) * 2e-5**2
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0).astype(a.dtype)


@jax.custom_vjp
def _finite(v: Array) -> Array:
    """Itself; a derivative that is not finite, such as that of a norm at 0, counts as 0."""
    return v


_finite.defvjp(lambda v: (v, None), lambda _, g: (jnp.where(jnp.isfinite(g), g, 0),))


class _Robust(NamedTuple):
    x: Array
    share: Array  # of held-out draws that fool, capped at what is enough
    distance: Array


def eot_attack(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    transform: Transform,
    lam: Number = 0.01,
    enough: Number = 0.9,
    step_size: Number = 0.01,
    steps: int = 500,
    search_steps: int = 1,
    held_out: int = 30,
    targeted: bool = True,
    bounds: Bounds = (0.0, 1.0),
    distance: Callable[[Array, Array], Array] = lab_distance,
    loss: PerExampleLoss = cross_entropy,
    criterion: Criterion | None = None,
    gradient: Gradient | None = None,
) -> Array:
    """Expectation over transformation: fools under most draws of a transformation, and looks alike.

    Minimises ``E_t[loss(f(t(z)), y) + lam distance(t(z), t(x))]`` over z in the box by Adam, the
    draws t common to z and x. Ten times a round z is tried on draws that the optimisation never
    sees; with ``search_steps > 1``, lam is raised (tenfold, then by bisection) for each example
    while ``enough`` of them fool, and lowered when not.

    Without the penalty there is no need for it: ``gradient=eot(30)`` on
    ``lift(Stochastic(transform), logits_fn)`` makes any gradient attack one in expectation.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: wanted labels (or labels, when not targeted), int ``[B]`` in [0, K).
      key: a random key.
      transform: ``(x, key) -> x'``, differentiable in x: `random_affine_photo`,
        `photo_transform` with its strengths bound, a `spax.typing.Stochastic`, ...
      lam: first weight of the distance, >= 0, scalar or ``[B]``.
      enough: share of the held-out draws that have to fool, in (0, 1].
      step_size: Adam's, > 0, in the units of ``x``.
      steps: gradient steps a round, static, >= 1.
      search_steps: rounds, static, >= 1. (The paper: a search over lam with 0.9.)
      held_out: number of draws on which z is tried, static, >= 1.
      targeted: whether ``y`` are wanted labels.
      bounds: valid range of the inputs.
      distance: ``(a, b) -> [B]``, the visible difference. The default wants colour or grey images
        in [0, 1].
      loss: ``(outputs, y) -> [B]``.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.hits`, or
        `spax.losses.misclassified` when not targeted.
      gradient: how the gradient is taken; None: ``spax.gradients.eot(30)``.

    Returns:
      Of the points tried, x first: one that fools ``enough`` of the held-out draws at the least
      mean distance; failing that, one that fools the largest share. Where no draw was ever fooled
      that is x itself.

    Guarantees:
      Within ``bounds``. Not within any ball: the penalty alone keeps it near.

    Raises:
      ValueError: on a wrong shape or dtype; if concrete inputs are not finite or out of bounds, a
        label is outside the classes, or a number out of its range; if key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> dim = lambda x, key: x * jax.random.uniform(key, minval=0.5)
      >>> attack = jax.jit(lambda w, x, y, key: eot_attack(
      ...     lambda x: x.reshape(1, 2) @ w, x, y, key=key, transform=dim, lam=1e-3,
      ...     steps=20, step_size=0.05))
      >>> x = jnp.array([0.6, 0.4]).reshape(1, 2, 1, 1)
      >>> x_adv = attack(jnp.eye(2), x, jnp.array([1]), jax.random.key(0))
      >>> bool(x_adv[0, 1, 0, 0] > x_adv[0, 0, 0, 0])
      True

    References:
      A. Athalye, L. Engstrom, A. Ilyas, K. Kwok, Synthesizing robust adversarial examples, 2017,
      arXiv:1707.07397, Section 2 (the Lagrangian in LAB space). Bae et al. call it the AS attack.
    """
    check_batch(x, y, bounds)
    check_number("lam", lam, low=0)
    check_number("enough", enough, low=0, high=1, low_open=True)
    check_number("step_size", step_size, low=0, low_open=True)
    check_count("steps", steps)
    check_count("search_steps", search_steps)
    check_count("held_out", held_out)
    judged = criterion or (hits if targeted else misclassified)
    hook = eot(30) if gradient is None else gradient
    dtype = wide(x)
    low, high = box(bounds, x.astype(dtype))
    key_fit, key_held = jax.random.split(check_key(key, "eot_attack"))
    first = jnp.broadcast_to(jnp.asarray(lam, dtype), x.shape[:1])
    goal_share = jnp.asarray(enough, dtype)

    def seen(z: Array, key: Key) -> tuple[Array, Array, Array]:
        """What one draw shows: loss, verdict, distance."""
        key_t, key_f = jax.random.split(key)
        z_seen, x_seen = transform(z.astype(x.dtype), key_t), transform(x, key_t)
        outputs = call(logits_fn, z_seen, key_f)
        value = loss(outputs, y).astype(dtype)
        fooled = judged(outputs, y).astype(dtype)
        return (
            (-value if targeted else value),
            fooled,
            distance(_finite(z_seen), x_seen).astype(dtype),
        )

    def look(z: Array, weight: Array, key: Key) -> Array:
        def goal(z: Array, key: Key) -> tuple[Array, Array]:
            value, fooled, apart = seen(z, key)
            return value - weight * apart, fooled

        return hook(Stochastic(goal), z, key)[1]

    def try_out(z: Array) -> tuple[Array, Array]:
        def add(total: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], None]:
            _, fooled, apart = seen(z, key)
            return (total[0] + fooled, total[1] + apart), None

        zero = loops.varying(jnp.zeros(x.shape[:1], dtype), x)
        total, _ = loops.scan(add, (zero, zero), jax.random.split(key_held, held_out))
        return total[0] / held_out, total[1] / held_out

    look, try_out = canonical_convolutions(look), canonical_convolutions(try_out)
    blocks = min(10, steps)

    def pick(best: _Robust, z: Array) -> tuple[_Robust, Array]:
        share, apart = try_out(z)
        capped = jnp.minimum(share, goal_share)
        wins = (capped > best.share) | ((capped == best.share) & (apart < best.distance))
        better = _Robust(
            jnp.where(each_row(wins, x), z.astype(x.dtype), best.x),
            jnp.where(wins, capped, best.share),
            jnp.where(wins, apart, best.distance),
        )
        return better, share >= goal_share

    def round_(r: Array, carry: tuple[Array, Array, Array, _Robust]) -> Any:
        lower, upper, weight, best = carry
        key_round = jax.random.fold_in(key_fit, r)

        def descend(i: Array, state: tuple[Array, Moments]) -> tuple[Array, Moments]:
            z, moments = state
            grad = look(z, weight, jax.random.fold_in(key_round, i))
            direction, moments = adam(moments, grad)
            return jnp.clip(z + expand(step_size, z) * direction, low, high), moments

        def block(b: Array, state: Any) -> Any:
            z, moments, best, reached = state
            ends = steps * b // blocks, steps * (b + 1) // blocks
            z, moments = loops.fori_loop(*ends, descend, (z, moments))
            best, here = pick(best, z)
            return z, moments, best, reached | here

        z = x.astype(dtype)
        state = z, no_moments(z), best, jnp.zeros(x.shape[:1], bool)
        *_, best, reached = loops.fori_loop(0, blocks, block, state)
        lower = jnp.where(reached, jnp.maximum(lower, weight), lower)
        upper = jnp.where(reached, upper, jnp.minimum(upper, weight))
        between = jnp.where(lower > 0, (lower + upper) / 2, weight / 10)
        return lower, upper, jnp.where(jnp.isfinite(upper), between, weight * 10), best

    nothing = jnp.full(x.shape[:1], -1, dtype), jnp.full(x.shape[:1], jnp.inf, dtype)
    best, _ = pick(_Robust(x, *nothing), x.astype(dtype))
    carry = jnp.zeros_like(first), jnp.full_like(first, jnp.inf), first, best
    return loops.fori_loop(0, search_steps, round_, carry)[3].x
