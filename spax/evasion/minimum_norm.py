"""What the attacks that weigh a hinge loss against a distance share, and their search for c."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spax import loops
from spax.checks import check_batch, check_count, check_key, check_number
from spax.losses import hits, misclassified
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Key,
    Model,
    Number,
    PerExampleLoss,
    PyTree,
    Stochastic,
    call,
    each_row,
    wide,
)

__all__ = [
    "Found",
    "Info",
    "Rest",
    "check_search",
    "hinge",
    "nearer",
    "nothing_found",
    "rest",
    "search_const",
    "unrested",
]


class Info(NamedTuple):
    """What the judge cannot recompute: the weight found, the gradient steps taken, ``[B]`` each."""

    const: Array
    steps: Array


class Found(NamedTuple):
    """The nearest success so far."""

    x: Array
    distance: Array  # in the measure of the search; inf: nothing found
    const: Array


class Rest(NamedTuple):
    """Which examples of a round still move."""

    active: Array  # bool [B]
    improved: Array  # bool [B]: whether a check has seen the objective fall
    last: Array  # the objective at the last check


def fold_in(key: Key | None, i: Any) -> Key | None:
    """The i-th key, if there are keys."""
    return None if key is None else jax.random.fold_in(key, i)


def check_search(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    key: Key | None,
    bounds: Bounds,
    *,
    confidence: Number,
    initial_const: Number,
    step_size: Number,
    steps: int,
    search_steps: int,
) -> None:
    """The checks that these attacks have in common."""
    check_batch(x, y, bounds)
    check_number("confidence", confidence, low=0)
    check_number("initial_const", initial_const, low=0, low_open=True)
    check_number("step_size", step_size, low=0, low_open=True)
    check_count("steps", steps)
    check_count("search_steps", search_steps)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")


def hinge(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    confidence: Number,
    loss: PerExampleLoss,
    criterion: Criterion | None,
    targeted: bool,
    flat: bool = True,
) -> Any:
    """What these attacks ascend, ``z -> (-max(kappa - s loss, 0), success)``.

    s is -1 when targeted; success, 0 or 1, is the criterion together with ``s loss >= kappa``.
    Stochastic if the model is. Without ``flat`` the value is ``s loss`` itself.
    """
    judged = criterion or (hits if targeted else misclassified)
    dtype = wide(x)
    kappa = jnp.broadcast_to(jnp.asarray(confidence, dtype), x.shape[:1])

    def evaluate(z: Array, key: Key | None = None) -> tuple[Array, Array]:
        outputs = call(logits_fn, z, key)
        reached = (-loss(outputs, y) if targeted else loss(outputs, y)).astype(dtype)
        success = judged(outputs, y) & (reached >= kappa)
        value = -jnp.maximum(kappa - reached, 0) if flat else reached
        return value, success.astype(dtype)

    return Stochastic(evaluate) if isinstance(logits_fn, Stochastic) else evaluate


def nothing_found(x: Array, already: Array) -> Found:
    """Before the search: x itself, at distance 0 where it succeeds already."""
    distance = jnp.where(already > 0, 0, jnp.full(x.shape[:1], jnp.inf, wide(x)))
    return Found(x, distance, distance)


def nearer(found: Found, z: Array, distance: Array, const: Array, success: Array) -> Found:
    """The nearer of what was found and ``z``, where z succeeds."""
    wins = success & (distance < found.distance)
    return Found(
        jnp.where(each_row(wins, z), z, found.x),
        jnp.where(wins, distance, found.distance),
        jnp.where(wins, const, found.const),
    )


def unrested(active: Array, dtype: Any, *, patient: bool = True) -> Rest:
    """At the start of a round; one that is not patient may rest before it has ever improved."""
    improved = jnp.zeros_like(active) if patient else active
    return Rest(active, improved, jnp.full(active.shape, jnp.inf, dtype))


def rest(state: Rest, total: Array, i: Array, every: int) -> Rest:
    """Rests those whose objective has stopped falling, having fallen before.

    One that has yet to fall has not come to rest: it may start where its variables are flat.
    """
    checked = i % every == 0
    fell = total <= 0.9999 * state.last
    return Rest(
        state.active & ~(checked & state.improved & ~fell),
        state.improved | (checked & fell & (i > 0)),
        jnp.where(checked, total, state.last),
    )


def search_const(
    run_round: Callable[[Array, Array, Array, Found], tuple[Array, Array, Found]],
    found: Found,
    *,
    initial_const: Number,
    search_steps: int,
) -> tuple[Array, Found]:
    """Rounds at one weight c each: tenfold until a round succeeds, then bisected.

    The last round runs at the smallest c that succeeded.

    Args:
      run_round: ``(r, const, spent, found) -> (success, spent, found)``.
      found: from `nothing_found`.
      initial_const: the first c.
      search_steps: the number of rounds.

    Returns:
      The gradient steps spent, ``[B]``, and what was found.
    """

    def round_(r: Array, carry: tuple[Array, Array, Array, Array, Found]) -> tuple:
        lower, upper, const, spent, found = carry
        const = jnp.where((r == search_steps - 1) & jnp.isfinite(upper), upper, const)
        success, spent, found = run_round(r, const, spent, found)
        upper = jnp.where(success, jnp.minimum(upper, const), upper)
        lower = jnp.where(success, lower, jnp.maximum(lower, const))
        const = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, const * 10)
        return lower, upper, const, spent, found

    batch = found.distance.shape
    const = jnp.broadcast_to(jnp.asarray(initial_const, found.distance.dtype), batch)
    carry = (
        jnp.zeros_like(const),
        jnp.full_like(const, jnp.inf),
        const,
        jnp.zeros(batch, jnp.int32),
        found,
    )
    *_, spent, found = loops.fori_loop(0, search_steps, round_, carry)
    return spent, found
