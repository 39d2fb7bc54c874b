"""Auto-PGD: projected ascent that sets its own step size, on any loss or target by target."""

from typing import Any

import jax
import jax.numpy as jnp

from spax import loops
from spax.checks import check_choice, check_count, check_key, check_labels, check_number
from spax.evasion.adaptive_ascent import climb
from spax.evasion.deepfool import wrong_classes
from spax.evasion.fgsm import _Best, _better, _check, _fold_in, objective
from spax.gradients.hooks import exact
from spax.losses import cross_entropy, dlr_targeted, misclassified
from spax.norms import example_keys
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

__all__ = ["apgd", "apgd_targeted"]


def _split(key: Key | None) -> Any:
    return (None, None) if key is None else jax.random.split(key)


def apgd(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    eps: Number,
    rho: Number = 0.75,
    steps: int = 100,
    restarts: int = 1,
    norm: str = "linf",
    random_start: bool = True,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    criterion: Criterion | None = None,
    gradient: Gradient = exact,
) -> Array:
    """Auto-PGD: ascent with momentum, whose step size is set by its own progress; no step to tune.

    The step begins at 2 eps. At checkpoints, after 22 % of the steps and then ever more often, an
    example whose loss rose in fewer than ``rho`` of the steps, or whose best loss stood still, goes
    back to its best point and halves its step. With ``loss=spax.losses.dlr`` the loss does not
    depend on the scale of the logits. For l1: no momentum, signs of a share of the entries set by
    the sparsity of the best point, and balls of 3, 2 and 1 eps for 30, 30 and 40 % of the steps.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[B]`` in [0, K); any pytree with leading B
        that ``loss`` and ``criterion`` understand.
      key: a random key, for random starts, a Stochastic model or a sampling ``gradient``.
      eps: radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      rho: share of the steps between checkpoints that must raise the loss, in [0, 1], scalar or
        ``[B]``; not used by l1.
      steps: number of steps, static; l1 looks at two points more, where its balls begin.
      restarts: number of runs, static, one after another: memory does not grow with them.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      random_start: whether to start uniformly in the ball, or at ``x``.
      targeted: whether to lower the loss of ``y`` instead of raising it.
      bounds: valid range of the inputs.
      loss: ``(outputs, y) -> [B]``: `spax.losses.cross_entropy`, `spax.losses.dlr` (K >= 3), ...
      criterion: ``(outputs, y) -> bool [B]``, success; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted.
      gradient: how the gradient is taken: `spax.gradients.exact`, ``eot(n)``, ...

    Returns:
      The best point seen over all steps and restarts: first one that fools, else the one of
      highest loss. For a Stochastic model its luck is included: judge it on fresh draws.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in the norm, up to one rounding of the norm itself.
      A run costs ``steps + 1`` gradients (l1: ``steps + 3``).

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, a label is outside the classes, eps < 0 or rho outside [0, 1]; if steps or restarts
        < 1; if something draws (by default the start does) and key is None; if restarts have
        nothing to draw; as the loss does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(
      ...     lambda w, x, y, key: apgd(lambda x: x @ w, x, y, key=key, eps=0.1, steps=5))
      >>> x = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]), jnp.array([0]), jax.random.key(0))
      >>> bool(x[0, 1] > x[0, 0])
      True

    References:
      F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, arXiv:2003.01690, Algorithm 1 and Section 3. F. Croce, M. Hein,
      Mind the box: l1-APGD for sparse adversarial attacks, 2021, arXiv:2103.01208, Algorithm 1 (its
      first start is uniform in the ball of 3 eps here). Published code halves too where exactly
      ``rho`` of the steps rose, and compares the step after a return with the point left.
    """
    check_choice("norm", norm, ("linf", "l2", "l1"))
    _check(logits_fn, x, y, key, eps, bounds)
    check_number("rho", rho, low=0, high=1)
    check_count("steps", steps)
    check_count("restarts", restarts)
    if random_start:
        check_key(key, "random_start=True")
    elif restarts > 1:
        raise ValueError(f"restarts need random_start=True (got restarts={restarts})")
    goal = objective(logits_fn, y, loss=loss, criterion=criterion, targeted=targeted)

    def run(i: Any, best: _Best | None = None) -> _Best:
        key_start, key_steps = _split(_fold_in(key, i))
        rival, _ = climb(
            goal,
            x,
            example_keys(key_start, x) if random_start else None,
            key_steps,
            eps=eps,
            rho=rho,
            steps=steps,
            norm=norm,
            bounds=bounds,
            gradient=gradient,
        )
        return rival if best is None else _better(best, rival.x, rival.value, rival.fooled)

    return run(0).x if restarts == 1 else loops.fori_loop(1, restarts, run, run(0)).x


