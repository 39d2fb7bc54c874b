"""Attacks on policies: perturbed observations while a policy acts, and while it learns.

An environment is a pair of pure functions for one episode: ``reset(key) -> (state, observation)``
and ``step(state, action, key) -> (state, observation, reward, done)``. Episodes are mapped over.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax import loops
from spax.checks import check_batch, check_choice, check_count, check_key, check_number
from spax.evasion.fgsm import fgsm, objective
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import cross_entropy
from spax.norms import _flat, _radius, box, displace, example_keys
from spax.typing import (
    Array,
    Attack,
    Bounds,
    Gradient,
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

__all__ = ["DQN", "attacked_rollout", "dqn", "induced_observation", "policy_fgsm"]


def _greedy(logits_fn: Model, x: Array, key: Key | None) -> Array:
    """The action of highest logit, int32 ``[B]``."""
    logits = call(logits_fn, x, key)
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape [B, K] (got logits.shape={logits.shape})")
    return jnp.argmax(logits, axis=1).astype(jnp.int32)


def policy_fgsm(
    logits_fn: Model,
    x: Array,
    y: PyTree | None = None,
    *,
    key: Key | None = None,
    eps: Number,
    norm: str = "linf",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    gradient: Gradient = exact,
) -> Array:
    """FGSM on a policy: one step that makes the action it prefers less likely.

    The three norms get budgets of comparable size, for D entries an observation: eps in linf
    (this is `spax.evasion.fgsm`), ``eps sqrt(D)`` in l2, and ``eps D`` in l1, spent on the entries
    of largest gradient, each moved as far as the bounds allow.

    Args:
      logits_fn: the policy's logits, or a value network's action values, ``[B, ...] -> [B, K]``;
        plain or Stochastic.
      x: observations ``[B, ...]``, floating, within ``bounds``.
      y: the actions to make less likely, or the wanted ones when targeted, int ``[B]`` in [0, K).
        None: the policy's own preference at ``x`` (the highest logit, not a sampled action).
      key: a random key, for a Stochastic model or a sampling ``gradient``.
      eps: radius in linf, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      targeted: whether to make ``y`` more likely instead.
      bounds: valid range of the observations, numbers or arrays of their trailing shape.
      loss: ``(outputs, y) -> [B]``.
      gradient: how the gradient is taken.

    Returns:
      The perturbed observations, shape and dtype of ``x``, whether or not the action changes.

    Guarantees:
      Within ``bounds``, and within the budget in its norm, up to one rounding of the norm itself.

    Raises:
      ValueError: on a wrong shape, dtype or norm; if concrete inputs are not finite or out of
        bounds, an action is outside [0, K), or eps < 0; if targeted without ``y``; if something
        draws and key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x: policy_fgsm(lambda x: x @ w, x, eps=0.1, norm="l1"))
      >>> x_adv = attack(jnp.eye(2), jnp.array([[0.6, 0.5]]))
      >>> [round(v, 3) for v in x_adv[0].tolist()]  # all of 2 * 0.1 on the first of two equals
      [0.4, 0.5]

    References:
      S. Huang et al., Adversarial attacks on neural network policies, 2017, arXiv:1702.02284,
      Section 3.
    """
    check_choice("norm", norm, ("linf", "l2", "l1"))
    if y is None and targeted:
        raise ValueError("a targeted attack needs the wanted actions y (got y=None)")
    check_batch(x, y, bounds)
    check_number("eps", eps, low=0)
    key_action, key_step = _split(key)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")
    actions = lax.stop_gradient(_greedy(logits_fn, x, key_action)) if y is None else y
    entries = math.prod(x.shape[1:])
    if norm != "l1":
        return fgsm(
            logits_fn,
            x,
            actions,
            key=key_step,
            eps=eps if norm == "linf" else eps * math.sqrt(entries),
            norm=norm,
            targeted=targeted,
            bounds=bounds,
            loss=loss,
            gradient=gradient,
        )
    goal = objective(logits_fn, actions, loss=loss, criterion=None, targeted=targeted)
    _, grad, _ = gradient(goal, x, key_step)
    return displace(x, _spend(grad, x, eps * entries, bounds), bounds)


def _split(key: Key | None) -> tuple[Key | None, Key | None]:
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second


def _spend(grad: Array, x: Array, budget: Number, bounds: Bounds) -> Array:
    """Moves entries along the gradient, the steepest first, as far as box and l1 budget allow."""
    dtype = wide(x)
    low, high = (_flat(b).astype(dtype) for b in box(bounds, x))
    g, flat = _flat(jnp.where(jnp.isfinite(grad), grad, 0)), _flat(x).astype(dtype)
    room = jnp.where(g > 0, high - flat, jnp.where(g < 0, flat - low, 0))
    room = jnp.maximum(room, 0)
    order = jnp.argsort(-jnp.abs(g), axis=1)
    sorted_room = jnp.take_along_axis(room, order, axis=1)
    before = jnp.cumsum(sorted_room, axis=1) - sorted_room
    radius = _radius(budget, x, "l1").reshape(-1, 1).astype(dtype)
    moved = jnp.clip(radius - before, 0, sorted_room)
    back = jnp.argsort(order, axis=1)
    moved = jnp.take_along_axis(moved, back, axis=1)
    return (jnp.sign(g).astype(dtype) * moved).astype(x.dtype).reshape(x.shape)


def attacked_rollout(
    env_reset: Callable[[Key], Any],
    env_step: Callable[..., Any],
    logits_fn: Model,
    attack: Attack | None = None,
    *,
    key: Key,
    steps: int,
    episodes: int = 1,
) -> Array:
    """Returns of a greedy policy whose every observation is attacked.

    All episodes advance together, so that the attack sees them as one batch, in one scan.

    Args:
      env_reset: ``key -> (state, observation)`` of one episode, the observation floating.
      env_step: ``(state, action, key) -> (state, observation, reward, done)`` of one episode.
      logits_fn: the policy, ``[B, ...] -> [B, K]``, plain or Stochastic; it takes the action of
        highest logit.
      attack: ``(logits_fn, x, y, *, key) -> x_adv`` on observations, with y the actions that the
        policy prefers at ``x``: any attack of this package, such as `policy_fgsm` with its numbers
        bound. One that ignores the given model and uses another policy is a transfer attack. None:
        no attack.
      key: a random key.
      steps: number of steps, static, >= 1.
      episodes: number of episodes, static, >= 1; B above.

    Returns:
      float32 ``[episodes]``: sums of rewards up to the first ``done``, or over all steps.

    Raises:
      ValueError: if key is None, or a count < 1.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> reset = lambda key: (jnp.zeros(()), jnp.array([0.6, 0.5]))  # always the same sight
      >>> step = lambda s, a, key: (s, jnp.array([0.6, 0.5]), jnp.where(a == 0, 1.0, 0.0), False)
      >>> play = functools.partial(attacked_rollout, reset, step, lambda x: x, steps=3)
      >>> attack = functools.partial(policy_fgsm, eps=0.1)
      >>> key = jax.random.key(0)
      >>> float(play(key=key)[0]), float(play(attack, key=key)[0])
      (3.0, 0.0)

    References:
      S. Huang et al., Adversarial attacks on neural network policies, 2017, arXiv:1702.02284,
      Section 4.
    """
    check_key(key, "a rollout")
    check_count("steps", steps)
    check_count("episodes", episodes)
    key_reset, key_steps = jax.random.split(key)
    state, x = jax.vmap(env_reset)(jax.random.split(key_reset, episodes))

    def act(x: Array, key: Key) -> Array:
        key_clean, key_attack, key_act = jax.random.split(key, 3)
        if attack is not None:
            x = attack(logits_fn, x, _greedy(logits_fn, x, key_clean), key=key_attack)
        return _greedy(logits_fn, x, key_act)

    chosen = canonical_convolutions(act)

    def step(carry: Any, key: Key) -> tuple[Any, None]:
        state, x, alive, total = carry
        key_act, key_env = jax.random.split(key)
        action = chosen(x, key_act)
        state, x, reward, done = jax.vmap(env_step)(state, action, example_keys(key_env, x))
        total = total + jnp.where(alive, reward.astype(jnp.float32), 0)
        return (state, x, alive & ~done, total), None

    start = (state, x, jnp.ones(episodes, bool), jnp.zeros(episodes, jnp.float32))
    (_, _, _, total), _ = loops.scan(step, start, jax.random.split(key_steps, steps))
    return total


def induced_observation(
    replica_fn: Model,
    adversary_fn: Model,
    x: Array,
    *,
    key: Key | None = None,
    attack: Attack,
) -> Array:
    """Policy induction: observations at which a replica prefers what the adversary would do.

    Args:
      replica_fn: a copy of the victim, or a network that learned from the same observations,
        ``[B, ...] -> [B, K]``; plain or Stochastic.
      adversary_fn: the policy to be induced, over the same actions; it sees the true observation.
      x: observations ``[B, ...]``, floating.
      key: a random key, for what draws.
      attack: a targeted attack, ``(logits_fn, x, y, *, key) -> x_adv``, with its numbers and
        ``targeted=True`` bound, such as `policy_fgsm`.

    Returns:
      The perturbed observations where the replica takes the adversary's action there, and ``x``
      itself where it does not.

    Raises:
      ValueError: as the attack, or if a model does not return ``[B, K]``.

    Example:
      >>> import functools, jax.numpy as jnp
      >>> attack = functools.partial(policy_fgsm, eps=0.1, targeted=True)
      >>> x = jnp.array([[0.6, 0.5], [0.9, 0.5]])
      >>> x_adv = induced_observation(lambda x: x, lambda x: -x, x, attack=attack)
      >>> [[round(v, 2) for v in row] for row in x_adv.tolist()]  # the second is out of reach
      [[0.5, 0.6], [0.9, 0.5]]

    References:
      V. Behzadan, A. Munir, Vulnerability of deep reinforcement learning to policy induction
      attacks, 2017, arXiv:1701.04143, Section 5.
    """
    check_batch(x)
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)
    wanted = _greedy(adversary_fn, x, keys[0])
    x_adv = attack(replica_fn, x, wanted, key=keys[1])
    fooled = _greedy(replica_fn, x_adv, keys[2]) == wanted
    return jnp.where(each_row(fooled, x), x_adv, x)


class Learner(NamedTuple):
    """What learns: parameters, those of the target network, the optimizer's, steps taken."""

    params: PyTree
    target: PyTree
    opt_state: PyTree
    updates: Array


