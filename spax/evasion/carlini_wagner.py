"""Carlini and Wagner's minimum-norm attack."""

from collections.abc import Callable
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from spax.checks import check_choice
from spax.evasion.minimum_norm import (
    Found,
    Info,
    check_search,
    hinge,
    nothing_found,
    search_const,
)
from spax.evasion.tanh_descent import Box, box_of, descend, variables
from spax.evasion.tanh_levels import search_l0, search_linf
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import margin
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
    call,
)

__all__ = ["Info", "carlini_wagner"]


def _search_l2(
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
    axes = tuple(range(1, x.ndim))
    # Strictly inside, so that atanh is finite.
    w0 = variables(space, x, 1e-6)

    def run_round(r: Array, const: Array, spent: Array, found: Found) -> tuple[Array, Array, Found]:
        state = descend(
            space,
            lambda z, i: look(z, key_at(r * steps + i)),
            w0,
            x,
            const,
            spent,
            found,
            penalty=lambda delta: (jnp.sum(delta * delta, axis=axes), 2 * delta),
            active=jnp.ones(x.shape[:1], bool),
            step_size=step_size,
            steps=steps,
            abort_early=abort_early,
        )
        return state.success, state.steps, state.found

    return search_const(run_round, found, initial_const=initial_const, search_steps=search_steps)


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
    """Carlini-Wagner attack: the nearest point (l2, l0, linf) that fools with a given confidence.

    l2: minimises ``|z - x|^2 + c max(confidence - s loss(z), 0)`` over ``z = z(tanh w)`` by Adam,
    in ``search_steps`` rounds: per example, c grows tenfold until a round succeeds and is bisected
    afterwards; the last round runs at the smallest c that succeeded.

    l0: the l2 descent again and again, each from the last success and up to the first of its own.
    After each, the entries that contributed least (the gradient times their change) may not
    change any more: 30 % of those that did, and half that share whenever a descent fails at all of
    ``search_steps`` weights c, down to one entry.

    linf: ``sum_i max(|z_i - x_i| - tau, 0)`` takes the place of the squared distance. After each
    success tau becomes 0.9 of the largest change; where a descent fails at all weights, the step
    of tau is halved, down to 0.0125.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K).
      key: a random key, for a Stochastic model or a sampling ``gradient``.
      confidence: the margin kappa that a success needs, >= 0, in the units of the loss.
      initial_const: first weight c, > 0, scalar or ``[B]``.
      step_size: Adam's, > 0, in the units of w.
      steps: gradient steps a round (a descent, for l0 and linf), static, >= 1.
      search_steps: static, >= 1: for l2 the rounds, for l0 and linf the weights tried in turn, each
        ten times the one before.
      norm: ``"l2"``, ``"l0"`` (the number of entries, channels counted one by one) or ``"linf"``.
      abort_early: whether an example rests for the remainder of a round once a tenth of the
        steps has not lowered its objective by 0.01 %, having lowered it before. The round ends
        when all rest. With it, and for l0 and linf, the attack cannot be differentiated in
        reverse mode.
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
      arXiv:1608.04644, Sections VI-A (l2), VI-B (l0), VI-C (linf), f_6. Deviations for l0 and linf:
      several entries leave at a time, c grows tenfold and not twofold, and a failed level is
      followed by an easier one instead of by the end.
    """
    check_choice("norm", norm, ("l2", "l0", "linf"))
    check_search(
        logits_fn,
        x,
        y,
        key,
        bounds,
        confidence=confidence,
        initial_const=initial_const,
        step_size=step_size,
        steps=steps,
        search_steps=search_steps,
    )

    def goal_of(flat: bool) -> Any:
        return hinge(
            logits_fn,
            x,
            y,
            confidence=confidence,
            loss=loss,
            criterion=criterion,
            targeted=targeted,
            flat=flat,
        )

    goal = goal_of(True)
    look = canonical_convolutions(lambda z, k: gradient(goal, z, k))
    slope = canonical_convolutions(lambda z, k: gradient(goal_of(False), z, k)[1])
    key_first, key_steps = (None, None) if key is None else jax.random.split(key)

    def key_at(i: Array) -> Key | None:
        return None if key_steps is None else jax.random.fold_in(key_steps, i)

    _, already = call(goal, x, key_first)
    settings: dict[str, Any] = {
        "step_size": step_size,
        "steps": steps,
        "abort_early": abort_early,
        "initial_const": initial_const,
        "search_steps": search_steps,
    }
    space, found = box_of(x, bounds), nothing_found(x, already)
    if norm == "l2":
        spent, found = _search_l2(space, look, key_at, x, found, **settings)
    elif norm == "l0":
        spent, found = search_l0(space, look, slope, key_at, x, found, **settings)
    else:
        spent, found = search_linf(space, look, key_at, x, found, **settings)
    return (found.x, Info(found.const, spent)) if return_info else found.x
