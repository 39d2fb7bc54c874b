"""Attacks put to work: the worst of several, compiled once, swept over radii."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from spax.checks import (
    check_batch,
    check_bounds,
    check_choice,
    check_count,
    check_key,
    check_labels,
    check_number,
    is_concrete,
)
from spax.evaluation.judging import SLACK, check_point, examine
from spax.gradients.convolutions import canonical_convolutions
from spax.losses import cross_entropy
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Key,
    Model,
    Outputs,
    PerExampleLoss,
    PyTree,
    Stochastic,
    call,
    each_row,
    wide,
)

__all__ = ["Sweep", "compile_attack", "sweep", "worst_of"]


def _split(key: Key | None) -> Any:
    return (None, None) if key is None else jax.random.split(key)


def _same(a: Any, b: Any) -> bool:
    """Whether two settings agree, as far as concrete values tell: strings, booleans or bounds."""
    if isinstance(a, str | bool) or isinstance(b, str | bool):
        return bool(a == b)
    if not is_concrete((a, b)):
        return True

    def equal(v: npt.NDArray[np.float32], w: npt.NDArray[np.float32]) -> bool:
        return bool(np.array_equal(v, w) or (0 in (v.ndim, w.ndim) and (v == w).all()))

    return all(
        equal(np.asarray(v, np.float32), np.asarray(w, np.float32))
        for v, w in zip(a, b, strict=True)
    )


def _check_settings(attack: Callable[..., Any], **wanted: Any) -> None:
    """Raises where the signature of an attack, bound or by default, tells another setting."""
    try:
        # A wrapper decides for itself: what it wraps says nothing of its settings.
        taken = inspect.signature(attack, follow_wrapped=False).parameters
    except (TypeError, ValueError):  # not every callable has a signature
        return
    for name, value in wanted.items():
        got = taken[name].default if name in taken else None
        if got is not None and got is not inspect.Parameter.empty and not _same(got, value):
            raise ValueError(
                f"the attack must be bound to the {name} that its points are judged by, "
                f"{name}={value!r} (got an attack with {name}={got!r})"
            )


def worst_of(
    attacks: Sequence[Callable[..., Array]],
    *,
    norm: str = "linf",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    criterion: Criterion | None = None,
) -> Callable[..., Array]:
    """The worst, for the model, of several attacks, example by example.

    Args:
      attacks: bound attacks, ``(logits_fn, x, y, *, key) -> x_adv``. Where eps is left open, as for
        `sweep`, it is open in the result too.
      norm: of the attacks' ball, ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``: where eps is passed to
        the result, points beyond it are invalid.
      targeted: whether the attacks are bound as targeted.
      bounds: valid range, that of the attacks; points out of it are invalid.
      loss: ``(outputs, y) -> [B]``, decides among points that all fool or all do not.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted.

    Returns:
      An attack ``(logits_fn, x, y, *, key=None, **settings) -> x_adv``: per example the best of
      the attacks' valid points, first one that fools, else one without a prediction (a NaN), else
      the one of highest loss (lowest when targeted); where all are invalid, the best of those, so
      that whoever judges it sees that it is. Settings, such as eps, go to every attack; attack i
      draws from ``fold_in(key, i)``.

    Guarantees:
      It fools wherever one of the attacks does (a Stochastic model: did, at the draw that decided).
      A point that is valid never gives way to one that is not. One forward pass an attack on top of
      theirs.

    Raises:
      ValueError: if there are no attacks, or on another norm; at the call, as the attacks do, and
        if the signature of one, a `functools.partial` say, tells other bounds or another targeted,
        or where eps is passed another norm.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> down = lambda f, x, y, *, key=None: x - 0.25
      >>> up = lambda f, x, y, *, key=None: x + jnp.array([[0.0, 0.25]])
      >>> attack = jax.jit(lambda w, x, y: worst_of([down, up])(lambda x: x @ w, x, y))
      >>> attack(jnp.eye(2), jnp.array([[0.5, 0.375]]), jnp.array([0])).tolist()
      [[0.5, 0.625]]

    References:
      F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, arXiv:2003.01690 (AutoAttack: the worst case over attacks).
    """
    attacks = tuple(attacks)
    if not attacks:
        raise ValueError("worst_of needs at least one attack (got attacks=())")
    check_choice("norm", norm, ("linf", "l2", "l1", "l0"))
    check_bounds(bounds)

    def attack(
        logits_fn: Model,
        x: Array,
        y: PyTree,
        *,
        key: Key | None = None,
        # In the signature, where `sweep` and an outer `worst_of` look for them.
        norm: str = norm,
        targeted: bool = targeted,
        bounds: Bounds = bounds,
        **settings: Any,
    ) -> Array:
        check_batch(x, y, bounds)
        judged = {"norm": norm} if settings.get("eps") is not None else {}
        best, best_rank = x, jnp.full(x.shape[:1], -3, jnp.int32)  # below every rank of a point
        best_value = jnp.zeros(x.shape[:1], wide(x))
        for i, one in enumerate(attacks):
            _check_settings(one, bounds=bounds, targeted=targeted, **judged)
            key_attack, key_look = _split(None if key is None else jax.random.fold_in(key, i))
            rival = one(logits_fn, x, y, key=key_attack, **settings)
            check_point(x, rival)
            outputs = call(logits_fn, rival, key_look)
            seen = examine(
                outputs,
                x,
                rival,
                y,
                norm=norm,
                eps=settings.get("eps"),
                bounds=bounds,
                targeted=targeted,
                criterion=criterion,
            )
            value = (-1 if targeted else 1) * loss(outputs, y).astype(best_value.dtype)
            value = jnp.where(jnp.isnan(value), -jnp.inf, value)
            rank = jnp.where(seen.fooled, 3, jnp.where(seen.predicted, 1, 2))
            rank = jnp.where(seen.valid, rank, rank - 3)  # what is invalid stays below what is not
            wins = (rank > best_rank) | ((rank == best_rank) & (value > best_value))
            best = jnp.where(each_row(wins, x), rival, best)
            best_rank = jnp.where(wins, rank, best_rank)
            best_value = jnp.where(wins, value, best_value)
        return best

    return attack


def _check_fit(outputs: Outputs, y: PyTree) -> None:
    """Checks class labels against the K of logits ``[B, K]``; other outputs explain themselves."""
    if getattr(outputs, "ndim", None) == 2 and getattr(y, "ndim", None) == 1:
        check_labels(y, outputs.shape[1])


def compile_attack(
    attack: Callable[..., Any], apply_fn: Callable[..., Outputs], *, bounds: Bounds = (0.0, 1.0)
) -> Callable[..., Any]:
    """Compiles an attack on a model with parameters, once for all batches of one shape.

    Parameters and inputs are arguments of what is compiled (closed over, they would be folded as
    constants, which takes minutes). What tracing hides is checked before: the values of x and y.

    Args:
      attack: a bound attack, ``(logits_fn, x, y, *, key) -> x_adv`` (or what it returns instead).
      apply_fn: the unbound model, ``(params, x) -> [B, K]``, or a `spax.typing.Stochastic` of
        ``fn(params, x, key)``.
      bounds: valid range of the inputs, to be checked; the attack is bound to its own.

    Returns:
      ``run(params, x, y, key=None) -> x_adv``.

    Raises:
      ValueError: at a call of ``run``: if x is not finite or out of bounds, or a label is outside
        the classes; on wrong shapes; and as the attack does.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from spax.evasion import fgsm
      >>> run = compile_attack(functools.partial(fgsm, eps=0.125), lambda w, x: x @ w)
      >>> x_adv = run(jnp.eye(2), jnp.array([[0.75, 0.5]]), jnp.array([0]))
      >>> x_adv.tolist()
      [[0.625, 0.625]]
    """
    check_bounds(bounds)

    def bind(params: PyTree) -> Model:
        if isinstance(apply_fn, Stochastic):
            draw: Callable[..., Outputs] = apply_fn.fn
            return Stochastic(lambda x, key: draw(params, x, key))
        return lambda x: apply_fn(params, x)

    @jax.jit
    def outputs(params: PyTree, x: Array, key: Key | None) -> Outputs:
        return call(bind(params), x, key)

    @jax.jit
    def compiled(params: PyTree, x: Array, y: PyTree, key: Key | None) -> Any:
        return attack(bind(params), x, y, key=key)

    def run(params: PyTree, x: Array, y: PyTree, key: Key | None = None) -> Any:
        check_batch(x, y, bounds)
        if isinstance(apply_fn, Stochastic):
            check_key(key, "an attack on a Stochastic model")
        _check_fit(outputs.eval_shape(params, x, key), y)
        return compiled(params, x, y, key)

    return run


class Sweep(NamedTuple):
    """What a sweep over E radii found on N examples."""

    eps: Array  # [E]
    success: Array  # bool [E, N], as judged at each radius alone
    # [N], of the nearest point found wrong at any radius, at most the least radius whose point was
    # invalid; inf: neither
    distance: Array
    accuracy: Array  # [E], robust accuracy: the share whose distance exceeds eps
    invalid: Array  # int [E], points that broke the rules: not finite, out of bounds or ball


def sweep(
    attack: Callable[..., Array],
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    eps: Sequence[float] | npt.ArrayLike | Array,
    norm: str,
    batch_size: int | None = None,
    parallel: int = 1,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    criterion: Criterion | None = None,
) -> Sweep:
    """Attacks at every radius of a grid, in one compilation, and judges what comes back.

    Robust accuracy takes all evidence together: the inputs themselves, and every point found at
    any radius, at the distance where it really lies. A point that fools within 0.1 counts against
    every radius from 0.1 on, though the attack at a larger radius should miss it. So the accuracy
    never rises with eps; ``success`` shows what each radius found by itself.

    Args:
      attack: an attack bound in all but eps, ``(logits_fn, x, y, *, key, eps) -> x_adv``.
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[N, ...]``, floating, within ``bounds``.
      y: labels, or wanted labels when targeted, int ``[N]`` in [0, K), or any pytree with leading
        N that the attack and ``criterion`` understand.
      key: a random key, for an attack or a model that draws. Batches and radii draw apart, so
        another ``batch_size`` means other draws.
      eps: the radii, ``[E]``, >= 0, in any order; may be traced (below 0 means 0).
      norm: of the attack's ball: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.
      batch_size: examples at a time, at most, static; what bounds the memory. None: all. The last
        batch is padded with examples that are not counted.
      parallel: radii at a time, static, by ``vmap``: faster where one leaves the device idle, at as
        many times the memory.
      targeted: whether the attack is bound as targeted.
      bounds: valid range, that of the attack.
      criterion: ``(outputs, y) -> bool [B]``; None: `spax.losses.misclassified`, or
        `spax.losses.hits` when targeted.

    Returns:
      ``Sweep(eps, success, distance, accuracy, invalid)``. For intervals:
      ``radius_curve(result.distance, result.eps)``.

    Guarantees:
      ``accuracy`` bounds the true robust accuracy of these examples from above. Where the model has
      no prediction (a NaN) on an input or on a valid point, it is wrong there, as in `accuracy`.
      An invalid point is no success, but shows nothing of its example either: from its radius on
      the example does not count as robust, so that a broken attack cannot raise the accuracy. Look
      at ``invalid``: above 0 the attack broke its rules and the accuracy says little.

    Raises:
      ValueError: on wrong shapes, norm or counts; if there are no examples; if concrete x is not
        finite or out of bounds, a label outside the classes, or a radius < 0; if the signature of
        the attack, a `functools.partial` say, tells another norm, other bounds or another targeted;
        as the attack does.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from spax.evasion import bim
      >>> attack = functools.partial(bim, steps=2)
      >>> run = jax.jit(lambda w, x, y: sweep(
      ...     attack, lambda x: x @ w, x, y, eps=[0.0, 0.1, 0.2], norm="linf"))
      >>> result = run(jnp.eye(2), jnp.array([[0.6, 0.5], [0.6, 0.3]]), jnp.array([0, 0]))
      >>> result.accuracy.tolist()
      [1.0, 0.5, 0.0]
    """
    check_choice("norm", norm, ("linf", "l2", "l1", "l0"))
    check_batch(x, y, bounds)
    _check_settings(attack, norm=norm, bounds=bounds, targeted=targeted)
    check_number("eps", np.asarray(eps) if isinstance(eps, Sequence) else eps, low=0)
    check_count("parallel", parallel)
    radii = jnp.asarray(eps, wide(x))
    n = x.shape[0]
    if radii.ndim != 1 or not radii.size:
        raise ValueError(f"eps must have shape [E], E >= 1 (got eps.shape={radii.shape})")
    if n == 0:
        raise ValueError(f"a sweep needs at least one example (got x.shape={x.shape})")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")
    _check_fit(jax.eval_shape(lambda x, k: call(logits_fn, x, k), x, key), y)

    count = -(-n // (batch_size or n))
    size = -(-n // count)

    def in_batches(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        leaf = jnp.concatenate([leaf, leaf[: count * size - n]])
        return leaf.reshape(count, size, *leaf.shape[1:])

    def look(x: Array, z: Array, y: PyTree, key: Key | None, eps: Array | None) -> Any:
        seen = examine(
            call(logits_fn, z, key),
            x,
            z,
            y,
            norm=norm,
            eps=eps,
            bounds=bounds,
            targeted=targeted,
            criterion=criterion,
        )
        wrong = seen.valid & (seen.fooled | ~seen.predicted)
        return seen.success, ~seen.valid, jnp.where(wrong, seen.measured, jnp.inf)

    def one_batch(batch: tuple[Array, PyTree, Array]) -> tuple[Array, Array, Array]:
        x, y, b = batch
        key_clean, key_radii = _split(None if key is None else jax.random.fold_in(key, b))

        def one_radius(given: tuple[Array, Array]) -> tuple[Array, Array, Array]:
            eps, e = given
            key_attack, key_look = _split(None if key is None else jax.random.fold_in(key_radii, e))
            z = attack(logits_fn, x, y, key=key_attack, eps=eps)
            check_point(x, z)
            success, invalid, distance = look(x, z, y, key_look, eps)
            unknown = jnp.where(invalid, jnp.maximum(eps, 0), jnp.inf).astype(distance.dtype)
            return success, invalid, jnp.minimum(distance, unknown)

        _, _, clean = look(x, x, y, key_clean, None)
        success, invalid, distance = lax.map(
            one_radius,
            (radii, jnp.arange(radii.size)),
            batch_size=parallel if parallel > 1 else None,
        )
        return success, invalid, jnp.minimum(clean, jnp.min(distance, axis=0))

    def joined(v: Array) -> Array:
        """[batches, ..., size] -> [..., N]."""
        return jnp.moveaxis(v, 0, -2).reshape(*v.shape[1:-1], count * size)[..., :n]

    batches = (in_batches(x), jax.tree.map(in_batches, y), jnp.arange(count))
    success, invalid, distance = map(joined, lax.map(canonical_convolutions(one_batch), batches))
    robust = distance[None, :] > radii.astype(distance.dtype)[:, None] + SLACK
    return Sweep(
        radii,
        success,
        distance,
        jnp.mean(robust.astype(distance.dtype), axis=1),
        jnp.sum(invalid.astype(jnp.int32), axis=1),
    )
