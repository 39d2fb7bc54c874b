"""The loop of auto-PGD: ascent that returns to its best point and shortens its step by itself."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax import loops
from spax.evasion.fgsm import _Best, _better, _fold_in
from spax.gradients.convolutions import canonical_convolutions
from spax.norms import displace, project, sample, steepest, zeros_by_example
from spax.norms import norm as norm_of
from spax.typing import Array, Bounds, Gradient, Key, Number, each_row, expand, wide

__all__ = ["checkpoints", "climb"]


def checkpoints(steps: int) -> tuple[int, ...]:
    """The steps after which the step size may be halved, for linf and l2.

    The first comes after 22 % of the steps; the gaps shrink by 3 % down to 6 %.
    """
    gap, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = [], gap
    while at <= steps:
        found.append(at)
        gap = max(gap - shrink, least)
        at += gap
    return tuple(found)


class _Window(NamedTuple):
    """The steps up to a check, as scanned arrays: how many, and in which ball."""

    length: Any
    factor: Any  # of the radius
    opens: Any  # whether a new ball begins: its first point is looked at before it moves


def _windows(steps: int, norm: str) -> _Window:
    """The whole course of a run. A point looked at and not moved counts as one more step."""
    if norm != "l1":
        ends = (*checkpoints(steps), steps)
        lengths = np.diff((0, *ends))
        balls = [(1.0, lengths[lengths > 0].tolist())]
    else:
        gap = max(int(0.04 * steps), 1)
        first = -(-3 * steps // 10)
        shares = [n for n in (first, min(first, steps - first)) if n > 0]
        shares = [n for n in (*shares, steps - sum(shares)) if n > 0]
        balls = [
            (float(len(shares) - k), [min(gap, n - at) for at in range(0, n, gap)])
            for k, n in enumerate(shares)
        ]
    rows = [
        (n + (j == 0), factor, j == 0) for factor, lengths in balls for j, n in enumerate(lengths)
    ]
    length, factor, opens = zip(*rows, strict=True)
    return _Window(
        np.asarray(length, np.int32), np.asarray(factor, np.float32), np.asarray(opens, bool)
    )


class _State(NamedTuple):
    delta: Array  # z_k - x
    previous: Array  # z_{k-1} - x
    value: Array
    grad: Array
    peak: Array  # z* - x, where the loss was highest, with its value and gradient
    peak_value: Array
    peak_grad: Array
    eta: Array
    memory: tuple[Array, ...]  # of the rule that sets eta
    best: _Best
    spent: Array  # gradients


def _rows(mask: Array, yes: Array, no: Array) -> Array:
    return jnp.where(each_row(mask, yes), yes, no)


def _restart(s: _State, where: Array) -> _State:
    """Back to the peak, with its gradient."""
    return s._replace(
        delta=_rows(where, s.peak, s.delta),
        grad=_rows(where, s.peak_grad, s.grad),
        value=jnp.where(where, s.peak_value, s.value),
    )


def _halve(s: _State, length: Array, rho: Array) -> _State:
    """Conditions 1 and 2 of Algorithm 1: too few steps rose, or the peak and eta stood still."""
    rises, halved, peak_then = s.memory
    few = rises < rho * length.astype(rho.dtype)
    stuck = ~halved & (s.peak_value <= peak_then)
    where = few | stuck
    s = _restart(s, where)._replace(eta=jnp.where(where, s.eta / 2, s.eta))
    return s._replace(memory=(jnp.zeros_like(rises), where, s.peak_value))


def _support(delta: Array) -> Array:
    return norm_of(delta.astype(wide(delta)), "l0")


def _sparsify(s: _State, radius: Array) -> _State:
    """The rule of l1: the support of the peak sets the share of entries, its change the step."""
    _, support = s.memory
    now = _support(s.peak)
    shrank = now < 0.95 * support
    eta = jnp.where(shrank, radius, jnp.maximum(s.eta / 1.5, radius / 10))
    return _restart(s, shrank)._replace(eta=eta, memory=(_share(s.peak, now), now))


def _share(delta: Array, support: Array) -> Array:
    return support / (1.5 * max(math.prod(delta.shape[1:]), 1))


def _sparse_sign(grad: Array, share: Array) -> Array:
    """Signs of the largest ``share`` of a gradient's entries, of l1 norm 1."""
    g = jnp.where(jnp.isfinite(grad), grad, 0).reshape(grad.shape[0], math.prod(grad.shape[1:]))
    size = g.shape[1]
    at = jnp.clip(((1 - share) * size).astype(jnp.int32), 0, max(size - 1, 0))
    least = jnp.take_along_axis(jnp.sort(jnp.abs(g), axis=1), at[:, None], axis=1)
    signs = jnp.where(jnp.abs(g) >= least, jnp.sign(g), 0)
    count = jnp.sum(jnp.abs(signs).astype(wide(g)), axis=1, keepdims=True)
    return (signs / jnp.maximum(count, 1).astype(g.dtype)).reshape(grad.shape)


def radii(eps: Number, x: Array) -> Array:
    """A radius an example, >= 0, in the dtype of sums."""
    flat = expand(eps, x.astype(wide(x))).reshape(-1)
    return jnp.maximum(flat, 0) + zeros_by_example(x, flat.dtype)


def starts(keys: Array, x: Array, radius: Array, norm: str) -> Array:
    """Uniform perturbations in the balls, from one key an example."""
    one = jax.vmap(lambda k, x, r: sample(k, x[None], r, norm)[0])
    return one(keys, x, radius.astype(x.dtype))


