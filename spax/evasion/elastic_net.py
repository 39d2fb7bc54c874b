"""The elastic-net attack: sparse perturbations by a proximal method."""

import math
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from spax import loops
from spax.checks import check_number
from spax.evasion.minimum_norm import (
    Found,
    Info,
    Rest,
    check_search,
    hinge,
    nearer,
    nothing_found,
    rest,
    search_const,
    unrested,
)
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import margin
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
    call,
    each_row,
    expand,
    wide,
)

__all__ = ["ead"]


class _Fista(NamedTuple):
    z: Array
    v: Array  # the extrapolated point, where the gradient is taken
    rest: Rest
    steps: Array
    success: Array
    found: Found


@overload
def ead(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    beta: Number = ...,
    confidence: Number = ...,
    initial_const: Number = ...,
    step_size: Number = ...,
    steps: int = ...,
    search_steps: int = ...,
    l1_rule: bool = ...,
    scale_threshold: bool = ...,
    abort_early: bool = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    loss: PerExampleLoss = ...,
    criterion: Criterion | None = ...,
    gradient: Gradient = ...,
    return_info: Literal[False] = ...,
) -> Array: ...
@overload
def ead(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = ...,
    beta: Number = ...,
    confidence: Number = ...,
    initial_const: Number = ...,
    step_size: Number = ...,
    steps: int = ...,
    search_steps: int = ...,
    l1_rule: bool = ...,
    scale_threshold: bool = ...,
    abort_early: bool = ...,
    targeted: bool = ...,
    bounds: Bounds = ...,
    loss: PerExampleLoss = ...,
    criterion: Criterion | None = ...,
    gradient: Gradient = ...,
    return_info: Literal[True],
) -> tuple[Array, Info]: ...
def ead(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    beta: Number = 1e-3,
    confidence: Number = 0.0,
    initial_const: Number = 1e-3,
    step_size: Number = 1e-2,
    steps: int = 1000,
    search_steps: int = 9,
    l1_rule: bool = False,
    scale_threshold: bool = False,
    abort_early: bool = True,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = margin,
    criterion: Criterion | None = None,
    gradient: Gradient = exact,
    return_info: bool = False,
) -> Array | tuple[Array, Info]:
    """Elastic-net attack (EAD): the nearest point in l1, or in a mix of l1 and l2, that fools.

    Minimises ``c max(confidence - s loss(z), 0) + beta |z - x|_1 + |z - x|_2^2`` by FISTA: a
    gradient step of the smooth terms from the extrapolated point, shrinkage towards ``x`` by a
    threshold, the box. Rounds at one c each follow one another as in `carlini_wagner`. Most
    entries of the result equal those of ``x``.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K).
      key: a random key, for a Stochastic model or a sampling ``gradient``.
      beta: weight of the l1 norm, and the threshold, >= 0, scalar or ``[B]``.
      confidence: the margin kappa that a success needs, >= 0, in the units of the loss.
      initial_const: first weight c, > 0, scalar or ``[B]``.
      step_size: of the first gradient step, > 0; it decays with the root of the steps left.
      steps: gradient steps a round, static, >= 1.
      search_steps: rounds, static, >= 1.
      l1_rule: static; whether the nearest success is that of least ``|z - x|_1`` (the paper's L1
        rule) and not of least ``beta |z - x|_1 + |z - x|_2^2`` (its EN rule).
      scale_threshold: static; whether the threshold is ``step_size beta``, as in the method's
        derivation, and not ``beta``, as in the authors' code and whatever follows it. Then beta
        has to be some hundred times larger for the same sparsity.
      abort_early: static; whether an example rests for the remainder of a round once a tenth of
        the steps has not lowered its smooth objective by 0.01 %. With it the attack cannot be
        differentiated in reverse mode.
      targeted: whether ``y`` are wanted labels.
      bounds: valid range of the inputs.
      loss: ``(outputs, y) -> [B]``, positive at success: the margin.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted. Success is this, and ``s loss >= confidence``.
      gradient: how the gradient of the hinge is taken.
      return_info: static; whether to return the `Info` too.

    Returns:
      ``x_adv``, the successful point nearest to ``x`` by the rule, over all iterates of all
      rounds, and ``x`` itself where there was none or where ``x`` succeeds already; with
      ``return_info=True`` also ``Info(const, steps)``: the c at which it was found (0 for x
      itself, inf for none), and the gradient steps that were spent.

    Guarantees:
      Within ``bounds``; no example's result depends on its neighbours, early stop included.

    Raises:
      ValueError: on a wrong shape or dtype; if concrete inputs are not finite or out of bounds, a
        label is outside the classes, or a number is out of its range; if something draws and key
        is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y: ead(
      ...     lambda x: x @ w, x, y, steps=100, search_steps=5, initial_const=1.0, beta=0.02))
      >>> w = jnp.array([[1.0, 0.0], [0.2, 0.0], [0.0, 0.5]])
      >>> x_adv = attack(w, jnp.array([[0.6, 0.5, 0.8]]), jnp.array([0]))
      >>> bool((x_adv @ w)[0, 1] > (x_adv @ w)[0, 0]), (x_adv[0] - 0.6).round(1).tolist()[0] < 0
      (True, True)

    References:
      P.-Y. Chen, Y. Sharma, H. Zhang, J. Yi, C.-J. Hsieh, EAD: Elastic-net attacks to deep neural
      networks via adversarial examples, 2017, arXiv:1709.04114, Algorithm 1, Eqs 7 and 8. Used on
      robust models by Y. Sharma, P.-Y. Chen, Attacking the Madry defense model with l1-based
      adversarial examples, 2017, arXiv:1710.10733.
    """
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
    check_number("beta", beta, low=0)

    goal = hinge(
        logits_fn, x, y, confidence=confidence, loss=loss, criterion=criterion, targeted=targeted
    )
    look = canonical_convolutions(lambda v, k: gradient(goal, v, k)[:2])
    judge = canonical_convolutions(lambda z, k: call(goal, z, k)[1])
    dtype = wide(x)
    origin = x.astype(dtype)
    low, high = box(bounds, origin)
    axes = tuple(range(1, x.ndim))
    every = max(math.ceil(steps / 10), 1)
    keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))

    def key_at(which: int, i: Array) -> Key | None:
        return None if keys[which] is None else jax.random.fold_in(keys[which], i)

    def distances(delta: Array) -> Array:
        l1 = jnp.sum(jnp.abs(delta), axis=axes)
        if l1_rule:
            return l1
        return jnp.asarray(beta, dtype) * l1 + jnp.sum(delta * delta, axis=axes)

    def step(first_key: Array, const: Array, i: Array, state: _Fista) -> _Fista:
        moving = each_row(state.rest.active, x)
        rate = jnp.asarray(step_size, dtype) * jnp.sqrt(1 - i.astype(dtype) / steps)
        v = state.v
        value, grad = look(v.astype(x.dtype), key_at(0, first_key + i))
        delta = v - origin
        g = 2 * delta - expand(const, v) * grad.astype(dtype)
        u = delta - expand(rate, v) * jnp.where(jnp.isfinite(g), g, 0)
        threshold = expand(jnp.asarray(beta, dtype) * (rate if scale_threshold else 1), v)
        kept = jnp.sign(u) * jnp.maximum(jnp.abs(u) - threshold, 0)
        # As many entries as may be are those of x to the bit, and in bounds by clipping alone.
        z = jnp.where(kept == 0, origin, jnp.clip(origin + kept, low, high))
        momentum = i.astype(dtype) / (i.astype(dtype) + 3)
        v = z + momentum * (z - state.z)

        point = z.astype(x.dtype)
        success = (judge(point, key_at(1, first_key + i)) > 0) & state.rest.active
        distance = distances(point.astype(dtype) - origin)
        resting = state.rest
        if abort_early:
            total = jnp.sum(delta * delta, axis=axes) - const * value
            resting = rest(resting, total, i, every)
        return _Fista(
            jnp.where(moving, z, state.z),
            jnp.where(moving, v, state.v),
            resting,
            state.steps + state.rest.active.astype(state.steps.dtype),
            state.success | success,
            nearer(state.found, point, distance, const, success),
        )

    def run_round(r: Array, const: Array, spent: Array, found: Found) -> tuple[Array, Array, Found]:
        active = jnp.ones(x.shape[:1], bool)
        # What a first step shrinks back to x stays there: no patience with it.
        resting = unrested(active, dtype, patient=False)
        state = _Fista(origin, origin, resting, spent, ~active, found)
        if abort_early:
            _, state = loops.while_loop(
                lambda c: (c[0] < steps) & jnp.any(c[1].rest.active),
                lambda c: (c[0] + 1, step(r * steps, const, c[0], c[1])),
                (jnp.zeros((), r.dtype), state),
            )
        else:
            state = loops.fori_loop(0, steps, lambda i, s: step(r * steps, const, i, s), state)
        return state.success, state.steps, state.found

    found = nothing_found(x, call(goal, x, keys[2])[1])
    spent, found = search_const(
        run_round, found, initial_const=initial_const, search_steps=search_steps
    )
    return (found.x, Info(found.const, spent)) if return_info else found.x
