"""SPSA with Adam: an attack on models that give scores and no gradients."""

from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from spax import loops
from spax.checks import check_batch, check_count, check_key, check_number
from spax.evasion.adam import Moments, adam, no_moments
from spax.evasion.fgsm import _Best, _better, objective
from spax.evasion.oracle import Info, ask, budget_of
from spax.losses import margin
from spax.norms import box, displace, example_keys, project
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Key,
    Model,
    Number,
    Outputs,
    PerExampleLoss,
    PyTree,
    each_row,
    expand,
    wide,
)

__all__ = ["spsa_attack"]


_CHUNK = 32  # pairs in one evaluation of the model, at most


class _Climb(NamedTuple):
    i: Array
    z: Array
    moments: Moments
    best: _Best
    queries: Array
    active: Array


@overload
def spsa_attack(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    eps: Number,
    step_size: Number = ...,
    delta: Number = ...,
    max_queries: Number | None = ...,
    n: int = ...,
    steps: int = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    loss: PerExampleLoss = ...,
    criterion: Criterion | None = ...,
    return_info: Literal[False] = ...,
) -> Array: ...
@overload
def spsa_attack(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    eps: Number,
    step_size: Number = ...,
    delta: Number = ...,
    max_queries: Number | None = ...,
    n: int = ...,
    steps: int = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    loss: PerExampleLoss = ...,
    criterion: Criterion | None = ...,
    return_info: Literal[True],
) -> tuple[Array, Info]: ...
def spsa_attack(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    eps: Number,
    step_size: Number = 0.01,
    delta: Number = 0.01,
    max_queries: Number | None = None,
    n: int = 256,
    steps: int = 100,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = margin,
    criterion: Criterion | None = None,
    return_info: bool = False,
) -> Array | tuple[Array, Info]:
    """SPSA attack: Adam in the linf ball, its gradients from pairs of values along random signs.

    Each step estimates ``E[(L(z + delta u) - L(z - delta u)) / (2 delta) u]`` from n pairs. An
    example that fools rests, and is asked no more; the loop ends when all do.

    The gradient-free attack with a momentum of sign steps (NES) needs no function of its own:
    ``mi_fgsm(f, x, y, key=key, eps=eps, decay=0.9, loss=margin, gradient=nes(50, 1e-3))``, with
    `spax.gradients.nes`. It takes an Oracle too, and asks for ``100 steps + 1`` whole batches and
    one a step.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``: plain, Stochastic (the two sides of a pair get
        the same draw), or an `Oracle`.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K).
      key: a random key, always needed.
      eps: linf radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      step_size: Adam's, > 0, scalar or ``[B]``.
      delta: half the distance of a pair, > 0, scalar or ``[B]``, in the units of x. Below the
        quantum of a quantised model the estimate is zero.
      max_queries: rows that an example may cost, scalar or ``[B]``; None: no limit but
        ``steps (2 n + 1) + 1``.
      n: pairs a step, static, >= 1; best a multiple of 32, or less.
      steps: number of steps, static, >= 1.
      targeted: whether ``y`` are wanted labels.
      bounds: valid range of the inputs; pairs are clipped to it.
      loss: ``(outputs, y) -> [B]``.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted.
      return_info: static; whether to return the `Info` too.

    Returns:
      The first point seen that fools, else the iterate of highest loss; with ``return_info=True``
      also ``Info(queries)``, the rows asked.

    Guarantees:
      Within ``bounds``, and within eps of ``x``; never more than ``max_queries`` rows an example:
      a step that they do not cover is not begun.

    Raises:
      ValueError: on a wrong shape or dtype; if concrete inputs are not finite or out of bounds, a
        label is outside the classes, or a number out of its range; if key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y, key: spsa_attack(
      ...     lambda x: x @ w, x, y, key=key, eps=0.1, n=8, steps=20))
      >>> x = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]), jnp.array([0]), jax.random.key(0))
      >>> bool(x[0, 1] > x[0, 0])
      True

    References:
      J. Uesato, B. O'Donoghue, A. van den Oord, P. Kohli, Adversarial risk and the dangers of
      evaluating against weak attacks, 2018, arXiv:1802.05666, Algorithm 1. A. Ilyas, L. Engstrom,
      A. Athalye, J. Lin, Black-box adversarial attacks with limited queries and information, 2018,
      arXiv:1804.08598 (NES). Here pairs are clipped to the bounds, so that only valid inputs are
      asked: at the box a derivative counts half, which Adam undoes.
    """
    check_batch(x, y, bounds)
    check_number("eps", eps, low=0)
    check_number("step_size", step_size, low=0, low_open=True)
    check_number("delta", delta, low=0, low_open=True)
    check_count("n", n)
    check_count("steps", steps)
    root = check_key(key, "spsa_attack")
    budget = budget_of(max_queries, x)
    dtype = wide(x)
    low, high = box(bounds, x)
    chunk = max(c for c in range(1, min(n, _CHUNK) + 1) if n % c == 0)

    def scored(outputs: Outputs, x: Array) -> tuple[Array, Array]:
        known = objective(lambda _: outputs, y, loss=loss, criterion=criterion, targeted=targeted)
        value, fooled = known(x)
        return value.astype(dtype), fooled

    def slope(z: Array, live: Array, key: Key) -> Array:
        many = jnp.broadcast_to(live[None], (chunk, *live.shape))
        width = expand(delta, z.astype(dtype))[None]

        def values(z: Array, key: Key) -> Array:
            z = jnp.clip(z.astype(x.dtype), low[None], high[None])
            return jax.vmap(lambda o, z: scored(o, z)[0])(ask(logits_fn, z, many, key), z)

        def draw(key: Key) -> Array:
            sign = jax.vmap(lambda k: jax.random.rademacher(k, x.shape[1:], dtype))
            return sign(example_keys(key, x))

        def add(i: Array, total: Array) -> Array:
            key_u, key_f = jax.random.split(jax.random.fold_in(key, i))
            u = jax.vmap(draw)(jax.random.split(key_u, chunk))
            middle = z.astype(dtype)[None]
            # The same draw of the model on both sides: its noise cancels.
            apart = values(middle + width * u, key_f) - values(middle - width * u, key_f)
            return total + jnp.sum(each_row(apart, u) * u, axis=0)

        rounds = jnp.where(jnp.any(live), n // chunk, 0)
        total = loops.fori_loop(0, rounds, add, loops.varying(jnp.zeros(x.shape, dtype), x))
        return total / (2 * n * width[0])

    def climb(c: _Climb) -> _Climb:
        key_value, key_slope = jax.random.split(jax.random.fold_in(root, c.i))
        live = c.active & (c.queries < budget)
        value, fooled = scored(ask(logits_fn, c.z, live, key_value), c.z)
        # What was not asked is not better.
        best = _better(c.best, c.z, jnp.where(live, value, -jnp.inf), jnp.where(live, fooled, 0))
        queries = c.queries + live.astype(jnp.int32)
        moving = live & ~(fooled > 0) & (budget - queries >= 2 * n) & (c.i < steps)
        grad = slope(c.z, moving, key_slope)
        queries = queries + 2 * n * moving.astype(jnp.int32)

        direction, moments = adam(c.moments, grad)
        step = expand(step_size, direction) * direction
        moved = project(c.z - x + step.astype(x.dtype), x, eps, "linf", bounds)
        z = jnp.where(expand(moving, x) > 0, displace(x, moved, bounds), c.z)
        return _Climb(c.i + 1, z, moments, best, queries, moving)

    everyone = jnp.ones(x.shape[:1], bool)
    some = jax.eval_shape(lambda x: scored(ask(logits_fn, x, everyone, root), x)[1], x)
    unseen = _Best(x, jnp.full(some.shape, -1, some.dtype), jnp.full(x.shape[:1], -jnp.inf, dtype))
    start = _Climb(
        jnp.zeros((), jnp.int32), x, no_moments(jnp.zeros(x.shape, dtype)), unseen,
        jnp.zeros(x.shape[:1], jnp.int32), everyone,
    )  # fmt: skip
    end = loops.while_loop(lambda c: (c.i <= steps) & jnp.any(c.active), climb, start)
    return (end.best.x, Info(end.queries)) if return_info else end.best.x