def climb(
    goal: Any,
    x: Array,
    keys: Array | None,
    key: Key | None,
    *,
    eps: Number,
    rho: Number,
    steps: int,
    norm: str,
    bounds: Bounds,
    gradient: Gradient,
    active: Array | None = None,
) -> tuple[_Best, Array]:
    """One run of auto-PGD.

    Args:
      goal: what is ascended, as `spax.evasion.fgsm.objective` makes it.
      x: ``[B, ...]``.
      keys: ``[B]``, of the random starts; None: start at x.
      key: of a model or a gradient that draws.
      eps: radius.
      rho: the share of steps that should rise.
      steps: static.
      norm: static.
      bounds: valid range.
      gradient: the hook.
      active: bool ``[B]``. None: everything runs to the end. Otherwise the other rows return x and
        do not count, an example ends with the first point that fools (whatever its neighbours
        do), and the run with the last example.

    Returns:
      The best points, and the number of gradients ``[B]`` that each example took.
    """
    batch, dtype = x.shape[0], wide(x)
    radius = radii(eps, x)
    rising = expand(rho, x.astype(dtype)).reshape(-1)
    windows = _windows(steps, norm)
    look = canonical_convolutions(lambda z, k: gradient(goal, z, k))
    value, grad, fooled = jax.eval_shape(lambda z, k: gradient(goal, z, k), x, key)
    lowest = jnp.full(value.shape, -jnp.inf, value.dtype)

    def running(s: _State) -> Array:
        if active is None:
            return jnp.ones(batch, bool)
        return active & (s.best.fooled < 1)

    def move(s: _State, ball: Array, age: Array) -> Array:
        eta = expand(jnp.where(age > 0, s.eta, 0), x)
        if norm == "l1":
            return project(s.delta + eta * _sparse_sign(s.grad, s.memory[0]), x, ball, norm, bounds)
        u = project(s.delta + eta * steepest(s.grad, norm), x, ball, norm, bounds)
        alpha = jnp.where(age > 1, 0.75, 1).astype(x.dtype).reshape((1,) * x.ndim)
        mixed = s.delta + alpha * (u - s.delta) + (1 - alpha) * (s.delta - s.previous)
        return project(mixed, x, ball, norm, bounds)

    def step(i: Array, age: Array, s: _State, ball: Array, counts: Array) -> _State:
        delta = move(s, ball, age)
        z = displace(x, delta, bounds)
        value, grad, fooled = look(z, _fold_in(key, i))
        now = running(s)
        counted = now & counts
        best = _better(s.best, z, jnp.where(counted, value, lowest), jnp.where(counted, fooled, -1))
        higher = value > s.peak_value
        memory = s.memory
        if norm != "l1":
            rose = (age > 0) & (value > s.value)
            memory = (memory[0] + rose.astype(dtype), *memory[1:])
        return s._replace(
            delta=delta,
            previous=s.delta,
            value=value,
            grad=grad,
            peak=_rows(higher, delta, s.peak),
            peak_value=jnp.where(higher, value, s.peak_value),
            peak_grad=_rows(higher, grad, s.peak_grad),
            memory=memory,
            best=best,
            spent=s.spent + now.astype(jnp.int32),
        )

    def opened(s: _State, ball: Array) -> _State:
        """The beginning in a ball, at the peak of the last."""
        delta = project(s.peak, x, ball, norm, bounds)
        support = _support(delta)
        return s._replace(
            delta=delta,
            previous=delta,
            peak=delta,
            peak_value=lowest,
            eta=ball,
            memory=(_share(delta, support), support),
        )

    def window(carry: tuple[Array, Array, _State], given: _Window) -> tuple[Any, None]:
        i, age, s = carry
        ball = radius * given.factor.astype(dtype)
        if norm == "l1":
            later = given.opens & (i > 0)
            age = jnp.where(given.opens, 0, age)
            s = jax.tree.map(lambda new, old: jnp.where(later, new, old), opened(s, ball), s)

        def go(carry: tuple[Array, Array, _State]) -> Array:
            return (carry[0] < i + given.length) & jnp.any(running(carry[2]))

        def one(carry: tuple[Array, Array, _State]) -> tuple[Array, Array, _State]:
            j, age, s = carry
            return j + 1, age + 1, step(j, age, s, ball, given.factor == 1)

        _, age, s = loops.while_loop(go, one, (i, age, s))
        if norm == "l1":
            s = _sparsify(s, ball)
        else:
            s = _halve(s, given.length - given.opens.astype(jnp.int32), rising)
        return (i + given.length, age, s), None

    first = radius * windows.factor[0].astype(dtype)
    delta = jnp.zeros_like(x)
    if keys is not None:
        delta = project(starts(keys, x, first, norm), x, first, norm, bounds)
    zeros = jnp.zeros(batch, dtype)
    memory: tuple[Array, ...]
    if norm == "l1":
        eta = first
        memory = (zeros + 0.2, zeros + float(math.prod(x.shape[1:])))
    else:
        eta = 2 * radius
        memory = (zeros, jnp.zeros(batch, bool), lowest)
    blank = jnp.zeros(grad.shape, grad.dtype)
    state = _State(
        delta=delta,
        previous=delta,
        value=lowest,
        grad=blank,
        peak=delta,
        peak_value=lowest,
        peak_grad=blank,
        eta=eta,
        memory=memory,
        best=_Best(x, jnp.full(fooled.shape, -1, fooled.dtype), lowest),
        spent=jnp.zeros(batch, jnp.int32),
    )
    start = (jnp.int32(0), jnp.int32(0), state)
    (_, _, state), _ = loops.scan(window, start, jax.tree.map(jnp.asarray, windows))
    return state.best, state.spent
