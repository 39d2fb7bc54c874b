"""AutoAttack: the standard ensemble, each attack on what the ones before it left."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax import loops
from spax.checks import (
    are_probabilities,
    check_choice,
    check_count,
    check_key,
    check_labels,
    is_concrete,
)
from spax.evaluation.judging import examine
from spax.evasion.adaptive_ascent import climb, radii
from spax.evasion.apgd import towards
from spax.evasion.deepfool import wrong_classes
from spax.evasion.fab import fab
from spax.evasion.fgsm import _check, objective
from spax.evasion.square import search
from spax.gradients.hooks import exact
from spax.losses import cross_entropy, dlr_targeted, margin, misclassified
from spax.norms import zeros_by_example
from spax.typing import Array, Bounds, Key, Model, Number, Stochastic, call, each_row

__all__ = ["AutoAttackInfo", "autoattack"]

_SMALLEST = 16  # fewer examples than this are not worth a program of their own


class AutoAttackInfo(NamedTuple):
    """Which attack broke which example, and at what cost; ``[B]`` each."""

    broken_by: Array  # int32: 0 nothing was needed, 1 APGD-CE, 2 APGD-T, 3 FAB-T, 4 Square; -1 none
    margin: Array  # of the model at x_adv, as it was seen there; positive: broken
    gradients: Array  # int32, gradients taken by APGD and FAB
    queries: Array  # int32, queries of Square


class _Settings(NamedTuple):
    """What is static."""

    norm: str
    steps: int
    queries: int
    draws: bool  # whether the model is Stochastic


class _Progress(NamedTuple):
    x_adv: Any
    info: AutoAttackInfo


class _Batch(NamedTuple):
    """Examples with what goes with them; ``index`` tells their place in the whole."""

    x: Any
    y: Any
    eps: Any
    index: Any
    targets: Any  # [B, n]


class _First(NamedTuple):
    """What the inputs themselves tell."""

    progress: _Progress
    targets: Array
    logits: Array
    flat: Array  # bool, where the margin has no gradient


def _look(model: Any, x: Array, y: Array, key: Key, *, settings: _Settings, n_targets: int) -> Any:
    f = Stochastic(model) if settings.draws else model

    def total(x: Array) -> tuple[Array, Array]:
        logits = call(f, x, key)
        return jnp.sum(margin(logits, y)), logits

    slope, logits = jax.grad(total, has_aux=True)(x)
    wrong = misclassified(logits, y)
    none = jnp.zeros(x.shape[:1], jnp.int32)
    info = AutoAttackInfo(jnp.where(wrong, none, -1), margin(logits, y), none, none)
    flat = (slope == 0).all(axis=tuple(range(1, x.ndim)))
    return _First(_Progress(x, info), wrong_classes(logits, y, n_targets), logits, flat)


def _difference(logits: Array, labels: tuple[Array, Array]) -> Array:
    """The numerator of the targeted DLR, for fewer classes than the ratio needs."""
    z = [jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0] for label in labels]
    return z[1] - z[0]


def _round(
    model: Any,
    batch: _Batch,
    progress: _Progress,
    active: Array,
    number: Array,
    *,
    key: Key,
    bounds: Bounds,
    stage: int,
    settings: _Settings,
) -> _Progress:
    """One attack, or one target of one, on the active examples that are not broken yet."""
    f = Stochastic(model) if settings.draws else model
    x, y = batch.x, batch.y
    active = active & (progress.info.broken_by < 0)
    key_starts, key_steps, key_look = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(key, stage), number), 3
    )
    # The same key for an example wherever it lies among the survivors.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_starts, batch.index)
    target = jnp.take(batch.targets, number, axis=1)
    ball: Any = {"eps": batch.eps, "norm": settings.norm, "bounds": bounds}
    none = jnp.zeros(x.shape[:1], jnp.int32)
    gradients, queries = none, none
    if stage in (1, 2):
        if stage == 1:
            goal = objective(f, y, loss=cross_entropy, criterion=None, targeted=False)
        else:
            goal = towards(f, y, target, loss=_targeted_loss, criterion=None)
        best, gradients = climb(
            goal,
            x,
            keys,
            key_steps,
            rho=0.75,
            steps=settings.steps,
            gradient=exact,
            active=active,
            **ball,
        )
        z = best.x
    elif stage == 3:
        z = fab(f, x, y, key=key_steps, steps=settings.steps, targets=target, final_steps=0, **ball)
        gradients = none + settings.steps
    else:
        goal = objective(f, y, loss=margin, criterion=None, targeted=False)
        best, queries = search(
            goal,
            x,
            keys,
            key_steps,
            p_init=0.8,
            steps=settings.queries,
            reschedule=False,
            active=active,
            **ball,
        )
        z = best.x

    outputs = call(f, z, key_look)
    seen = examine(outputs, x, z, y, targeted=False, criterion=None, **ball)
    value, info = margin(outputs, y), progress.info
    broken = active & seen.success
    wins = broken | (active & seen.valid & (value > info.margin))
    rows = each_row(wins, x)
    return _Progress(
        jnp.where(rows, z, progress.x_adv),
        AutoAttackInfo(
            jnp.where(broken, stage, info.broken_by),
            jnp.where(wins, value, info.margin),
            info.gradients + jnp.where(active, gradients, 0),
            info.queries + jnp.where(active, queries, 0),
        ),
    )


_jitted_look = jax.jit(_look, static_argnames=("settings", "n_targets"))
_jitted_round = jax.jit(_round, static_argnames=("settings", "stage"))


def _programs(model: Any) -> tuple[Callable[..., _First], Callable[..., _Progress]]:
    """`_look` and `_round` of one model, compiled."""
    if isinstance(model, jax.tree_util.Partial):
        return functools.partial(_jitted_look, model), functools.partial(_jitted_round, model)
    # Jitted anew at every call: what the model closes over may have changed since the last.
    return (
        jax.jit(functools.partial(_look, model), static_argnames=("settings", "n_targets")),
        jax.jit(functools.partial(_round, model), static_argnames=("settings", "stage")),
    )


def _targeted_loss(logits: Array, labels: tuple[Array, Array]) -> Array:
    return (dlr_targeted if logits.shape[1] >= 4 else _difference)(logits, labels)


def _rounds(n_targets: int) -> tuple[tuple[int, int], ...]:
    """(stage, number of rounds), in order."""
    return (1, 1), (2, n_targets), (3, n_targets), (4, 1)


def _masked(first: _First, batch: _Batch, attack: Callable[..., _Progress]) -> _Progress:
    """Every attack on the whole batch, where only what is left counts."""
    progress, everything = first.progress, jnp.ones(batch.index.shape, bool)
    for stage, rounds in _rounds(batch.targets.shape[1]):

        def one(r: Array, progress: _Progress, stage: int = stage) -> _Progress:
            return attack(batch, progress, everything, r, stage=stage)

        progress = loops.fori_loop(0, rounds, one, progress)
    return progress


def _padded(count: int, most: int) -> int:
    """The size of the program for so many examples: a power of two, or the largest size."""
    return min(max(1 << (count - 1).bit_length(), _SMALLEST), most)


def _chunks(rows: np.ndarray, most: int) -> Any:
    """(the rows, padded by repetition; how many of them count)."""
    for start in range(0, len(rows), most):
        chunk = rows[start : start + most]
        yield np.resize(chunk, _padded(len(chunk), most)), len(chunk)


def _store(whole: Any, part: Any, rows: np.ndarray, count: int) -> None:
    """Writes rows of arrays on the host."""
    for to, given in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        to[rows[:count]] = np.asarray(given)[:count]


def _on_host(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


def _take(tree: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _compacted(
    first: _First, batch: _Batch, attack: Callable[..., _Progress], most: int
) -> _Progress:
    """Every attack, and every target, on the examples that are left, packed together."""
    progress = _on_host(first.progress)
    for stage, rounds in _rounds(batch.targets.shape[1]):
        for r in range(rounds):
            left = np.flatnonzero(progress.info.broken_by < 0)
            for rows, count in _chunks(left, most):
                active = np.arange(len(rows)) < count
                part = (_take(batch, rows), _take(progress, rows), active, np.int32(r))
                _store(progress, attack(*part, stage=stage), rows, count)
    return jax.tree.map(jnp.asarray, progress)


def _warn(first: _First, draws: bool) -> None:
    """Says aloud what makes the verdict of this ensemble worth less."""
    found = []
    if draws:
        found.append(
            "the model is Stochastic, and one draw decides: attack it with gradient=eot(20), see "
            "the docstring"
        )
    if are_probabilities(np.asarray(first.logits)):
        found.append(
            "the model returns probabilities, not logits: its losses saturate, and accuracy may "
            "look higher than it is"
        )
    if np.mean(np.asarray(first.flat)) >= 0.5:
        found.append(
            "the margin has no gradient at half of the inputs: only Square can be trusted, or "
            "attack through spax.gradients.bpda"
        )
    for one in found:
        warnings.warn(f"autoattack: {one}", UserWarning, stacklevel=3)


def autoattack(
    logits_fn: Model,
    x: Array,
    y: Array,
    *,
    key: Key | None = None,
    eps: Number,
    steps: int = 100,
    queries: int = 5000,
    n_targets: int = 9,
    batch_size: int | None = None,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    return_info: bool = False,
) -> Any:
    """AutoAttack, standard version: APGD-CE, targeted APGD, targeted FAB and Square, in this order.

    Each attack, and each target of the second and the third, meets the examples that are not
    misclassified yet. With the defaults this is the published recipe: 100 steps without restarts,
    the 9 likeliest wrong classes, 5,000 queries of Square whose schedule is not rescaled.

    With concrete arguments, outside of `jax.jit`, the examples that are left are packed together
    between the rounds, in batches whose sizes are powers of two; each attack is compiled here, once
    for each size met. With a `jax.tree_util.Partial` of ``apply_fn`` and its parameters as the
    model, later calls use the same programs again. Under ``jit``, ``vmap`` and the like all shapes
    are fixed: the same rounds run on the whole batch, and what is broken is masked.

    For a model that draws (the "rand" version), bind APGD twice:
    ``spax.evaluation.worst_of([partial(apgd, gradient=eot(20)), partial(apgd, loss=dlr,
    gradient=eot(20))])``. Other versions are lists in the same way.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, that returns logits and not probabilities.
        Concrete outputs that look like probabilities, inputs without gradients and Stochastic
        models are warned of; where traced, nothing can be.
      x: inputs ``[B, ...]``, floating, within ``bounds``; for l2 images ``[B, H, W, C]``.
      y: labels, int ``[B]`` in [0, K).
      key: a random key.
      eps: radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      steps: of APGD and of FAB, static.
      queries: of Square, static.
      n_targets: wrong classes tried, from the likeliest on, static; at most K - 1 are.
      batch_size: examples at a time, at most, where the survivors are packed. None: all.
      norm: ``"linf"`` or ``"l2"``.
      bounds: valid range of the inputs.
      return_info: whether to return an `AutoAttackInfo` too.

    Returns:
      Per example ``x`` where it is misclassified as it is, else the first point that fools, else
      the point of largest margin that any attack returned; with ``return_info`` the pair
      ``(x_adv, AutoAttackInfo)``.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in the norm, by at most 1e-6 more. An example's
      result does not depend on its neighbours, nor on how the survivors are packed (up to
      rounding). It fools wherever one of the attacks, run so, does.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if K < 2; if concrete inputs are not finite or
        out of bounds, a label is outside the classes, or eps < 0; if a count is < 1; if key is
        None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y, key: autoattack(
      ...     lambda x: x @ w, x, y, key=key, eps=0.1, steps=2, queries=2, n_targets=1))
      >>> x = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]), jnp.array([0]), jax.random.key(0))
      >>> bool(x[0, 1] > x[0, 0])
      True

    References:
      F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, arXiv:2003.01690, Section 6. Below four classes, where its
      targeted DLR is not defined, the targeted losses are the differences of the two logits. Where
      nothing fools, the published code returns x.
    """
    check_choice("norm", norm, ("linf", "l2"))
    _check(logits_fn, x, y, key, eps, bounds)
    x, y = jnp.asarray(x), jnp.asarray(y)
    for name, value in (("steps", steps), ("queries", queries), ("n_targets", n_targets)):
        check_count(name, value)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    if norm == "l2" and (x.ndim != 4 or min(x.shape[1:3]) < 3):
        raise ValueError(
            f"autoattack with norm='l2' needs images [B, H, W, C], H, W >= 3 "
            f"(got x.shape={x.shape})"
        )
    shape = jax.eval_shape(lambda x, k: call(logits_fn, x, k), x, key).shape
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(f"logits must have shape [B, K], K >= 2 (got logits.shape={shape})")
    check_labels(y, shape[1])
    key_look, key_rounds = jax.random.split(check_key(key, "autoattack"))
    n_targets = min(n_targets, shape[1] - 1)
    model = logits_fn.fn if isinstance(logits_fn, Stochastic) else logits_fn
    settings = _Settings(norm, steps, queries, isinstance(logits_fn, Stochastic))
    looked: Any = {"settings": settings, "n_targets": n_targets}
    batch = _Batch(x, y, radii(eps, x), np.arange(x.shape[0], dtype=np.int32), None)

    # A model that closes over tracers is traced too, whatever x is.
    concrete = is_concrete((x, y, eps, key, bounds)) and x.shape[0] > 0
    if not concrete or not is_concrete(call(logits_fn, x[:1], key_look)):
        first = _look(model, x, y, key_look, **looked)
        index = jnp.asarray(batch.index) + zeros_by_example(x, jnp.int32)
        batch = batch._replace(index=index, targets=first.targets)
        masked = functools.partial(_round, model, key=key_rounds, bounds=bounds, settings=settings)
        done = _masked(first, batch, masked)
        return done if return_info else done.x_adv

    look, run = _programs(model)
    host: _Batch = _on_host(batch._replace(targets=np.zeros(x.shape[:1])))
    most = min(batch_size or len(host.index), len(host.index))
    parts = [
        _take(look(host.x[rows], host.y[rows], key_look, **looked), np.arange(count))
        for rows, count in _chunks(host.index, most)
    ]
    first = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    _warn(first, settings.draws)
    packed = functools.partial(run, key=key_rounds, bounds=bounds, settings=settings)
    done = _compacted(first, host._replace(targets=first.targets), packed, most)
    return done if return_info else done.x_adv
