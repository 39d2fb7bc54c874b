"""Adam in the variables ``w`` of ``z = low + (high - low) (tanh w + 1) / 2``, with early stop."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from spax import loops
from spax.evasion.adam import Moments, adam, no_moments
from spax.evasion.minimum_norm import Found, Rest, nearer, rest, unrested
from spax.norms import box
from spax.typing import Array, Bounds, Number, each_row, expand, wide

__all__ = ["Box", "Descent", "box_of", "descend", "variables"]


class Box(NamedTuple):
    """The inputs, and the box around them, in the dtype of the descent."""

    origin: Array
    low: Array
    high: Array

    @property
    def half(self) -> Array:
        """Half of its sides."""
        return (self.high - self.low) / 2


class Descent(NamedTuple):
    """The state of a round."""

    w: Array
    moments: Moments
    rest: Rest
    steps: Array
    success: Array  # whether this round has succeeded
    found: Found


def box_of(x: Array, bounds: Bounds) -> Box:
    """Adam's averages need float32 at least; the model sees the dtype of x."""
    origin = x.astype(wide(x))
    return Box(origin, *box(bounds, origin))


def variables(space: Box, z: Array, inset: float) -> Array:
    """The w of points, moved inside by a share ``inset`` of the way, so that atanh is finite."""
    t = (z.astype(space.origin.dtype) - space.low) / space.half - 1
    return jnp.arctanh(jnp.clip(t, -1, 1) * (1 - inset))


def descend(
    space: Box,
    look: Callable[[Array, Array], tuple[Array, Array, Array]],
    w: Array,
    x: Array,
    const: Array,
    spent: Array,
    found: Found,
    *,
    penalty: Callable[[Array], tuple[Array, Array]],
    distance: Callable[[Array], Array] | None = None,
    enough: Callable[[Array], Array] | None = None,
    allowed: Array | None = None,
    active: Array,
    step_size: Number,
    steps: int,
    abort_early: bool,
) -> Descent:
    """One round: lowers ``penalty(delta) + const hinge`` from ``w``, and keeps the nearest success.

    Args:
      space: from `box_of`.
      look: ``(z, i) -> (minus the hinge, its gradient, success)``.
      w: where to start.
      x: the inputs, in their own dtype.
      const: the weights ``[B]``.
      spent: gradient steps so far, ``[B]``.
      found: the nearest success so far.
      penalty: ``delta -> (value [B], gradient)``.
      distance: ``delta -> [B]``, by which the nearest is chosen; None: the penalty.
      enough: ``distance [B] -> bool [B]``, where an example that succeeds may rest.
      allowed: bool ``[B, ...]``, the entries that may move; None: all.
      active: bool ``[B]``, the examples that move at all.
      step_size: Adam's.
      steps: static, at most.
      abort_early: static; see `minimum_norm.rest`.
    """
    dtype, half = space.origin.dtype, space.half
    every = max(steps // 10, 1)

    def step(i: Array, state: Descent) -> Descent:
        t = jnp.tanh(state.w)
        z = jnp.clip(space.low + half * (t + 1), space.low, space.high).astype(x.dtype)
        if allowed is not None:
            z = jnp.where(allowed, z, x)
        value, grad, success = look(z, i)
        delta = z.astype(dtype) - space.origin
        cost, slope = penalty(delta)
        far = cost if distance is None else distance(delta)
        # An eot hook reports the share of draws that succeeded: most of them must.
        success = (success > 0.5) & state.rest.active
        g = (slope - expand(const, delta) * grad.astype(dtype)) * half * (1 - t * t)
        if allowed is not None:
            g = jnp.where(allowed, g, 0)
        direction, moments = adam(state.moments, g)
        w = state.w - expand(step_size, delta) * direction

        resting = state.rest
        if abort_early:
            resting = rest(resting, cost - const * value, i, every)
        if enough is not None:
            resting = resting._replace(active=resting.active & ~(success & enough(far)))
        return Descent(
            jnp.where(each_row(state.rest.active, x), w, state.w),
            moments,
            resting,
            state.steps + state.rest.active.astype(state.steps.dtype),
            state.success | success,
            nearer(state.found, z, far, const, success),
        )

    state = Descent(w, no_moments(w), unrested(active, dtype), spent, jnp.zeros_like(active), found)
    if not abort_early and enough is None:
        return loops.fori_loop(0, steps, step, state)
    return loops.while_loop(
        lambda c: (c[0] < steps) & jnp.any(c[1].rest.active),
        lambda c: (c[0] + 1, step(c[0], c[1])),
        (jnp.zeros((), jnp.int32), state),
    )[1]
