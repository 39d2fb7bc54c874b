"""The gradient sign family: one step, iterated, with momentum, and projected from random starts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax import loops
from spax.checks import check_batch, check_choice, check_count, check_key, check_number, is_concrete
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import cross_entropy, hits, misclassified
from spax.norms import box, displace, project, sample, steepest
from spax.norms import norm as norm_of
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
)

__all__ = ["bim", "fgsm", "least_likely", "mi_fgsm", "pgd"]


def objective(
    logits_fn: Model,
    y: PyTree,
    *,
    loss: PerExampleLoss,
    criterion: Criterion | None,
    targeted: bool,
) -> Any:
    """What an attack ascends, ``z -> (s loss, fooled)``: s = -1 when targeted, fooled 0 or 1.

    Stochastic if the model is. The criterion None is `misclassified`, or `hits` when targeted.
    """
    judged = criterion or (hits if targeted else misclassified)

    def evaluate(z: Array, key: Key | None = None) -> tuple[Array, Array]:
        outputs = call(logits_fn, z, key)
        value = loss(outputs, y)
        if value.shape != z.shape[:1]:
            raise ValueError(
                f"loss(outputs, y) must have one entry per example, shape {z.shape[:1]} "
                f"(got shape {value.shape})"
            )
        return (-value if targeted else value), judged(outputs, y).astype(value.dtype)

    return Stochastic(evaluate) if isinstance(logits_fn, Stochastic) else evaluate


class _Best(NamedTuple):
    x: Array
    fooled: Array  # share of the hook's draws that fooled: 0 or 1 where it draws once
    value: Array


def _better(best: _Best, x: Array, value: Array, fooled: Array) -> _Best:
    """Prefers what fools, then the higher loss; a NaN is never better."""
    wins = (fooled > best.fooled) | ((fooled == best.fooled) & (value > best.value))
    rows = each_row(wins, x)
    return _Best(
        jnp.where(rows, x, best.x),
        jnp.where(wins, fooled, best.fooled),
        jnp.where(wins, value, best.value),
    )


def _fold_in(key: Key | None, i: Any) -> Key | None:
    return None if key is None else jax.random.fold_in(key, i)


def _ascend(
    goal: Any,
    x: Array,
    start: Array,
    key: Key | None,
    *,
    steps: int,
    gradient: Gradient,
    move: Callable[[Array, Array, PyTree], tuple[Array, PyTree]],
    memory: PyTree = None,
) -> tuple[_Best, Array]:
    """The loop of every attack here: gradient, ``move``, and the best point on the way.

    ``move(z, grad, memory)`` returns the next feasible point. The verdict on a point comes with its
    gradient, so that only the last point costs an extra forward pass.

    Returns:
      The best of ``steps + 1`` points, and the last.
    """
    look = canonical_convolutions(lambda z, k: gradient(goal, z, k))

    def step(i: Array, carry: tuple[Array, PyTree, _Best]) -> tuple[Array, PyTree, _Best]:
        z, memory, best = carry
        value, grad, fooled = look(z, _fold_in(key, i))
        best = _better(best, z, value, fooled)
        z, memory = move(z, grad, memory)
        return z, memory, best

    value, fooled = jax.eval_shape(goal if key is None else lambda z: call(goal, z, key), x)
    unseen = _Best(
        x, jnp.full(fooled.shape, -1, fooled.dtype), jnp.full(value.shape, -jnp.inf, value.dtype)
    )
    z, _, best = loops.fori_loop(0, steps, step, (start, memory, unseen))
    value, fooled = call(goal, z, _fold_in(key, steps))
    return _better(best, z, value, fooled), z


def _check(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    key: Key | None,
    eps: Number,
    bounds: Bounds,
    step_size: Number | None = None,
) -> None:
    check_batch(x, y, bounds)
    check_number("eps", eps, low=0)
    if step_size is not None:
        check_number("step_size", step_size, low=0)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")


def fgsm(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    eps: Number,
    norm: str = "linf",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    gradient: Gradient = exact,
) -> Array:
    """Fast gradient sign method: one step of length eps along the steepest ascent of the loss.

    The direction is the sign of the gradient (linf), the normalised gradient (l2), or the sign of
    its largest entry alone (l1).

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: the labels (untargeted) or the wanted labels (targeted), int ``[B]`` in [0, K). Pass the
        model's own predictions when the result is used for training, against label leaking.
      key: a random key, for a Stochastic model or a sampling ``gradient``.
      eps: radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      targeted: whether to lower the loss of ``y`` instead of raising it.
      bounds: valid range of the inputs, numbers or arrays of their trailing shape.
      loss: ``(outputs, y) -> [B]``.
      gradient: how the gradient is taken: `spax.gradients.exact`, ``eot(n)``, ``nes(...)``, ...

    Returns:
      The perturbed points, shape and dtype of ``x``, whether or not they fool.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in the norm, up to one rounding of the norm itself.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, a label is outside the classes, or eps < 0; if something draws and key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> apply_fn = lambda params, x: x @ params
      >>> attack = jax.jit(lambda params, x, y: fgsm(lambda x: apply_fn(params, x), x, y, eps=0.1))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]), jnp.array([0]))
      >>> [round(v, 3) for v in x_adv[0].tolist()]
      [0.5, 0.6]

    References:
      I. Goodfellow, J. Shlens, C. Szegedy, Explaining and harnessing adversarial examples, 2014,
      arXiv:1412.6572, Section 4. Bae et al. write its targeted form with a plus (Eq 10); towards
      a wanted label the sign is minus.
    """
    check_choice("norm", norm, ("linf", "l2", "l1"))
    _check(logits_fn, x, y, key, eps, bounds)
    goal = objective(logits_fn, y, loss=loss, criterion=None, targeted=targeted)
    _, grad, _ = gradient(goal, x, key)
    delta = expand(eps, x) * steepest(grad, norm)
    return displace(x, project(delta, x, eps, norm, bounds), bounds)


def bim(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    eps: Number,
    step_size: Number | None = None,
    steps: int = 10,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    criterion: Criterion | None = None,
    gradient: Gradient = exact,
) -> Array:
    """Basic iterative method (iterated FGSM): sign steps from x, clipped to the linf ball.

    Towards the least likely class: ``bim(f, x, least_likely(f, x), targeted=True, eps=eps)``.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K).
      key: a random key, for a Stochastic model or a sampling ``gradient``.
      eps: linf radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      step_size: length of a step, >= 0, scalar or ``[B]``; None: eps / steps. (The paper's: one
        grey level, 1/255, in min(eps + 4, 1.25 eps) steps, eps in grey levels.)
      steps: number of steps, static, >= 1.
      targeted: whether to lower the loss of ``y`` instead of raising it.
      bounds: valid range of the inputs.
      loss: ``(outputs, y) -> [B]``.
      criterion: ``(outputs, y) -> bool [B]``, success; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted.
      gradient: how the gradient is taken.

    Returns:
      The best point seen: first one that fools, else the one of highest loss.

    Guarantees:
      Within ``bounds``, and within eps of ``x``.

    Raises:
      ValueError: as `fgsm`, and if ``steps < 1`` or a concrete step_size < 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y: bim(lambda x: x @ w, x, y, eps=0.1))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]), jnp.array([0]))
      >>> [round(v, 3) for v in x_adv[0].tolist()]
      [0.5, 0.6]

    References:
      A. Kurakin, I. Goodfellow, S. Bengio, Adversarial examples in the physical world, 2016,
      arXiv:1607.02533, Sections 2.2 and 2.3.
    """
    _check(logits_fn, x, y, key, eps, bounds, step_size)
    check_count("steps", steps)
    goal = objective(logits_fn, y, loss=loss, criterion=criterion, targeted=targeted)
    length = expand(eps, x) / steps if step_size is None else expand(step_size, x)

    def move(z: Array, grad: Array, _: PyTree) -> tuple[Array, PyTree]:
        delta = project(z - x + length * steepest(grad, "linf"), x, eps, "linf", bounds)
        return displace(x, delta, bounds), None

    return _ascend(goal, x, x, key, steps=steps, gradient=gradient, move=move)[0].x


def mi_fgsm(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    eps: Number,
    step_size: Number | None = None,
    decay: Number = 1.0,
    steps: int = 10,
    norm: str = "linf",
    targeted: bool = False,
    return_last: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    criterion: Criterion | None = None,
    gradient: Gradient = exact,
) -> Array:
    """Momentum iterative method: steps along accumulated, normalised gradients.

    ``g <- decay g + grad / |grad|_1``, then a step along the sign of g (linf) or g / |g|_2 (l2).

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K).
      key: a random key, for a Stochastic model or a sampling ``gradient``.
      eps: radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      step_size: length of a step, >= 0, scalar or ``[B]``; None: eps / steps.
      decay: the momentum mu, >= 0, scalar or ``[B]``; 0 gives `bim`. Above 1 it diverges.
      steps: number of steps, static, >= 1.
      norm: ``"linf"`` or ``"l2"``.
      targeted: whether to lower the loss of ``y`` instead of raising it.
      return_last: return the last point instead of the best: the best on this model ends early
        and transfers worse to others.
      bounds: valid range of the inputs.
      loss: ``(outputs, y) -> [B]``.
      criterion: ``(outputs, y) -> bool [B]``; None: as `bim`.
      gradient: how the gradient is taken.

    Returns:
      The best point seen (first one that fools, else the highest loss), or the last.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in the norm, up to one rounding of the norm itself.

    Raises:
      ValueError: as `bim`, and if a concrete decay < 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y: mi_fgsm(lambda x: x @ w, x, y, eps=0.1))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]), jnp.array([0]))
      >>> [round(v, 3) for v in x_adv[0].tolist()]
      [0.5, 0.6]

    References:
      Y. Dong et al., Boosting adversarial attacks with momentum, 2017, arXiv:1710.06081,
      Algorithm 1 (and its Eq 8 for l2).
    """
    check_choice("norm", norm, ("linf", "l2"))
    _check(logits_fn, x, y, key, eps, bounds, step_size)
    check_number("decay", decay, low=0)
    check_count("steps", steps)
    goal = objective(logits_fn, y, loss=loss, criterion=criterion, targeted=targeted)
    length = expand(eps, x) / steps if step_size is None else expand(step_size, x)

    def move(z: Array, grad: Array, g: Array) -> tuple[Array, Array]:
        # |.|_1 of a direction of unit length cannot overflow, nor underflow to zero.
        direction = steepest(grad, "l2")
        size = expand(norm_of(direction, "l1"), x)
        g = expand(decay, x) * g + direction / jnp.where(size > 0, size, 1)
        delta = project(z - x + length * steepest(g, norm), x, eps, norm, bounds)
        return displace(x, delta, bounds), g

    best, last = _ascend(
        goal, x, x, key, steps=steps, gradient=gradient, move=move, memory=jnp.zeros_like(x)
    )
    return last if return_last else best.x


def pgd(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    eps: Number,
    step_size: Number | None = None,
    steps: int = 40,
    restarts: int = 1,
    norm: str = "linf",
    random_start: bool = True,
    start: Array | None = None,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    criterion: Criterion | None = None,
    gradient: Gradient = exact,
) -> Array:
    """Projected gradient descent on the loss, from random starts in the ball.

    Steps of steepest ascent: the sign of the gradient (linf), the normalised gradient (l2), or the
    signs of its largest hundredth of entries, those stuck at the box excluded (l1, "SLIDE").

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K); any pytree with leading B
        that ``loss`` and ``criterion`` understand.
      key: a random key, for random starts, a Stochastic model or a sampling ``gradient``.
      eps: radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      step_size: length of a step, >= 0, scalar or ``[B]``; None: 2.5 eps / steps.
      steps: number of steps, static, >= 1.
      restarts: number of runs, static, one after another: memory does not grow with them.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      random_start: whether to start uniformly in the ball, or at ``x``.
      start: points to start from instead, ``[B, ...]``; they are projected on the ball first.
      targeted: whether to lower the loss of ``y`` instead of raising it.
      bounds: valid range of the inputs.
      loss: ``(outputs, y) -> [B]``.
      criterion: ``(outputs, y) -> bool [B]``, success; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted.
      gradient: how the gradient is taken: `spax.gradients.exact`, ``eot(n)``, ``nes(...)``, ...

    Returns:
      The best point seen over all steps and restarts: first one that fools, else the one of
      highest loss. For a Stochastic model its luck is included: judge it on fresh draws.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in the norm, up to one rounding of the norm itself.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, a label is outside the classes, or eps < 0; if steps or restarts < 1; if something
        draws (by default the start does) and key is None; if restarts have nothing to draw.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(
      ...     lambda w, x, y, key: pgd(lambda x: x @ w, x, y, key=key, eps=0.1, steps=5))
      >>> x = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]), jnp.array([0]), jax.random.key(0))
      >>> bool(x[0, 1] > x[0, 0])
      True

    References:
      A. Madry et al., Towards deep learning models resistant to adversarial attacks, 2017,
      arXiv:1706.06083, Section 2. F. Tramer, D. Boneh, Adversarial training and robustness for
      multiple perturbations, 2019, arXiv:1904.13000, Section 4 (l1).
    """
    check_choice("norm", norm, ("linf", "l2", "l1"))
    _check(logits_fn, x, y, key, eps, bounds, step_size)
    check_count("steps", steps)
    check_count("restarts", restarts)
    if start is not None:
        random_start = False
        if jnp.shape(start) != x.shape:
            raise ValueError(f"start must have the shape of x, {x.shape} (got {jnp.shape(start)})")
        if is_concrete(start) and not np.isfinite(np.asarray(start, np.float32)).all():
            raise ValueError("start must be finite (got NaN or infinite values in start)")
    if random_start:
        check_key(key, "random_start=True")
    elif restarts > 1:
        raise ValueError(f"restarts need random_start=True (got restarts={restarts})")
    goal = objective(logits_fn, y, loss=loss, criterion=criterion, targeted=targeted)
    length = expand(eps, x) * (2.5 / steps) if step_size is None else expand(step_size, x)
    low, high = box(bounds, x)

    def move(z: Array, grad: Array, _: PyTree) -> tuple[Array, PyTree]:
        blocked = ((z >= high) & (grad > 0)) | ((z <= low) & (grad < 0))
        direction = steepest(grad, norm, blocked=blocked, share=0.01)
        delta = project(z - x + length * direction, x, eps, norm, bounds)
        return displace(x, delta, bounds), None

    def run(key: Key | None) -> _Best:
        key_start, key_steps = (None, None) if key is None else jax.random.split(key)
        delta = jnp.zeros_like(x)
        if random_start:
            delta = sample(key_start, x, eps, norm)
        elif start is not None:
            delta = jnp.asarray(start, x.dtype) - x
        z = displace(x, project(delta, x, eps, norm, bounds), bounds)
        return _ascend(goal, x, z, key_steps, steps=steps, gradient=gradient, move=move)[0]

    if restarts == 1:
        return run(key).x

    def again(i: Array, best: _Best) -> _Best:
        rival = run(_fold_in(key, i))
        return _better(best, rival.x, rival.value, rival.fooled)

    return loops.fori_loop(1, restarts, again, run(_fold_in(key, 0))).x


def least_likely(logits_fn: Model, x: Array, *, key: Key | None = None) -> Array:
    """The class the model finds least likely, as a label to attack towards.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``.
      key: a random key, for a Stochastic model.

    Returns:
      int32 ``[B]``.

    Raises:
      ValueError: if the model does not return ``[B, K]``, or is Stochastic and key is None.

    Example:
      >>> import jax.numpy as jnp
      >>> least_likely(lambda x: x, jnp.array([[0.2, 0.1, 0.7]])).tolist()
      [1]

    References:
      A. Kurakin, I. Goodfellow, S. Bengio, Adversarial examples in the physical world, 2016,
      arXiv:1607.02533, Section 2.3.
    """
    check_batch(x)
    logits = call(logits_fn, x, key)
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape [B, K] (got logits.shape={logits.shape})")
    return jnp.argmin(logits, axis=1).astype(jnp.int32)
