"""Universal perturbations: one for all inputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax import loops
from spax.checks import (
    check_batch,
    check_bounds,
    check_choice,
    check_count,
    check_key,
    check_number,
)
from spax.evasion.deepfool import deepfool
from spax.evasion.fgsm import objective
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import cross_entropy, misclassified
from spax.norms import box, displace, project, steepest
from spax.typing import (
    Array,
    Bounds,
    Gradient,
    Key,
    Model,
    Number,
    PerExampleLoss,
    Stochastic,
    call,
)

__all__ = ["Universal", "UniversalState", "apply_universal", "universal", "universal_deepfool"]

_ANYWHERE = (-jnp.inf, jnp.inf)


class UniversalState(NamedTuple):
    """The perturbation so far, one example's shape; how many minibatches it has seen."""

    v: Array
    steps: Array
    fooled: Array  # the share of the last minibatch that v fooled before it changed


class Universal(NamedTuple):
    """``init(x_example) -> state`` and ``update(state, x, y=None, key=None) -> (v, state)``."""

    init: Callable[..., UniversalState]
    update: Callable[..., tuple[Array, UniversalState]]


def apply_universal(v: Array, x: Array, bounds: Bounds = (0.0, 1.0)) -> Array:
    """Adds one perturbation to every input and clips to the box.

    Args:
      v: the perturbation, shaped as one example.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      bounds: valid range of the inputs, numbers or arrays of their trailing shape.

    Returns:
      ``[B, ...]``, in the dtype of ``x``.

    Guarantees:
      Within ``bounds``, and no entry farther from ``x`` than that of ``|v|``.

    Raises:
      ValueError: if v does not have the shape of an example, or concrete x is out of bounds.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_universal(jnp.array([0.25, -0.25]), jnp.array([[0.5, 0.0]])).tolist()
      [[0.75, 0.0]]

    References:
      S. Moosavi-Dezfooli et al., Universal adversarial perturbations, 2017, arXiv:1610.08401.
    """
    check_batch(x, None, bounds)
    if jnp.shape(v) != x.shape[1:]:
        raise ValueError(
            f"v must have the shape of one example, {x.shape[1:]} (got v.shape={jnp.shape(v)})"
        )
    return displace(x, jnp.broadcast_to(jnp.asarray(v, x.dtype)[None], x.shape), bounds)


def _init(x_example: Array) -> UniversalState:
    if not hasattr(x_example, "dtype") or not jnp.issubdtype(x_example.dtype, jnp.floating):
        raise ValueError(f"x_example must be one floating example (got {x_example!r})")
    zero = jnp.zeros((), jnp.float32)
    return UniversalState(jnp.zeros_like(x_example), jnp.zeros((), jnp.int32), zero)


def _check_radius(eps: Any, norm: str, bounds: Bounds) -> None:
    check_choice("norm", norm, ("linf", "l2"))
    check_number("eps", eps, low=0)
    check_bounds(bounds)
    if jnp.ndim(eps):
        raise ValueError(f"eps must be a scalar: v is one for all (got shape {jnp.shape(eps)})")


def _clean(logits_fn: Model, x: Array, y: Array | None, key: Key | None) -> Array:
    """The labels, or what the model says of the clean inputs."""
    if y is not None:
        return y
    return jnp.argmax(call(logits_fn, x, key), axis=-1).astype(jnp.int32)


def _keys(logits_fn: Model, key: Key | None) -> tuple[Key | None, Key | None]:
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")
    return (None, None) if key is None else tuple(jax.random.split(key))