class Replay(NamedTuple):
    """Transitions as the learner saw them, ``[capacity, ...]``; the oldest are overwritten."""

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    dones: Array
    added: Array  # how many transitions were ever added


class DQNState(NamedTuple):
    """The state of `dqn`; ``observation`` is what the learner was shown last."""

    learner: Learner
    replay: Replay
    env_state: PyTree
    observation: Array
    steps: Array


class Metrics(NamedTuple):
    """What an update reports: the loss, and the true rewards and ends of its transitions."""

    loss: Array
    rewards: Array
    dones: Array


class DQN(NamedTuple):
    """Deep Q-learning as pure functions.

    Attributes:
      init: ``(params, key) -> state``.
      update: ``(state, key) -> (metrics, state)``: one step in every environment, one of learning.
      learn: ``(learner, replay, key) -> (loss, learner)``: one step of learning alone, such as a
        replica's on the victim's observations.
    """

    init: Callable[..., DQNState]
    update: Callable[..., tuple[Metrics, DQNState]]
    learn: Callable[..., tuple[Array, Learner]]


def dqn(
    env: tuple[Callable[..., Any], Callable[..., Any]],
    apply_fn: Callable[[PyTree, Array], Array],
    optimizer: Any,
    *,
    discount: Number = 0.99,
    exploration: Number | Callable[[Array], Array] = 0.1,
    capacity: int = 10_000,
    batch_size: int = 32,
    warmup: int = 1000,
    target_every: int = 500,
    environments: int = 1,
    observe: Callable[[Array, Key, Array], Array] | None = None,
) -> DQN:
    """Deep Q-learning, with a hook through which an attacker alters what the learner sees.

    Building it costs nothing, so that an attack with a replica that learns along is a scan whose
    body builds it anew around the replica's current parameters: ``observe = lambda x, key, step:
    induced_observation(replica, adversary, x, attack=...)``, then ``update`` of the victim, then
    ``learn`` of the replica on ``state.replay``, which holds what the victim has seen.

    Args:
      env: ``(reset, step)``: ``reset(key) -> (state, observation)`` and ``step(state, action,
        key) -> (state, observation, reward, done)``, each of one episode, which starts anew when
        done.
      apply_fn: ``(params, x [B, ...]) -> action values [B, K]``.
      optimizer: an optax transformation.
      discount: of future rewards, in [0, 1].
      exploration: probability of a random action, in [0, 1], or a schedule of the step.
      capacity: transitions kept, static; a multiple of ``environments``.
      batch_size: transitions a learning step, static, >= 1.
      warmup: transitions before learning begins, static, >= 1.
      target_every: learning steps between copies into the target network, static, >= 1.
      environments: number of environments that advance together, static, >= 1.
      observe: ``(x [environments, ...], key, step) -> x'``, applied to every observation before
        the learner sees it: it acts on x', and stores and learns from x'. None: nothing.

    Returns:
      A `DQN`, ``(init, update, learn)``. The rewards are the true ones whatever is observed.

    Raises:
      ValueError: if a number is out of range, a count < 1, or capacity is no multiple of
        environments or below warmup.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> reset = lambda key: (jnp.zeros(()), jnp.ones(2))
      >>> step = lambda s, a, key: (s, jnp.ones(2), jnp.where(a == 1, 1.0, 0.0), True)
      >>> agent = dqn((reset, step), lambda w, x: x @ w, optax.sgd(0.1), exploration=1.0,
      ...             capacity=64, warmup=8, environments=4)
      >>> state = agent.init(jnp.zeros((2, 2)), jax.random.key(0))
      >>> update = lambda state, key: agent.update(state, key)[::-1]
      >>> run = jax.jit(lambda state, keys: jax.lax.scan(update, state, keys))
      >>> state, metrics = run(state, jax.random.split(jax.random.key(1), 100))
      >>> (jnp.ones((1, 2)) @ state.learner.params).round(1).tolist()  # the rewards, learned
      [[0.0, 1.0]]

    References:
      V. Mnih et al., Human-level control through deep reinforcement learning, 2015, Algorithm 1.
      V. Behzadan, A. Munir, Vulnerability of deep reinforcement learning to policy induction
      attacks, 2017, arXiv:1701.04143, Section 5.
    """
    import optax

    check_number("discount", discount, low=0, high=1)
    if not callable(exploration):
        check_number("exploration", exploration, low=0, high=1)
    counts = {
        "capacity": capacity,
        "batch_size": batch_size,
        "warmup": warmup,
        "target_every": target_every,
        "environments": environments,
    }
    for name, count in counts.items():
        check_count(name, count)
    if capacity % environments or capacity < warmup:
        raise ValueError(
            "capacity must be a multiple of environments and at least warmup "
            f"(got capacity={capacity}, environments={environments}, warmup={warmup})"
        )
    env_reset, env_step = env

    def seen(x: Array, key: Key, step: Array) -> Array:
        return x if observe is None else observe(x, key, step)

    def init(params: PyTree, key: Key) -> DQNState:
        check_key(key, "a first observation")
        key_reset, key_seen = jax.random.split(key)
        env_state, x = jax.vmap(env_reset)(jax.random.split(key_reset, environments))
        none = jnp.zeros((), jnp.int32)
        empty = jnp.zeros((capacity, *x.shape[1:]), x.dtype)
        flat = jnp.zeros(capacity, jnp.float32)
        return DQNState(
            Learner(params, jax.tree.map(jnp.copy, params), optimizer.init(params), none),
            Replay(empty, flat.astype(jnp.int32), flat, empty, flat.astype(bool), none),
            env_state,
            seen(x, key_seen, none),
            none,
        )

    def loss_fn(params: PyTree, target: PyTree, batch: tuple[Array, ...]) -> Array:
        x, action, reward, x_next, done = batch
        best = jnp.max(apply_fn(target, x_next), axis=1)
        future = jnp.where(done, 0, jnp.asarray(discount, best.dtype) * best)
        values = jnp.take_along_axis(apply_fn(params, x), action[:, None], axis=1)[:, 0]
        goal = lax.stop_gradient(reward.astype(values.dtype) + future)
        return jnp.mean(optax.huber_loss(values, goal))

    slope = canonical_convolutions(jax.value_and_grad(loss_fn))

    def learn(learner: Learner, replay: Replay, key: Key) -> tuple[Array, Learner]:
        held = jnp.clip(replay.added, 1, capacity)
        rows = jax.random.randint(key, (batch_size,), 0, held)
        loss, grads = slope(learner.params, learner.target, tuple(v[rows] for v in replay[:-1]))
        changes, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
        params = optax.apply_updates(learner.params, changes)
        updates = learner.updates + 1
        copied = updates % target_every == 0
        target = jax.tree.map(lambda t, p: jnp.where(copied, p, t), learner.target, params)
        learned = Learner(params, target, opt_state, updates)
        ready = replay.added >= warmup
        kept = jax.tree.map(lambda new, old: jnp.where(ready, new, old), learned, learner)
        return jnp.where(ready, loss, 0), kept

    def update(state: DQNState, key: Key) -> tuple[Metrics, DQNState]:
        check_key(key, "a step of learning")
        key_act, key_env, key_reset, key_seen, key_learn = jax.random.split(key, 5)
        x, params = state.observation, state.learner.params

        key_whether, key_which = jax.random.split(key_act)
        values = apply_fn(params, x)
        rate = exploration(state.steps) if callable(exploration) else exploration
        explored = jax.random.uniform(key_whether, (environments,)) < rate
        drawn = jax.random.randint(key_which, (environments,), 0, values.shape[1])
        action = jnp.where(explored, drawn, jnp.argmax(values, axis=1).astype(jnp.int32))

        after = jax.vmap(env_step)(state.env_state, action, jax.random.split(key_env, environments))
        env_state, x_next, reward, done = after
        fresh = jax.vmap(env_reset)(jax.random.split(key_reset, environments))

        def restarted(new: Array, old: Array) -> Array:
            return jnp.where(each_row(done, old), new, old)

        env_state, x_next = jax.tree.map(restarted, fresh, (env_state, x_next))
        # At an end the next episode's first observation is stored: no value is taken from it.
        x_next = seen(x_next, key_seen, state.steps + 1)
        place = state.replay.added % capacity
        rewards = reward.astype(jnp.float32)
        old, new = state.replay[:-1], (x, action, rewards, x_next, done)
        kept = [
            lax.dynamic_update_slice_in_dim(held, rows.astype(held.dtype), place, 0)
            for held, rows in zip(old, new, strict=True)
        ]
        xs, actions, all_rewards, nexts, dones = kept
        added = state.replay.added + environments
        replay = Replay(xs, actions, all_rewards, nexts, dones, added)
        loss, learner = learn(state.learner, replay, key_learn)
        steps = state.steps + 1
        return Metrics(loss, rewards, done), DQNState(learner, replay, env_state, x_next, steps)

    return DQN(init, update, learn)
