"""Carlini and Wagner's minimum-norm attack."""

from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import lax

from spax.checks import check_batch, check_choice, check_count, check_key, check_number
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import hits, margin, misclassified
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
    expand,
    wide,
)

__all__ = ["Info", "carlini_wagner"]

_BETA1, _BETA2, _STABILITY = 0.9, 0.999, 1e-8  # Adam


class Info(NamedTuple):
    """What the judge cannot recompute: the weight found, the gradient steps taken, ``[B]`` each."""

    const: Array
    steps: Array


class _Found(NamedTuple):
    x: Array
    distance: Array  # squared; inf: nothing found
    const: Array


class _Descent(NamedTuple):
    w: Array
    m: Array
    v: Array
    active: Array  # bool [B]: not yet stopped early
    improved: Array  # bool [B]: whether a check has seen the objective fall
    last: Array  # the objective at the last check
    steps: Array
    success: Array  # whether this round has succeeded
    found: _Found


def _rows(mask: Array, x: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))


@overload
def carlini_wagner(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    confidence: Number = ...,
    initial_const: Number = ...,
    step_size: Number = ...,
    steps: int = ...,
    search_steps: int = ...,
    norm: str = ...,
    abort_early: bool = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    loss: PerExampleLoss = ...,
    criterion: Criterion | None = ...,
    gradient: Gradient = ...,
    return_info: Literal[False] = ...,
) -> Array: ...
@overload
def carlini_wagner(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    confidence: Number = ...,
    initial_const: Number = ...,
    step_size: Number = ...,
    steps: int = ...,
    search_steps: int = ...,
    norm: str = ...,
    abort_early: bool = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    loss: PerExampleLoss = ...,
    criterion: Criterion | None = ...,
    gradient: Gradient = ...,
    return_info: Literal[True],
) -> tuple[Array, Info]: ...
def carlini_wagner(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    confidence: Number = 0.0,
    initial_const: Number = 1e-3,
    step_size: Number = 1e-2,
    steps: int = 1000,
    search_steps: int = 9,
    norm: str = "l2",
    abort_early: bool = True,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = margin,
    criterion: Criterion | None = None,
    gradient: Gradient = exact,
    return_info: bool = False,
) -> Array | tuple[Array, Info]:
    """Carlini-Wagner attack: the nearest point (l2) that fools with a given confidence.

    Minimises ``|z - x|^2 + c max(confidence - s loss(z), 0)`` over ``z = z(tanh w)`` by Adam, in
    ``search_steps`` rounds: per example, c grows tenfold until a round succeeds and is bisected
    afterwards; the last round runs at the smallest c that succeeded.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K).
      key: a random key, for a Stochastic model or a sampling ``gradient``.
      confidence: the margin kappa that a success needs, >= 0, in the units of the loss.
      initial_const: first weight c, > 0, scalar or ``[B]``.
      step_size: Adam's, > 0, in the units of w.
      steps: gradient steps a round, static, >= 1.
      search_steps: rounds, static, >= 1.
      norm: ``"l2"``.
      abort_early: whether an example rests for the remainder of a round once a tenth of the
        steps has not lowered its objective by 0.01 %, having lowered it before. The round ends
        when all rest. With it the attack cannot be differentiated in reverse mode.
      targeted: whether ``y`` are wanted labels.
      bounds: valid range of the inputs, finite.
      loss: ``(outputs, y) -> [B]``, positive at success: the margin.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted. Success is this, and ``s loss >= confidence``.
      gradient: how the gradient of the hinge is taken.
      return_info: static; whether to return the `Info` too.

    Returns:
      ``x_adv``, the successful point nearest to ``x`` over all iterates of all rounds, and ``x``
      itself where there was none or where ``x`` succeeds already; with ``return_info=True`` also
      ``Info(const, steps)``: the c at which it was found (0 for x itself, inf for none), and the
      gradient steps that were spent.

    Guarantees:
      Within ``bounds``; no example's result depends on its neighbours, early stop included.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, a label is outside the classes, or a number is out of its range; if something
        draws and key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y: carlini_wagner(
      ...     lambda x: x @ w, x, y, steps=100, search_steps=5, initial_const=1.0))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.4]]), jnp.array([0]))
      >>> bool(x_adv[0, 1] > x_adv[0, 0]), x_adv.round(2).tolist()
      (True, [[0.5, 0.5]])

    References:
      N. Carlini, D. Wagner, Towards evaluating the robustness of neural networks, 2017,
      arXiv:1608.04644, Section VI-A, f_6.
    """
    check_choice("norm", norm, ("l2",))
    check_batch(x, y, bounds)
    check_number("confidence", confidence, low=0)
    check_number("initial_const", initial_const, low=0, low_open=True)
    check_number("step_size", step_size, low=0, low_open=True)
    check_count("steps", steps)
    check_count("search_steps", search_steps)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")

    judged = criterion or (hits if targeted else misclassified)
    # Adam's averages need float32 at least; the model sees the dtype of x.
    dtype = wide(x)
    origin = x.astype(dtype)
    kappa = jnp.broadcast_to(jnp.asarray(confidence, dtype), x.shape[:1])
    low, high = box(bounds, origin)
    half = (high - low) / 2
    every = max(steps // 10, 1)

    def evaluate(z: Array, key: Key | None = None) -> tuple[Array, Array]:
        outputs = call(logits_fn, z, key)
        reached = (-loss(outputs, y) if targeted else loss(outputs, y)).astype(dtype)
        success = judged(outputs, y) & (reached >= kappa)
        return -jnp.maximum(kappa - reached, 0), success.astype(dtype)

    goal = Stochastic(evaluate) if isinstance(logits_fn, Stochastic) else evaluate
    look = canonical_convolutions(lambda z, k: gradient(goal, z, k))

    def key_at(i: Array | int) -> Key | None:
        return None if key is None else jax.random.fold_in(key, i)

    def descend(i: Array, first_key: Array, const: Array, state: _Descent) -> _Descent:
        t = jnp.tanh(state.w)
        z = jnp.clip(low + half * (t + 1), low, high).astype(x.dtype)
        value, grad, success = look(z, key_at(first_key + i))
        delta = z.astype(dtype) - origin
        distance = jnp.sum(delta * delta, axis=tuple(range(1, x.ndim)))

        # An eot hook reports the share of draws that succeeded: most of them must.
        success = (success > 0.5) & state.active
        nearer = success & (distance < state.found.distance)
        found = _Found(
            jnp.where(_rows(nearer, x), z, state.found.x),
            jnp.where(nearer, distance, state.found.distance),
            jnp.where(nearer, const, state.found.const),
        )

        g = (2 * delta - expand(const, delta) * grad.astype(dtype)) * half * (1 - t * t)
        g = jnp.where(jnp.isfinite(g), g, 0)
        m = _BETA1 * state.m + (1 - _BETA1) * g
        v = _BETA2 * state.v + (1 - _BETA2) * g * g
        count = (i + 1).astype(dtype)
        m_hat = m / (1 - jnp.asarray(_BETA1, dtype) ** count)
        v_hat = v / (1 - jnp.asarray(_BETA2, dtype) ** count)
        w = state.w - expand(step_size, delta) * m_hat / (jnp.sqrt(v_hat) + _STABILITY)

        active, improved, last = state.active, state.improved, state.last
        if abort_early:
            total = distance - const * value
            checked = i % every == 0
            fell = total <= 0.9999 * last
            # At the box tanh is flat: an example that has yet to leave it has not come to rest.
            active = active & ~(checked & improved & ~fell)
            improved = improved | (checked & fell & (i > 0))
            last = jnp.where(checked, total, last)
        return _Descent(
            jnp.where(_rows(state.active, x), w, state.w),
            m,
            v,
            active,
            improved,
            last,
            state.steps + state.active.astype(state.steps.dtype),
            state.success | success,
            found,
        )

    # Strictly inside, so that atanh is finite.
    w0 = jnp.arctanh(jnp.clip((origin - low) / half - 1, -1, 1) * (1 - 1e-6))
    full = jnp.full(x.shape[:1], jnp.inf, dtype)
    everyone = jnp.ones(x.shape[:1], bool)

    def round_(r: Array, carry: tuple[Array, Array, Array, Array, _Found]) -> tuple:
        lower, upper, const, spent, found = carry
        const = jnp.where((r == search_steps - 1) & jnp.isfinite(upper), upper, const)
        state = _Descent(
            w0,
            jnp.zeros_like(w0),
            jnp.zeros_like(w0),
            everyone,
            ~everyone,
            full,
            spent,
            ~everyone,
            found,
        )
        if abort_early:
            _, state = lax.while_loop(
                lambda c: (c[0] < steps) & jnp.any(c[1].active),
                lambda c: (c[0] + 1, descend(c[0], r * steps, const, c[1])),
                (jnp.zeros((), r.dtype), state),
            )
        else:
            state = lax.fori_loop(0, steps, lambda i, s: descend(i, r * steps, const, s), state)
        upper = jnp.where(state.success, jnp.minimum(upper, const), upper)
        lower = jnp.where(state.success, lower, jnp.maximum(lower, const))
        const = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, const * 10)
        return lower, upper, const, state.steps, state.found

    _, already = call(goal, x, key_at(search_steps * steps))
    found = _Found(x, jnp.where(already > 0, 0, full), jnp.where(already > 0, 0, full))
    const = jnp.broadcast_to(jnp.asarray(initial_const, dtype), x.shape[:1])
    carry = (jnp.zeros_like(const), full, const, jnp.zeros(x.shape[:1], jnp.int32), found)
    *_, spent, found = lax.fori_loop(0, search_steps, round_, carry)
    return (found.x, Info(found.const, spent)) if return_info else found.x
