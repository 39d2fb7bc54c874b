"""Federated averaging with user-level privacy: DP-FedAvg, the algorithm behind DP-LSTM."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from spax.checks import check_key, check_number
from spax.dp.clipping import ClipInfo, clipped_grad, rounding_margin
from spax.dp.sampling import Batch, Users
from spax.dp.sgd import (
    PrivacyState,
    _exact_psum,
    _gathered,
    _split,
    add_noise,
    charging,
    init_privacy,
)
from spax.loops import varying
from spax.typing import Array, Key, Number, PyTree

__all__ = [
    "Estimator",
    "FedAvg",
    "FedAvgState",
    "clipped_denominator",
    "fedavg",
    "fixed_denominator",
]


class Estimator(NamedTuple):
    """How a sum over users becomes a mean.

    Args:
      denominator: what the sum of contributions is divided by.
      sensitivity: the most by which one user moves the quotient in l2.
    """

    denominator: Array
    sensitivity: Array


def fixed_denominator(l2_clip_norm: Array, weight: Array, expected: float) -> Estimator:
    """Divides by the expected weight of a round, which is public: unbiased.

    Args:
      l2_clip_norm: the bound S.
      weight: of the users who took part; not looked at.
      expected: ``q W``.

    Returns:
      An `Estimator`: the sensitivity is ``S / (q W)``.

    Raises:
      ZeroDivisionError: if expected is 0.

    Example:
      >>> float(fixed_denominator(jnp.float32(1), jnp.float32(7), 10.0).denominator)
      10.0

    References:
      H. B. McMahan et al., 2018, arXiv:1710.06963, Section 2.1.
    """
    return Estimator(jnp.float32(expected), l2_clip_norm / expected)


def clipped_denominator(l2_clip_norm: Array, weight: Array, expected: float) -> Estimator:
    """Divides by the weight that took part, but by no less than a public bound.

    Args:
      l2_clip_norm: the bound S.
      weight: of the users who took part.
      expected: ``q W_min``.

    Returns:
      An `Estimator`: the sensitivity is ``2 S / (q W_min)``, as one user moves the denominator too.

    Raises:
      ZeroDivisionError: if expected is 0.

    Example:
      >>> float(clipped_denominator(jnp.float32(1), jnp.float32(12), 10.0).denominator)
      12.0

    References:
      H. B. McMahan et al., 2018, arXiv:1710.06963, Section 2.1, Lemma 1.
    """
    return Estimator(jnp.maximum(weight, jnp.float32(expected)), 2 * l2_clip_norm / expected)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FedAvgState:
    """The server.

    Args:
      params: the model; private.
      opt_state: of the server's optimizer.
      privacy: the receipt: `spax.dp.epsilon` reads it.
    """

    params: PyTree
    opt_state: Any
    privacy: PrivacyState


class FedAvg(NamedTuple):
    """DP-FedAvg.

    Args:
      init: ``init(params) -> FedAvgState``.
      update: ``update(state, clients, *, key) -> (diagnostics, state)``, a round. ``clients`` is a
        `Batch` of users, ``[K, ...]``, as `spax.dp.sample` draws it. Diagnostics are a
        `ClipInfo`, whose loss is the mean length of contributions before clipping (with a
        ``weight_fn``, those that are clipped are not counted). They are not private.
    """

    init: Callable[[PyTree], FedAvgState]
    update: Callable[..., tuple[ClipInfo, FedAvgState]]


def fedavg(
    local_update: Callable[[PyTree, PyTree, Key | None], PyTree],
    server_optimizer: optax.GradientTransformation,
    *,
    l2_clip_norm: Number,
    noise_multiplier: Number,
    sampling: Users,
    estimator: Callable[[Array, Array, float], Estimator] = fixed_denominator,
    weight_fn: Callable[[PyTree], Array] | None = None,
    total_weight: float | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
) -> FedAvg:
    """Federated averaging of which no user can be told to have taken part.

    A round: every sampled user trains from the model on their own data; the difference to the model
    is clipped to length S, times the user's weight; the mean of these, plus noise, goes to the
    server's optimizer as if it were a gradient (with ``optax.sgd(1.0)`` it is added to the model).

    Args:
      local_update: ``(params, user_data, key) -> new_params``, of one user, whose data is a row of
        the batch; any number of steps of any optimizer, in ``lax`` loops.
      server_optimizer: an optax optimizer; what it does is post-processing.
      l2_clip_norm: the bound S on a user's contribution, all parameters together, > 0.
      noise_multiplier: z, >= 0: noise over sensitivity. 0: epsilon is inf.
      sampling: the rule that users are drawn by.
      estimator: `fixed_denominator`, or `clipped_denominator` with ``total_weight=W_min``.
      weight_fn: ``user_data -> weight``, clipped to [0, 1], such as ``min(n_k / cap, 1)``; None: 1.
      total_weight: W, the sum of all users' weights, or a public bound on it, > 0; it must not
        be computed from the data. None: the number of users.
      chunk_size: users at a time, memory against time; None: all.
      axis_name: of a ``shard_map`` or ``vmap`` axis over which a round's users are spread (usually
        ``"client"``): contributions are added over it and the noise is added once.

    Returns:
      A `FedAvg` pair ``(init, update)``.

    Guarantees:
      With users from `spax.dp.sample` under the same rule and keys used once, all models together
      are (`epsilon(state.privacy, delta)`, delta)-differentially private for adding or removing
      one user with all of their data. Contributions that are not finite count for nothing.

    Raises:
      TypeError: if sampling is not `Users`.
      ValueError: on concrete numbers out of range; at an update: if the state is for another
        sampling, the rows are not ``sampling.capacity``, or there is no key.

    Example:
      >>> def local_update(params, x, key):  # one step towards the user's mean
      ...     return params - 0.5 * (params - x.mean(axis=0))
      >>> sampling = Users(rate=0.5, capacity=8, num_users=8)
      >>> average = fedavg(local_update, optax.sgd(1.0), l2_clip_norm=1.0, noise_multiplier=1.0,
      ...                  sampling=sampling)
      >>> from spax.dp.sampling import sample
      >>> state = average.init(jnp.zeros(2))
      >>> clients = sample(jax.random.key(0), jnp.ones((8, 5, 2)), sampling)
      >>> diagnostics, state = average.update(state, clients, key=jax.random.key(1))
      >>> state.params.shape, int(state.privacy.steps), state.privacy.spent.unit
      ((2,), 1, 'user')

    References:
      H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, Learning differentially private recurrent
      language models, 2018, arXiv:1710.06963, Algorithm 1.
    """
    if not isinstance(sampling, Users):
        raise TypeError(
            f"sampling must be a spax.dp.Users (got {type(sampling).__name__}): users are the unit"
        )
    check_number("l2_clip_norm", l2_clip_norm, low=0, low_open=True, scalar=True)
    check_number("noise_multiplier", noise_multiplier, low=0, scalar=True)
    weight = float(sampling.num_users) if total_weight is None else total_weight
    check_number("total_weight", weight, low=0, low_open=True, scalar=True)
    expected = sampling.rate * float(weight)
    margin = 1.0 if axis_name is None else rounding_margin(sampling.capacity)
    charge = charging(sampling, noise_multiplier)

    def weigh(client: PyTree) -> Array:
        if weight_fn is None:
            return jnp.float32(1)
        value = jnp.asarray(weight_fn(client), jnp.float32)
        return jnp.clip(jnp.where(jnp.isnan(value), 0.0, value), 0.0, 1.0)

    def init(params: PyTree) -> FedAvgState:
        return FedAvgState(params, server_optimizer.init(params), init_privacy(sampling))

    def update(state: FedAvgState, clients: Batch, *, key: Any) -> tuple[ClipInfo, FedAvgState]:
        check_key(key, "a round")
        if state.privacy.sampling != sampling:
            raise ValueError(
                f"the state is for another sampling than this round's {sampling} "
                f"(got {state.privacy.sampling})"
            )
        shards = 1 if axis_name is None else lax.axis_size(axis_name)
        if clients.mask.shape[0] * shards != sampling.capacity:
            raise ValueError(
                f"a round must have capacity={sampling.capacity} rows of users in all "
                f"(got {clients.mask.shape[0] * shards})"
            )
        params, bound = state.params, jnp.asarray(l2_clip_norm, jnp.float32)
        key_noise, key_local = _split(key)
        if axis_name is not None:
            key_local = jax.random.fold_in(key_local, lax.axis_index(axis_name))

        def contribution(at: PyTree, client: PyTree, key: Key | None) -> tuple[Array, PyTree]:
            """A function linear in ``at``, whose gradient is what the user contributes."""
            start = varying(params, client)
            new = local_update(start, client, key)
            difference = jax.tree.map(
                lambda p, q: jnp.asarray(p, jnp.float32) - jnp.asarray(q, jnp.float32), start, new
            )
            length = optax.tree.norm(difference)
            if weight_fn is not None:
                # Weights come after clipping; what is clipped below is then short enough.
                share = jnp.minimum(1.0, bound / jnp.maximum(length, 1e-30))
                difference = optax.tree.scale(weigh(client) * share, difference)
            difference, length = lax.stop_gradient((difference, length))
            return optax.tree.vdot(at, difference) + length, None

        clipped = clipped_grad(
            contribution, l2_clip_norm=l2_clip_norm * margin, chunk_size=chunk_size
        )
        origin = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)
        sums, info = clipped(origin, clients, key=key_local)
        weights = jnp.sum(jnp.where(clients.mask, jax.vmap(weigh)(clients.data), 0.0))
        if axis_name is not None:
            sums, info = _exact_psum(sums, axis_name), _gathered(info, axis_name)
            weights = lax.psum(weights, axis_name)
        mean = estimator(bound, weights, expected)
        # In units of the sum, so that noise is that of DP-SGD where the mean is.
        scale = jnp.asarray(noise_multiplier, jnp.float32) * mean.sensitivity * mean.denominator
        noised = add_noise(key_noise, sums, scale)
        grads = jax.tree.map(
            lambda g, p: (g / mean.denominator).astype(jnp.asarray(p).dtype), noised, params
        )
        updates, opt_state = server_optimizer.update(grads, state.opt_state, params)
        return info, FedAvgState(
            optax.apply_updates(params, updates), opt_state, charge(state.privacy)
        )

    return FedAvg(init, update)