def universal(
    logits_fn: Model,
    *,
    eps: Number,
    step_size: Number | None = None,
    cap: Number = 9.0,
    norm: str = "linf",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    gradient: Gradient = exact,
) -> Universal:
    """Universal adversarial perturbation by gradient ascent on minibatches: one v for all inputs.

    Each update is one step of steepest ascent on the batch's total of ``min(loss, cap)`` at
    ``clip(x + v)``, projected on the ball. The caller loops over epochs, by `jax.lax.scan` or over
    a loader::

        attack = universal(logits_fn, eps=0.3)
        state = attack.init(x[0])
        v, state = attack.update(state, x_batch)

    The fooling rate is the mean success of `spax.evaluation.judge` on ``apply_universal(v, x)``,
    with the model's clean predictions ``argmax logits_fn(x)`` as labels.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      eps: radius of the ball around 0 that v stays in, >= 0, a scalar; a traced value below 0
        means 0.
      step_size: length of a step, >= 0; None: eps / 20.
      cap: where an example's loss stops counting, > 0, so that those already fooled do not take
        all of v; without effect when targeted.
      norm: ``"linf"`` or ``"l2"``.
      targeted: whether all inputs are driven towards the labels given to ``update``.
      bounds: valid range of the inputs. ``x + v`` is clipped to it, v is not.
      loss: ``(outputs, y) -> [B]``.
      gradient: how the gradient with respect to ``x + v`` is taken.

    Returns:
      ``Universal(init, update)``. ``init(x_example)`` starts at 0, in the shape and dtype of one
      example. ``update(state, x, y=None, key=None)`` takes one minibatch ``[B, ...]``, with labels
      (None: the model's clean predictions; wanted labels when targeted) and, for a Stochastic
      model or a sampling ``gradient``, a key; it returns v and the state, whose ``fooled`` is the
      share of the minibatch that the v before it fooled (or drove to its targets).

    Guarantees:
      v stays in the ball; the order of the examples in a minibatch does not matter.

    Raises:
      ValueError: on another norm (Bae et al. print an l1 bound; the paper has l2 and linf), or a
        number out of its range; at an update, on wrong shapes or concrete inputs out of bounds,
        if targeted without y, or if something draws and key is None.

    Example:
      >>> import jax.numpy as jnp
      >>> attack = universal(lambda x: x, eps=0.2, step_size=0.2)
      >>> x = jnp.array([[0.6, 0.5], [0.7, 0.4]])
      >>> v, state = attack.update(attack.init(x[0]), x)
      >>> [round(float(e), 3) for e in v], apply_universal(v, x).argmax(1).tolist()
      ([-0.2, 0.2], [1, 1])

    References:
      A. Shafahi et al., Universal adversarial training, 2018, arXiv:1811.11304, Algorithm 2 and
      Eq 3 (the clipped loss). S. Moosavi-Dezfooli et al., Universal adversarial perturbations,
      2017, arXiv:1610.08401. A pixel that the box stops has no gradient outwards, but keeps the
      one inwards: v could not come back otherwise.
    """
    _check_radius(eps, norm, bounds)
    check_number("cap", cap, low=0, low_open=True)
    if step_size is not None:
        check_number("step_size", step_size, low=0)

    def capped(outputs: Any, y: Any) -> Array:
        value = loss(outputs, y)
        return value if targeted else jnp.minimum(value, jnp.asarray(cap, value.dtype))

    def update(
        state: UniversalState, x: Array, y: Array | None = None, key: Key | None = None
    ) -> tuple[Array, UniversalState]:
        check_batch(x, y, bounds)
        if targeted and y is None:
            raise ValueError("a targeted perturbation needs the wanted labels (got y=None)")
        z = apply_universal(state.v, x, bounds)
        key_clean, key_grad = _keys(logits_fn, key)
        labels = _clean(logits_fn, x, y, key_clean)
        goal = objective(logits_fn, labels, loss=capped, criterion=None, targeted=targeted)
        look = canonical_convolutions(lambda z, k: gradient(goal, z, k))
        _, grad, fooled = look(z, key_grad)
        low, high = box(bounds, x)
        stopped = ((z >= high) & (grad > 0)) | ((z <= low) & (grad < 0))
        total = jnp.sum(jnp.where(stopped | ~jnp.isfinite(grad), 0, grad), axis=0, keepdims=True)

        v = state.v[None]
        length = jnp.asarray(eps, v.dtype) / 20 if step_size is None else step_size
        moved = v + jnp.asarray(length, v.dtype) * steepest(total, norm).astype(v.dtype)
        v = project(moved, jnp.zeros_like(v), eps, norm, _ANYWHERE)[0]
        rate = jnp.mean(fooled.astype(jnp.float32)) if x.shape[0] else state.fooled
        return v, UniversalState(v, state.steps + 1, rate)

    return Universal(_init, update)


