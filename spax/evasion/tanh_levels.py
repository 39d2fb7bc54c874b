"""Carlini and Wagner's l0 and linf searches: one descent after another, each at a harder level.

A level is the set of entries that may change (l0), or how far they may go (linf). A descent starts
from the nearest success so far and ends at its first success. Every example has a level, a weight c
and a pace of its own, so that none sees another.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from spax import loops
from spax.evasion.minimum_norm import Found
from spax.evasion.tanh_descent import Box, descend, variables
from spax.typing import Array, Key, Number, each_row, expand

__all__ = ["search_l0", "search_linf"]

# Entries at the box start inside by this share of half its side: at the 1e-6 of the l2 attack tanh
# is so flat that the first hundreds of steps of every descent would go into leaving the box.
_INSET = 1e-3

# The share that is taken off a level after a success; halved after a failure.
_CUT_L0, _CUT_LINF, _LEAST_CUT_LINF = 0.3, 0.1, 0.01


class _State(NamedTuple):
    found: Found
    level: Array
    cut: Array
    growth: Array  # int [B]: how often c has grown tenfold
    proven: Array  # int [B]: the same, at the last success
    active: Array
    spent: Array
    round: Array


def _search(
    run: Callable[[_State, Array], tuple[Array, Array, Found]],
    harder: Callable[[Found, Array, Array], Array],
    last: Callable[[Found, Array], Array],
    found: Found,
    level: Array,
    *,
    cut: float,
    least: float,
    initial_const: Number,
    search_steps: int,
) -> tuple[Array, Found]:
    """Harder levels until one fails at every weight; then smaller cuts, until there is none.

    Args:
      run: ``(state, const) -> (reached, spent, found)``: the descent at a level.
      harder: ``(found, cut, round) -> level``.
      last: ``(found, cut) -> bool [B]``, whether there is no smaller cut.
      found: the nearest success before the search.
      level: the first level.
      cut: the first share to take off.
      least: the distance below which there is nothing to find.
      initial_const: the first weight.
      search_steps: weights to try at a level, each ten times the one before.
    """
    batch, dtype = found.distance.shape, found.distance.dtype
    first = jnp.broadcast_to(jnp.asarray(initial_const, dtype), batch)

    def advance(s: _State) -> _State:
        const = first * jnp.asarray(10, dtype) ** s.growth.astype(dtype)
        reached, spent, found = run(s, const)
        grown = jnp.where(reached, s.growth, s.growth + 1)
        failed = grown >= search_steps
        proven = jnp.where(reached, s.growth, s.proven)
        ended = jnp.isinf(found.distance) | last(found, s.cut)
        cut = jnp.where(failed, s.cut / 2, s.cut)
        level = harder(found, cut, s.round)
        return _State(
            found,
            jnp.where(each_row(reached | failed, level), level, s.level),
            cut,
            jnp.where(failed, proven, grown),
            proven,
            s.active & ~(failed & ended) & (found.distance > least),
            spent,
            s.round + 1,
        )

    none = jnp.zeros(batch, jnp.int32)
    state = _State(
        found,
        level,
        jnp.full(batch, cut, dtype),
        none,
        none,
        found.distance > least,
        none,
        jnp.zeros((), jnp.int32),
    )
    state = loops.while_loop(lambda s: jnp.any(s.active), advance, state)
    return state.spent, state.found


def search_l0(
    space: Box,
    look: Callable[[Array, Key | None], Any],
    slope: Callable[[Array, Key | None], Array],
    key_at: Callable[[Array], Key | None],
    x: Array,
    found: Found,
    *,
    step_size: Number,
    steps: int,
    abort_early: bool,
    initial_const: Number,
    search_steps: int,
) -> tuple[Array, Found]:
    """The fewest entries: after each success those that contributed least may not change again.

    Args:
      space: from `box_of`.
      look: ``(z, key) -> (minus the hinge, its gradient, success)``.
      slope: ``(z, key) -> `` the gradient of ``s loss``, which is not flat where z succeeds.
      key_at: the i-th key, if there are keys.
      x: the inputs, in their own dtype.
      found: from `nothing_found`.
      step_size: Adam's.
      steps: gradient steps of a descent, at most.
      abort_early: as in `descend`.
      initial_const: the first weight.
      search_steps: weights to try at a level.

    Returns:
      The gradient steps spent, and what was found, its distance the number of entries.
    """
    axes = tuple(range(1, x.ndim))
    size = math.prod(x.shape[1:])
    dtype = space.origin.dtype

    def count(delta: Array) -> Array:
        return jnp.sum(delta != 0, axis=axes).astype(dtype)

    def run(s: _State, const: Array) -> tuple[Array, Array, Found]:
        state = descend(
            space,
            lambda z, i: look(z, key_at(s.round * (steps + 1) + i)),
            variables(space, s.found.x, _INSET),
            x,
            const,
            s.spent,
            s.found,
            penalty=lambda delta: (jnp.sum(delta * delta, axis=axes), 2 * delta),
            distance=count,
            enough=lambda far: jnp.ones_like(far, bool),
            allowed=s.level,
            active=s.active,
            step_size=step_size,
            steps=steps,
            abort_early=abort_early,
        )
        return state.success, state.steps, state.found

    def harder(found: Found, cut: Array, round_: Array) -> Array:
        delta = (found.x.astype(dtype) - space.origin).reshape(x.shape[0], size)
        g = slope(found.x, key_at(round_ * (steps + 1) + steps)).astype(dtype)
        gain = jnp.where(jnp.isfinite(g), g, 0).reshape(delta.shape) * delta
        gain = jnp.where(delta != 0, gain, -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-gain, axis=1), axis=1)
        changed = jnp.sum(delta != 0, axis=1)
        kept = changed - jnp.maximum(jnp.floor(cut * changed.astype(dtype)), 1).astype(int)
        return (rank < kept[:, None]).reshape(x.shape)

    def last(found: Found, cut: Array) -> Array:
        return cut * found.distance < 2

    return _search(
        run,
        harder,
        last,
        found,
        jnp.ones(x.shape, bool),
        cut=_CUT_L0,
        least=1,
        initial_const=initial_const,
        search_steps=search_steps,
    )


def search_linf(
    space: Box,
    look: Callable[[Array, Key | None], Any],
    key_at: Callable[[Array], Key | None],
    x: Array,
    found: Found,
    *,
    step_size: Number,
    steps: int,
    abort_early: bool,
    initial_const: Number,
    search_steps: int,
) -> tuple[Array, Found]:
    """The smallest largest change: what exceeds tau costs, and tau shrinks after each success.

    Arguments and result are those of `search_l0`, the distance being the largest change.
    """
    axes = tuple(range(1, x.ndim))

    def largest(delta: Array) -> Array:
        return jnp.max(jnp.abs(delta), axis=axes, initial=0)

    def run(s: _State, const: Array) -> tuple[Array, Array, Found]:
        def penalty(delta: Array) -> tuple[Array, Array]:
            over = jnp.abs(delta) - expand(s.level, delta)
            value = jnp.sum(jnp.maximum(over, 0), axis=axes)
            return value, jnp.where(over > 0, jnp.sign(delta), 0)

        state = descend(
            space,
            lambda z, i: look(z, key_at(s.round * steps + i)),
            variables(space, s.found.x, _INSET),
            x,
            const,
            s.spent,
            s.found,
            penalty=penalty,
            distance=largest,
            enough=lambda far: far <= s.level,
            active=s.active,
            step_size=step_size,
            steps=steps,
            abort_early=abort_early,
        )
        far = state.found.distance
        return (far <= s.level) & jnp.isfinite(far), state.steps, state.found

    return _search(
        run,
        lambda found, cut, _: (1 - cut) * found.distance,
        lambda _, cut: cut < 2 * _LEAST_CUT_LINF,
        found,
        jnp.full_like(found.distance, jnp.inf),
        cut=_CUT_LINF,
        least=0,
        initial_const=initial_const,
        search_steps=search_steps,
    )