def towards(
    logits_fn: Model,
    y: Array,
    target: Array,
    *,
    loss: PerExampleLoss,
    criterion: Criterion | None,
) -> Any:
    """The objective on the way from the labels to a target; success as for the labels alone."""
    judged = criterion or misclassified
    return objective(
        logits_fn,
        (y, target),
        loss=loss,
        criterion=lambda outputs, labels: judged(outputs, labels[0]),
        targeted=False,
    )


def apgd_targeted(
    logits_fn: Model,
    x: Array,
    y: Array,
    *,
    key: Key | None = None,
    eps: Number,
    rho: Number = 0.75,
    steps: int = 100,
    restarts: int = 1,
    n_targets: int = 9,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = dlr_targeted,
    criterion: Criterion | None = None,
    gradient: Gradient = exact,
) -> Array:
    """Auto-PGD towards each of the likeliest wrong classes in turn, until one of them fools.

    An untargeted attack by targeted losses: any wrong class is success. An example ends with the
    first point that fools it; the loop ends with the last example.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: labels, int ``[B]`` in [0, K).
      key: a random key, for the random starts.
      eps: radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      rho: as in `apgd`.
      steps: number of steps towards one class, static.
      restarts: how often all classes are tried, static.
      n_targets: number of classes tried, static; at most K - 1 are.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      bounds: valid range of the inputs.
      loss: ``(outputs, (y, target)) -> [B]``, raised; the default needs K >= 4.
      criterion: ``(outputs, y) -> bool [B]``, success; None: `spax.losses.misclassified`.
      gradient: how the gradient is taken.

    Returns:
      The first point seen that fools, else the one of highest loss over all classes.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in the norm, up to one rounding of the norm itself.

    Raises:
      ValueError: as `apgd`; if K < 4 with the default loss; if n_targets < 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y, key: apgd_targeted(
      ...     lambda x: x @ w, x, y, key=key, eps=0.1, steps=3, n_targets=1))
      >>> x = jnp.array([[0.6, 0.5, 0.1, 0.0]])
      >>> x_adv = attack(jnp.eye(4), x, jnp.array([0]), jax.random.key(0))
      >>> bool(x_adv[0, 1] > x_adv[0, 0])
      True

    References:
      F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, arXiv:2003.01690, Section 4 (Eq 6: the targeted DLR).
    """
    check_choice("norm", norm, ("linf", "l2", "l1"))
    _check(logits_fn, x, y, key, eps, bounds)
    check_number("rho", rho, low=0, high=1)
    for name, count in (("steps", steps), ("restarts", restarts), ("n_targets", n_targets)):
        check_count(name, count)
    key_look, key_runs = jax.random.split(check_key(key, "a random start"))
    logits = call(logits_fn, x, key_look)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape [B, K], K >= 2 (got {logits.shape})")
    check_labels(y, logits.shape[1])
    n_targets = min(n_targets, logits.shape[1] - 1)
    targets = wrong_classes(logits, y, n_targets)

    def run(best: _Best, i: Array) -> tuple[_Best, None]:
        key_start, key_steps = jax.random.split(jax.random.fold_in(key_runs, i))
        target = jnp.take(targets, i % n_targets, axis=1)
        rival, _ = climb(
            towards(logits_fn, y, target, loss=loss, criterion=criterion),
            x,
            example_keys(key_start, x),
            key_steps,
            eps=eps,
            rho=rho,
            steps=steps,
            norm=norm,
            bounds=bounds,
            gradient=gradient,
            active=best.fooled < 1,
        )
        return _better(best, rival.x, rival.value, rival.fooled), None

    value, fooled = jax.eval_shape(
        lambda z, k: call(towards(logits_fn, y, y, loss=loss, criterion=criterion), z, k),
        x,
        key_look,
    )
    unseen = _Best(
        x, jnp.full(fooled.shape, -1, fooled.dtype), jnp.full(value.shape, -jnp.inf, value.dtype)
    )
    return loops.scan(run, unseen, jnp.arange(restarts * n_targets))[0].x