def universal_deepfool(
    logits_fn: Model,
    *,
    eps: Number,
    overshoot: Number = 0.02,
    steps: int = 50,
    candidates: int = 10,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> Universal:
    """Universal adversarial perturbation, the classic form: DeepFool on one example after another.

    For each example that v does not fool yet, the least step that takes ``x + v`` over a decision
    boundary is added to v, and v is projected on the ball. Slow, for it cannot work in parallel,
    and v need not improve with every pass; `universal` is faster and ends higher. The caller
    passes over the data until ``state.fooled`` is high enough (the paper: 0.8), or ten times.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      eps: radius of the ball around 0 that v stays in, >= 0, a scalar; a traced value below 0
        means 0.
      overshoot: of `deepfool`, >= 0.
      steps: most steps of `deepfool` an example, static, >= 1.
      candidates: how many classes `deepfool` looks at, static, >= 2.
      norm: ``"linf"`` or ``"l2"``, of the ball and of DeepFool's steps.
      bounds: valid range of the inputs. ``x + v`` is clipped to it, v is not.

    Returns:
      ``Universal(init, update)``, as `universal`: ``update(state, x, y=None, key=None)`` takes a
      minibatch of any size, example by example in its order; ``y=None`` means the model's clean
      predictions. ``state.fooled`` is the share of the minibatch that was fooled when its turn
      came.

    Guarantees:
      v stays in the ball.

    Raises:
      ValueError: on another norm, or a number out of its range; at an update, on wrong shapes or
        concrete inputs out of bounds, or if the model is Stochastic and key is None.

    Example:
      >>> import jax.numpy as jnp
      >>> attack = universal_deepfool(lambda x: x, eps=0.2, steps=3)
      >>> x = jnp.array([[0.6, 0.5], [0.7, 0.4]])
      >>> v, state = attack.update(attack.init(x[0]), x)
      >>> apply_universal(v, x).argmax(1).tolist(), bool(abs(v).max() <= 0.2)
      ([1, 1], True)

    References:
      S. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard, Universal adversarial perturbations,
      2017, arXiv:1610.08401, Algorithm 1.
    """
    _check_radius(eps, norm, bounds)
    check_number("overshoot", overshoot, low=0)
    check_count("steps", steps)
    check_count("candidates", candidates, 2)

    def update(
        state: UniversalState, x: Array, y: Array | None = None, key: Key | None = None
    ) -> tuple[Array, UniversalState]:
        check_batch(x, y, bounds)
        if jnp.shape(state.v) != x.shape[1:]:
            raise ValueError(
                f"x must be a batch of examples of v's shape, {state.v.shape} (got {x.shape})"
            )
        key_clean, key_scan = _keys(logits_fn, key)
        labels = _clean(logits_fn, x, y, key_clean)
        err = canonical_convolutions(lambda z, y, k: misclassified(call(logits_fn, z, k), y))

        def visit(v: Array, given: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            i, image, label = given
            k = None if key_scan is None else jax.random.fold_in(key_scan, i)
            z, label = apply_universal(v, image[None], bounds), label[None]
            fooled = err(z, label, k)[0]

            def grow(v: Array) -> Array:
                found = deepfool(
                    logits_fn,
                    z,
                    label,
                    key=k,
                    overshoot=overshoot,
                    norm=norm,
                    steps=steps,
                    candidates=candidates,
                    bounds=bounds,
                )
                moved = v[None] + (found - z).astype(v.dtype)
                return project(moved, jnp.zeros_like(moved), eps, norm, _ANYWHERE)[0]

            return lax.cond(fooled, lambda v: v, grow, v), fooled

        v, fooled = loops.scan(visit, state.v, (jnp.arange(x.shape[0]), x, labels))
        rate = jnp.mean(fooled.astype(jnp.float32)) if x.shape[0] else state.fooled
        return v, UniversalState(v, state.steps + 1, rate)

    return Universal(_init, update)
