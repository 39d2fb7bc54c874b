"""A substitute for a model that gives labels only, trained on queries that its Jacobian chooses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax import loops
from spax.checks import check_batch, check_count, check_key, check_labels, check_number
from spax.evasion.oracle import ask
from spax.gradients.convolutions import canonical_convolutions
from spax.losses import cross_entropy
from spax.norms import box, displace
from spax.typing import Array, Bounds, Key, Model, Number, PyTree, call, each_row, expand

__all__ = [
    "Substitute",
    "SubstituteState",
    "jacobian_augment",
    "reservoir_sample",
    "substitute",
]


def jacobian_augment(
    logits_fn: Model,
    x: Array,
    y: Array,
    *,
    key: Key | None = None,
    lam: Number,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """New inputs at a step from old ones, along which the score of their class changes most.

    ``x + lam sign(dF_y(x) / dx)``, with F the substitute's scores and y the oracle's labels.

    Args:
      logits_fn: the substitute, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: the classes that the oracle gave them, int ``[B]`` in [0, K).
      key: a random key, for a Stochastic model.
      lam: the step, scalar or ``[B]``; below 0 it lowers the score.
      bounds: valid range of the inputs.

    Returns:
      The new inputs, shape and dtype of ``x``.

    Guarantees:
      Within ``bounds``, and within ``|lam|`` of ``x`` in linf.

    Raises:
      ValueError: on a wrong shape or dtype; if concrete inputs are not finite or out of bounds, a
        label is outside the classes, or lam is NaN; if the model is Stochastic and key is None.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.5, 0.5]])
      >>> jacobian_augment(lambda x: x @ jnp.eye(2), x, jnp.array([0]), lam=0.25).tolist()
      [[0.75, 0.5]]

    References:
      N. Papernot, P. McDaniel, I. Goodfellow, S. Jha, Z. B. Celik, A. Swami, Practical black-box
      attacks against machine learning, 2016, arXiv:1602.02697, Section 4.2.
    """
    check_batch(x, y, bounds)
    check_number("lam", lam)

    def score(x: Array) -> Array:
        logits = call(logits_fn, x, key)
        if logits.ndim != 2:
            raise ValueError(f"logits must have shape [B, K] (got logits.shape={logits.shape})")
        check_labels(y, logits.shape[1])
        return jnp.sum(jnp.take_along_axis(logits, y[:, None], axis=1))

    # sign(NaN) is NaN: such an entry stays where it is.
    direction = jnp.sign(jnp.nan_to_num(jax.grad(score)(x)))
    return displace(x, expand(lam, x) * direction, bounds)


def _reservoir(key: Key, k: int, count: Array | int, size: int) -> Array:
    """Chooses k of the first ``count`` places, int32 ``[k]``; or ``arange(k)`` of fewer."""
    draws = jax.random.split(key, size)

    def consider(i: Array, kept: Array) -> Array:
        j = jax.random.randint(draws[i], (), 0, i + 1)
        taken = (j < k) & (i < count)
        place = jnp.where(taken, j, k)  # out of range: dropped
        return kept.at[place].set(i.astype(kept.dtype), mode="drop")

    return loops.fori_loop(k, size, consider, jnp.arange(k, dtype=jnp.int32))


def reservoir_sample(x: Array, k: int, *, key: Key) -> tuple[Array, Array]:
    """Chooses k rows of a stream, every set of k with the same probability, in one pass.

    The first k are kept; each later row i takes the place of a kept one with probability
    ``k / (i + 1)``.

    Args:
      x: ``[N, ...]``.
      k: how many, static, from 1 to N.
      key: a random key, consumed.

    Returns:
      ``(x[idx], idx)``, with idx int32 ``[k]``, all different.

    Raises:
      ValueError: if k is not from 1 to N, or there is no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rows, idx = reservoir_sample(jnp.arange(10.0), 3, key=jax.random.key(0))
      >>> len(set(idx.tolist())), rows.tolist() == [float(i) for i in idx]
      (3, True)

    References:
      N. Papernot, P. McDaniel, I. Goodfellow, Transferability in machine learning: from phenomena
      to black-box attacks using adversarial samples, 2016, arXiv:1605.07277, Section 3.2. The
      algorithm is Vitter's R.
    """
    check_count("k", k)
    if x.ndim < 1 or k > x.shape[0]:
        raise ValueError(f"k must be at most the number of rows (got k={k}, x.shape={x.shape})")
    idx = _reservoir(check_key(key, "reservoir_sample"), k, x.shape[0], x.shape[0])
    return x[idx], idx


def _add(value: Array, change: Array) -> Array:
    return (value + change).astype(value.dtype)


class SubstituteState(NamedTuple):
    """The substitute and what it has learnt from; the first ``queries`` rows are in use."""

    params: PyTree
    opt_state: PyTree
    x: Array  # [capacity, ...]
    y: Array  # int32 [capacity], the oracle's labels
    valid: Array  # bool [capacity]
    queries: Array  # rows asked so far
    rounds: Array  # updates so far


class Substitute(NamedTuple):
    """``init(params, x0) -> state`` and ``update(state, key) -> (params, state)``."""

    init: Callable[[PyTree, Array], SubstituteState]
    update: Callable[[SubstituteState, Key], tuple[PyTree, SubstituteState]]


def substitute(
    oracle_fn: Model,
    apply_fn: Callable[..., Any],
    optimizer: Any,
    *,
    lam: Number = 0.1,
    tau: int = 3,
    rounds: int = 6,
    reservoir_after: int | None = None,
    reservoir_size: int = 400,
    epochs: int = 10,
    batch_size: int = 64,
    bounds: Bounds = (0.0, 1.0),
) -> Substitute:
    """Trains a copy of a model that can only be asked, to attack the copy in its place.

    A round: new inputs from the ones there are, by `jacobian_augment` (the first round has x0);
    their labels from the oracle; and ``epochs`` passes of training. The number of inputs doubles,
    or, from round ``reservoir_after`` on, grows by ``reservoir_size`` chosen by reservoir sampling.
    Attack the substitute with any attack (`fgsm`, `jsma`): what fools it often fools the oracle.

    Args:
      oracle_fn: the model to copy, of which only the predicted class is used: a function, plain or
        Stochastic, or an `Oracle`, which is asked about the new inputs only.
      apply_fn: the substitute, ``apply_fn(params, x, *, train, key) -> [B, K]``.
      optimizer: an optax optimizer; its state lives on from round to round, as the weights do.
      lam: step of the augmentation, scalar.
      tau: rounds after which the step changes its sign, static, >= 1.
      rounds: rounds that there is room for, static, >= 1. Later ones train only.
      reservoir_after: how often the inputs double before the reservoir, static; None: always.
      reservoir_size: inputs added by a round with the reservoir, static, >= 1.
      epochs: passes over the inputs a round, static, >= 1.
      batch_size: inputs in a training step, static, >= 1.
      bounds: valid range of the inputs.

    Returns:
      ``Substitute(init, update)``: ``init(params, x0) -> state`` with x0 ``[n0, ...]``, and
      ``update(state, key) -> (params, state)``, one round. The state has room for all inputs:
      ``x``, ``y`` and ``valid`` (the first ``queries`` rows are in use).

    Guarantees:
      After round r (from 1) ``queries`` is ``n0 2^(r-1)``, or with the reservoir
      ``n0 2^s + reservoir_size (r - 1 - s)``, s = reservoir_after: every row once, and no other.

    Raises:
      ValueError: if a count is too small or lam is NaN; from init if x0 is no valid batch; from
        update if there is no key.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> oracle = lambda x: jnp.stack([x[:, 0], 1 - x[:, 0]], axis=1)
      >>> apply_fn = lambda params, x, *, train, key: x @ params
      >>> copy = substitute(oracle, apply_fn, optax.sgd(0.5), rounds=2)
      >>> state = copy.init(jnp.zeros((2, 2)), jnp.array([[0.9, 0.2], [0.1, 0.5], [0.3, 0.7]]))
      >>> update = jax.jit(copy.update)
      >>> for i in range(2):
      ...     params, state = update(state, jax.random.key(i))
      >>> int(state.queries), (jnp.array([[0.8, 0.4]]) @ params).argmax(axis=1).tolist()
      (6, [0])

    References:
      N. Papernot, P. McDaniel, I. Goodfellow, S. Jha, Z. B. Celik, A. Swami, Practical black-box
      attacks against machine learning, 2016, arXiv:1602.02697, Algorithm 1. N. Papernot,
      P. McDaniel, I. Goodfellow, Transferability in machine learning: from phenomena to black-box
      attacks using adversarial samples, 2016, arXiv:1605.07277, Section 3 (the periodic step and
      the reservoir).
    """
    check_number("lam", lam)
    for name, count in (("tau", tau), ("rounds", rounds), ("epochs", epochs)):
        check_count(name, count)
    check_count("reservoir_size", reservoir_size)
    check_count("batch_size", batch_size)
    doublings = rounds - 1
    if reservoir_after is not None:
        check_count("reservoir_after", reservoir_after, 0)
        doublings = min(doublings, reservoir_after)

    def init(params: PyTree, x0: Array) -> SubstituteState:
        check_batch(x0, None, bounds)
        check_count("x0.shape[0]", x0.shape[0])
        more = x0.shape[0] * 2**doublings + reservoir_size * (rounds - 1 - doublings)
        x = jnp.zeros((more, *x0.shape[1:]), x0.dtype).at[: x0.shape[0]].set(x0)
        # The valid range need not hold 0.
        x = jnp.clip(x, *box(bounds, x))
        rows = jnp.zeros(more, jnp.int32)
        zero = jnp.zeros((), jnp.int32)
        params = jax.tree.map(jnp.asarray, params)
        opt_state = jax.tree.map(jnp.asarray, optimizer.init(params))
        # Counts of 0 rows and 0 rounds: x0 is asked about by the first update.
        held = jnp.arange(more) < x0.shape[0]
        return SubstituteState(params, opt_state, x, rows, held, zero, zero)

    def grow(state: SubstituteState, key: Key) -> tuple[Array, Array]:
        """The inputs with the new ones behind the old ones: (x, their number)."""
        key_model, key_choice = jax.random.split(key)
        size, count = state.x.shape[0], state.queries
        sign = jnp.where((state.rounds // tau) % 2 == 0, 1.0, -1.0).astype(state.x.dtype)

        def f(x: Array) -> Array:
            return apply_fn(state.params, x, train=False, key=key_model)

        step = jnp.asarray(lam, state.x.dtype) * sign
        new = jacobian_augment(f, state.x, state.y, lam=step, bounds=bounds)
        place = jnp.arange(size) - count
        source, added = place, count
        if reservoir_after is not None and doublings < rounds - 1:
            k = min(reservoir_size, size)
            chosen = _reservoir(key_choice, k, count, size)
            by_reservoir = state.rounds > doublings
            source = jnp.where(by_reservoir, chosen[jnp.clip(place, 0, k - 1)], place)
            added = jnp.where(by_reservoir, jnp.minimum(k, count), count)
        fresh = (place >= 0) & (place < added)
        rows = each_row(fresh, state.x)
        x = jnp.where(rows, new[jnp.clip(source, 0, size - 1)], state.x)
        return x, jnp.minimum(count + added, size)

    def train(
        params: PyTree, opt_state: PyTree, x: Array, y: Array, count: Array, key: Key
    ) -> tuple[PyTree, PyTree]:
        size = x.shape[0]
        batches = (count + batch_size - 1) // batch_size

        def epoch(e: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            key_order, key_steps = jax.random.split(jax.random.fold_in(key, e))
            shuffled = jnp.where(
                jnp.arange(size) < count, jax.random.uniform(key_order, (size,)), 2.0
            )
            order = jnp.pad(jnp.argsort(shuffled), (0, batch_size))

            def step(b: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
                params, opt_state = carry
                rows = lax.dynamic_slice(order, (b * batch_size,), (batch_size,))
                used = (b * batch_size + jnp.arange(batch_size) < count).astype(x.dtype)

                def loss(params: PyTree) -> Array:
                    key_model = jax.random.fold_in(key_steps, b)
                    logits = apply_fn(params, x[rows], train=True, key=key_model)
                    losses = cross_entropy(logits, y[rows])
                    return jnp.sum(losses * used.astype(losses.dtype)) / jnp.sum(
                        used.astype(losses.dtype)
                    )

                slope = canonical_convolutions(jax.grad(loss))(params)
                updates, opt_state = optimizer.update(slope, opt_state, params)
                return jax.tree.map(_add, params, updates), opt_state

            return loops.fori_loop(0, batches, step, carry)

        return loops.fori_loop(0, epochs, epoch, (params, opt_state))

    def update(state: SubstituteState, key: Key) -> tuple[PyTree, SubstituteState]:
        key_grow, key_ask, key_train = jax.random.split(check_key(key, "update"), 3)
        first = state.rounds == 0
        start = jnp.sum(state.valid, dtype=jnp.int32)
        grown, count = grow(state, key_grow)
        x = jnp.where(first, state.x, grown)
        count = jnp.where(first, start, count)
        unknown = (jnp.arange(x.shape[0]) >= state.queries) & (jnp.arange(x.shape[0]) < count)
        outputs = ask(oracle_fn, x, unknown, key_ask)
        y = jnp.where(unknown, jnp.argmax(outputs, axis=1).astype(jnp.int32), state.y)
        params, opt_state = train(state.params, state.opt_state, x, y, count, key_train)
        valid = jnp.arange(x.shape[0]) < count
        new = SubstituteState(params, opt_state, x, y, valid, count, state.rounds + 1)
        return params, new

    return Substitute(init, update)
