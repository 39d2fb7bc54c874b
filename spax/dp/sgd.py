"""DP-SGD: a private gradient and its receipt from one call."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from spax import crypto
from spax.checks import check_key, check_number, is_concrete
from spax.crypto.chacha import normal_from_words
from spax.dp.accounting import rdp
from spax.dp.clipping import ClipInfo, clipped_grad, rounding_margin
from spax.dp.rules import Rule, flat
from spax.dp.sampling import BallsInBins, Batch, Sampling, Shuffled
from spax.typing import Array, Key, Number, PyTree

_SHARES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of delta that may be set aside for overflow."""

__all__ = [
    "PrivacyState",
    "PrivateGrad",
    "add_noise",
    "epsilon",
    "init_privacy",
    "noised_sums",
    "private_grad",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrivacyState:
    """What has been spent; it sits beside the optimizer's state, never inside it.

    Args:
      spent: the accountant's state.
      overflow: float32 scalar: the probability that some batch overflowed, rounded up.
      steps: int32 scalar: number of releases.
      least_noise: float32 scalar: the smallest noise multiplier of any release; inf before the
        first. Another accountant that is told of ``steps`` releases with it errs to the safe side.
      charged: float32 scalar: the smallest noise multiplier that the running epoch was charged for,
        where the rule has epochs.
      sampling: static: the rule that batches were drawn by.
    """

    spent: rdp.RdpState
    overflow: Array
    steps: Array
    least_noise: Array
    charged: Array
    sampling: Sampling = dataclasses.field(metadata={"static": True})


class PrivateGrad(NamedTuple):
    """What a private step returns.

    Args:
      grads: the private gradient, shape and dtype of the parameters.
      diagnostics: how the batch fared. It is not private: do not publish it.
    """

    grads: PyTree
    diagnostics: ClipInfo


def init_privacy(sampling: Sampling, *, unit: str | None = None) -> PrivacyState:
    """The state before the first release.

    Args:
      sampling: the rule that batches will be drawn by; `private_grad` compares it with its own.
      unit: whose data one row is, where it is not the rule's own: ``"user"`` where each row holds
        all of one user's data.

    Returns:
      A `PrivacyState`; its adjacency is that of the rule.

    Raises:
      TypeError: if sampling is none of the rules.

    Example:
      >>> from spax.dp import Poisson
      >>> privacy = init_privacy(Poisson(rate=0.1, capacity=30, num_records=100))
      >>> float(epsilon(privacy, 1e-5))
      0.0
    """
    _check_sampling(sampling)
    zero = jnp.zeros((), jnp.float32)
    sampler, _ = accounted_as(sampling)
    spent = rdp.init(
        sampler=sampler, adjacency=sampling.adjacency, unit=sampling.unit if unit is None else unit
    )
    most = jnp.full((), np.inf, jnp.float32)
    return PrivacyState(spent, zero, jnp.zeros((), jnp.int32), most, most, sampling)


def accounted_as(sampling: Sampling) -> tuple[str, int]:
    """The accountant's sampler, and of how many releases in a row one is charged.

    Within an epoch of `Shuffled` or `BallsInBins` each unit takes part in one batch, wherever it
    lies: all of them together cost what one release of all units does.
    """
    if isinstance(sampling, Shuffled | BallsInBins):
        return "full_batch", sampling.batches
    return sampling.sampler, 1


def charging(
    sampling: Sampling, noise_multiplier: Number
) -> Callable[[PrivacyState], PrivacyState]:
    """What a release does to the state: ``charge(privacy) -> privacy``."""
    sampler, period = accounted_as(sampling)

    def cost() -> rdp.RdpCost:
        if sampler == "poisson":
            return rdp.subsampled_gaussian(
                noise_multiplier=noise_multiplier, sampling_rate=sampling.rate
            )
        if sampler == "fixed_size":
            return rdp.fixed_size_gaussian(
                noise_multiplier=noise_multiplier, sampling_rate=sampling.rate
            )
        return rdp.full_batch_gaussian(
            noise_multiplier=noise_multiplier, adjacency=sampling.adjacency
        )

    known = cost() if is_concrete(noise_multiplier) else None
    overflow = _above(sampling.overflow)

    def charge(privacy: PrivacyState) -> PrivacyState:
        spent = rdp.add(privacy.spent, cost() if known is None else known)
        noise, charged = jnp.asarray(noise_multiplier, jnp.float32), privacy.charged
        if period > 1:
            starts = privacy.steps % period == 0
            # Less noise in the middle of an epoch is charged as if it were another.
            due = starts | ~(noise >= charged)
            spent = jax.tree.map(partial(jnp.where, due), spent, privacy.spent)
            charged = jnp.where(starts, _below(noise), jnp.minimum(charged, _below(noise)))
        total = privacy.overflow + overflow
        return dataclasses.replace(
            privacy,
            spent=spent,
            overflow=jnp.where(overflow > 0, jnp.nextafter(total, jnp.float32(np.inf)), total),
            steps=privacy.steps + 1,
            least_noise=jnp.minimum(privacy.least_noise, _below(noise)),
            charged=charged,
        )

    return charge


def epsilon(privacy: PrivacyState, delta: Number) -> Array:
    """The epsilon that has been spent, with what overflow costs taken out of delta.

    Batches cut off at capacity are those of Poisson sampling but for an event of probability p, on
    either of two neighbouring data sets: what is (epsilon, d)-private without the cut is
    (epsilon, d + (1 + e^epsilon) p)-private with it.

    Args:
      privacy: the state after any number of steps.
      delta: in (0, 1).

    Returns:
      float32 scalar, rounded up; 0 before the first step; inf where delta does not cover
      overflow, or a step added no noise.

    Guarantees:
      Everything released is (epsilon, delta)-differentially private for neighbours as the rule has
      them (one unit added or removed, or one replaced), as far as the noise is Gaussian: it is
      drawn in floating point, and cut off where `add_noise` says (N numbers drawn in all add
      ``(1 + e^epsilon) N / 2^63`` to delta).

    Raises:
      ValueError: if delta is not a scalar, or a concrete one is outside (0, 1); on a batch of
        states.

    Example:
      >>> from spax.dp import Poisson
      >>> float(epsilon(init_privacy(Poisson(0.1, 30, 100)), 1e-5))
      0.0
    """
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    if privacy.overflow.ndim != 0:
        raise ValueError(
            f"epsilon takes one state; vmap over many (got {privacy.overflow.shape} of them)"
        )
    if is_concrete((delta, privacy)) and not float(privacy.overflow):
        return rdp.epsilon(privacy.spent, delta)
    # Some share of delta is set aside for overflow; the smallest epsilon for which it suffices.
    # What float32 rounds is far below the millionths taken off.
    whole = jnp.asarray(delta, jnp.float32)
    shares = jnp.asarray(_SHARES, jnp.float32)
    left = whole * (1 - shares - 1e-6)
    enough = left > 1e-37  # below, float32 has no such delta
    left = jnp.clip(left, 1e-37, 1 - 1e-6)
    spent = jax.vmap(lambda delta: rdp.epsilon(privacy.spent, delta))(left)
    overflow = jnp.where(privacy.overflow >= 0, privacy.overflow, jnp.inf)
    suffices = (1 + jnp.exp(spent)) * overflow <= whole * shares * (1 - 1e-6)
    return jnp.min(jnp.where(suffices & enough, spent, jnp.inf))


def add_noise(key: Any, tree: PyTree, stddev: Number) -> PyTree:
    """Adds independent Gaussian noise to every entry of a pytree.

    With either kind of key it is drawn as `spax.crypto.normal` draws, out to 9.16 standard
    deviations: N entries are within ``N / 2^63`` in total variation of untruncated ones, which the
    account neglects. (``jax.random.normal`` ends at 5.42, whose tails weigh more than a small
    delta.)

    Args:
      key: a `jax.random` key, or a `spax.crypto.ChaChaKey`: its type decides which generator;
        consumed.
      tree: arrays.
      stddev: absolute standard deviation, >= 0.

    Returns:
      float32 arrays of the same shapes.

    Raises:
      ValueError: if there is no key, or a concrete stddev < 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> add_noise(jax.random.key(0), {"w": jnp.zeros(3)}, 1.0)["w"].shape
      (3,)
    """
    check_key(key, "adding noise")
    check_number("stddev", stddev, low=0, scalar=True)
    leaves, treedef = jax.tree.flatten(tree)
    secure = isinstance(key, crypto.ChaChaKey)
    normal: Callable[..., Array] = crypto.normal if secure else _long_tailed_normal
    # One draw for all: many small ones cost more than one large one, and leave cores idle.
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    noise = normal(key, (sum(sizes),), jnp.float32)
    scale = jnp.asarray(stddev, jnp.float32)
    ends = np.cumsum(sizes)
    noised = [
        leaf.astype(jnp.float32) + scale * noise[end - size : end].reshape(leaf.shape)
        for leaf, size, end in zip(leaves, sizes, ends, strict=True)
    ]
    return jax.tree.unflatten(treedef, noised)


def _long_tailed_normal(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """`spax.crypto.normal`, from the bits of a `jax.random` key."""
    words = jax.random.bits(key, (2, math.prod(shape)), jnp.uint32)
    return normal_from_words(words, np.dtype(dtype)).reshape(shape)


def private_grad(
    loss_fn: Callable[..., tuple[Array, PyTree]],
    *,
    l2_clip_norm: Number,
    noise_multiplier: Number,
    sampling: Sampling,
    chunk_size: int | None = None,
    rule: Rule = flat,
    axis_name: str | None = None,
) -> Callable[..., tuple[PrivateGrad, PrivacyState]]:
    """The gradient of DP-SGD, with its receipt.

    ``(sum_i clip(g_i, C) + N(0, (sigma C)^2 I)) / (rate num_records)`` over a batch; the divisor is
    the expected size, never the drawn one. Any optax chain may follow: that is
    post-processing. The privacy state must be carried on even where the update is thrown away
    (``optax.apply_if_finite``, ``optax.MultiSteps``): the gradient was released all the same.

    Args:
      loss_fn: ``(params, example, key) -> (scalar, aux)`` of one example.
      l2_clip_norm: the bound C, > 0.
      noise_multiplier: sigma, >= 0, noise over C under any rule; may be traced, at the cost of
        accounting anew in every step (half a second). 0: no noise, and epsilon is inf.
      sampling: the rule that batches are drawn by. `Poisson` and `Users` are amplified by sampling;
        `FixedSize` is too, where there is much noise; an epoch of `Shuffled` or `BallsInBins` is
        charged as one release of all records (draw with ``step=privacy.steps``).
      chunk_size: examples differentiated at a time; None: all. Memory against time only.
      rule: of clipping, as for `clipped_grad`; the sensitivity is C with any of them.
      axis_name: of a ``shard_map`` or ``vmap`` axis over which each batch is spread (each shard
        has its share of the capacity and the same key): sums are added over it, and the noise is
        added once.

    Returns:
      ``step(params, batch, privacy, *, key) -> (PrivateGrad, PrivacyState)``. The key is split
      into one for the noise and one for ``loss_fn``; a `spax.crypto.ChaChaKey` makes the noise
      cryptographic.

    Guarantees:
      With batches from `spax.dp.sample` under the same rule and keys used once, the gradients of
      all steps are (`epsilon(privacy, delta)`, delta)-differentially private.

    Raises:
      TypeError: if sampling is none of the rules, or as `clipped_grad`.
      ValueError: if a concrete number is out of range; at the call: if the state was made for
        another rule, the batch has another capacity, or there is no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from spax.dp import Poisson, sample
      >>> sampling = Poisson(rate=0.5, capacity=16, num_records=16)
      >>> loss_fn = lambda w, x, key: ((w - x) ** 2, None)
      >>> step = private_grad(loss_fn, l2_clip_norm=1.0, noise_multiplier=1.0, sampling=sampling)
      >>> batch = sample(jax.random.key(0), jnp.ones(16), sampling)
      >>> privacy = init_privacy(sampling)
      >>> out, privacy = step(jnp.float32(0), batch, privacy, key=jax.random.key(1))
      >>> out.grads.shape, int(privacy.steps), bool(epsilon(privacy, 1e-5) > 0)
      ((), 1, True)

    References:
      M. Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133,
      Algorithm 1.
    """
    return private_step(
        loss_fn,
        l2_clip_norm=l2_clip_norm,
        noise_multiplier=noise_multiplier,
        accounted=noise_multiplier,
        sampling=sampling,
        chunk_size=chunk_size,
        rule=rule,
        axis_name=axis_name,
    )


def private_step(
    loss_fn: Callable[..., tuple[Array, PyTree]],
    *,
    l2_clip_norm: Number,
    noise_multiplier: Number,
    accounted: Number,
    sampling: Sampling,
    chunk_size: int | None = None,
    rule: Rule = flat,
    axis_name: str | None = None,
) -> Callable[..., tuple[PrivateGrad, PrivacyState]]:
    """`private_grad`, accounted as if it had another noise multiplier.

    For releases in company: ``accounted`` is that of all that is released of a batch together.
    """
    _check_sampling(sampling)
    check_number("noise_multiplier", noise_multiplier, low=0, scalar=True)
    # The sum over shards is rounded once more than that of each.
    margin = 1.0 if axis_name is None else rounding_margin(sampling.capacity)
    clipped = clipped_grad(
        loss_fn, l2_clip_norm=l2_clip_norm * margin, chunk_size=chunk_size, rule=rule
    )

    charge = charging(sampling, accounted)

    def step(
        params: PyTree, batch: Batch, privacy: PrivacyState, *, key: Any
    ) -> tuple[PrivateGrad, PrivacyState]:
        check_key(key, "a private step")
        if privacy.sampling != sampling:
            raise ValueError(
                f"the privacy state is for another sampling than this step's {sampling} "
                f"(got {privacy.sampling})"
            )
        shards = 1 if axis_name is None else lax.axis_size(axis_name)
        if batch.mask.shape[0] * shards != sampling.capacity:
            raise ValueError(
                f"a batch must have capacity={sampling.capacity} rows in all "
                f"(got {batch.mask.shape[0] * shards})"
            )
        key_noise, key_loss = _split(key)
        if axis_name is not None:
            key_loss = jax.random.fold_in(key_loss, lax.axis_index(axis_name))
        sums, info = clipped(params, batch, key=key_loss)
        if axis_name is not None:
            sums, info = _exact_psum(sums, axis_name), _gathered(info, axis_name)
        stddev = jnp.asarray(noise_multiplier, jnp.float32) * jnp.asarray(l2_clip_norm, jnp.float32)
        noised = add_noise(key_noise, sums, stddev)
        grads = jax.tree.map(
            lambda g, p: (g / sampling.expected_size).astype(jnp.asarray(p).dtype), noised, params
        )
        return PrivateGrad(grads, info), charge(privacy)

    return step


def _check_sampling(sampling: Any) -> None:
    if not isinstance(sampling, Sampling):
        raise TypeError(
            "sampling must be one of spax.dp's rules, such as Poisson "
            f"(got {type(sampling).__name__})"
        )


def _below(value: Array) -> Array:
    """A smaller float32 number: what rounding to nearest may have raised is undone."""
    return jnp.nextafter(value, jnp.float32(-np.inf))


def _above(value: float) -> np.float32:
    """A number >= 0 in float32, rounded up and, unless it is 0, a normal one."""
    if value == 0:
        return np.float32(0)
    return np.nextafter(np.float32(max(value, 1e-37)), np.float32(np.inf))


def _split(key: Any) -> tuple[Any, Key]:
    """A key for the noise, of the kind given, and a `jax.random` key for the loss."""
    if isinstance(key, crypto.ChaChaKey):
        key_noise, key_loss = crypto.split(key)
        return key_noise, jax.random.wrap_key_data(crypto.bits(key_loss, (2,), jnp.uint32))
    key_noise, key_loss = jax.random.split(key)
    return key_noise, key_loss


def _exact_psum(sums: PyTree, axis_name: str) -> PyTree:
    """Adds float32 sums over an axis in 64 bits, so that the only rounding is the last."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), sums)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), lax.psum(wide, axis_name))


def _gathered(info: ClipInfo, axis_name: str) -> ClipInfo:
    """The diagnostics of all shards together: means weighted by their counts."""
    count = info.size - info.nonfinite
    total = jnp.maximum(lax.psum(count, axis_name), 1.0)
    return ClipInfo(
        lax.psum(info.loss * count, axis_name) / total,
        lax.psum(info.clipped * count, axis_name) / total,
        lax.psum(info.size, axis_name),
        lax.psum(info.nonfinite, axis_name),
    )


def noised_sums(
    *, l2_clip_norm: Number, noise_multiplier: Number, expected_batch_size: Number
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation from clipped sums to private means: noise, then the division.

    For those who clip by themselves. It keeps no account, on purpose: inside an optax chain a
    counter misses releases (under ``optax.apply_if_finite`` and ``optax.MultiSteps`` some
    updates never reach it, though noise was drawn and the sum was looked at). Account beside
    the optimizer, by `spax.dp.accounting.rdp.update`, once for every batch that was looked at.

    Args:
      l2_clip_norm: the bound C that the summands were clipped to, > 0.
      noise_multiplier: sigma, >= 0.
      expected_batch_size: what sums are divided by, > 0: rate times records, not the drawn size.

    Returns:
      A transformation whose ``update(sums, state, params=None, *, key)`` needs a key, used once.

    Raises:
      ValueError: if a concrete number is out of range; at the update, if there is no key.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(
      ...     noised_sums(l2_clip_norm=1.0, noise_multiplier=1.0, expected_batch_size=100),
      ...     optax.sgd(0.1))
      >>> params = jnp.zeros(3)
      >>> updates, _ = tx.update(jnp.ones(3), tx.init(params), params, key=jax.random.key(0))
      >>> updates.shape
      (3,)

    References:
      M. Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133,
      Algorithm 1.
    """
    check_number("l2_clip_norm", l2_clip_norm, low=0, low_open=True, scalar=True)
    check_number("noise_multiplier", noise_multiplier, low=0, scalar=True)
    check_number("expected_batch_size", expected_batch_size, low=0, low_open=True, scalar=True)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, key: Any = None, **_: Any
    ) -> tuple[PyTree, Any]:
        stddev = jnp.asarray(noise_multiplier, jnp.float32) * jnp.asarray(l2_clip_norm, jnp.float32)
        noised = add_noise(check_key(key, "noised_sums"), updates, stddev)
        size = jnp.asarray(expected_batch_size, jnp.float32)
        return jax.tree.map(lambda n, u: (n / size).astype(u.dtype), noised, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
