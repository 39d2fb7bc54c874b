"""A clipping norm that follows a quantile of the gradients' lengths, and what that costs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spax import crypto
from spax.checks import check_key, check_number
from spax.dp.sampling import Batch, Poisson
from spax.dp.sgd import PrivacyState, PrivateGrad, add_noise, private_step
from spax.typing import Array, Number, PyTree

__all__ = ["AdaptiveClip", "adaptive_private_grad", "split_noise_multiplier"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptiveClip:
    """The clipping norm, carried from step to step.

    Args:
      l2_clip_norm: float32 scalar: the bound C of the next step.
    """

    l2_clip_norm: Array


def split_noise_multiplier(noise_multiplier: Number, count_stddev: Number) -> Array:
    """The gradients' share of a noise multiplier, where a count is released beside them.

    The gradient with noise multiplier z and a count of sensitivity 1/2 with noise of standard
    deviation s cost as much together as one release with ``(z^-2 + (2 s)^-2)^(-1/2)``.

    Args:
      noise_multiplier: sigma of the pair, > 0.
      count_stddev: s, > sigma / 2: less leaves nothing for the gradients.

    Returns:
      z, float32 scalar, rounded up.

    Raises:
      ValueError: if a concrete number is out of range, or ``2 s <= sigma``.

    Example:
      >>> round(float(split_noise_multiplier(1.1, 256 / 20)), 6)
      1.101017

    References:
      G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, Differentially private learning with
      adaptive clipping, 2021, arXiv:1905.03871, Theorem 1.
    """
    check_number("noise_multiplier", noise_multiplier, low=0, low_open=True, scalar=True)
    check_number("count_stddev", count_stddev, low=0, low_open=True, scalar=True)
    check_number(
        "2 count_stddev / noise_multiplier",
        2 * count_stddev / noise_multiplier,
        low=1,
        low_open=True,
        scalar=True,
    )
    with jax.enable_x64(True):
        sigma, s = (jnp.asarray(v).astype(jnp.float64) for v in (noise_multiplier, count_stddev))
        z = (sigma**-2 - (2 * s) ** -2) ** -0.5
        return (z * (1 + 2.0**-22)).astype(jnp.float32)


def adaptive_private_grad(
    loss_fn: Callable[..., tuple[Array, PyTree]],
    *,
    l2_clip_norm: float,
    noise_multiplier: float,
    sampling: Poisson,
    quantile: float = 0.5,
    learning_rate: float = 0.2,
    count_stddev: float | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
) -> tuple[Callable[[], AdaptiveClip], Callable[..., Any]]:
    """`private_grad` with a clipping norm that follows a quantile of the gradients' lengths.

    ``C <- C exp(-eta (b - gamma))`` with b the share of gradients no longer than C, released with
    noise of its own: ``(sum_i (b_i - 1/2) + N(0, s^2)) / (rate num_records) + 1/2``.

    Args:
      loss_fn: ``(params, example, key) -> (scalar, aux)`` of one example.
      l2_clip_norm: the first bound C, > 0.
      noise_multiplier: sigma of gradient and count together, > 0: what is accounted. The gradient
        gets `split_noise_multiplier` of it, slightly more.
      sampling: the rule that batches are drawn by.
      quantile: gamma in [0, 1].
      learning_rate: eta > 0.
      count_stddev: s > sigma / 2; None: a twentieth of the expected batch size, or sigma where
        that is more.
      chunk_size: as for `private_grad`.
      axis_name: as for `private_grad`.

    Returns:
      ``init() -> AdaptiveClip`` and ``step(params, batch, clip, privacy, *, key) -> (PrivateGrad,
      AdaptiveClip, PrivacyState)``.

    Guarantees:
      As `private_grad`; the clipping norms are released too, and paid for.

    Raises:
      TypeError: as `private_grad`.
      ValueError: if a number is out of range; at the call: as `private_grad`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from spax.dp import Batch, init_privacy
      >>> sampling = Poisson(rate=0.5, capacity=16, num_records=16)
      >>> init, step = adaptive_private_grad(
      ...     lambda w, x, key: ((w - x) ** 2, None),
      ...     l2_clip_norm=100.0, noise_multiplier=1.0, sampling=sampling)
      >>> batch = Batch(jnp.ones(16), jnp.ones(16, bool))
      >>> out, clip, privacy = step(
      ...     jnp.float32(0), batch, init(), init_privacy(sampling), key=jax.random.key(0))
      >>> bool(clip.l2_clip_norm < 100)
      True

    References:
      G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, Differentially private learning with
      adaptive clipping, 2021, arXiv:1905.03871, Algorithm 1.
    """
    check_number("l2_clip_norm", l2_clip_norm, low=0, low_open=True, scalar=True)
    check_number("quantile", quantile, low=0, high=1, scalar=True)
    check_number("learning_rate", learning_rate, low=0, low_open=True, scalar=True)
    if not isinstance(sampling, Poisson):
        raise TypeError(f"sampling must be a spax.dp.Poisson (got {type(sampling).__name__})")
    if count_stddev is None:
        count_stddev = max(sampling.expected_size / 20, noise_multiplier)
    multiplier = split_noise_multiplier(noise_multiplier, count_stddev)

    def init() -> AdaptiveClip:
        return AdaptiveClip(jnp.asarray(l2_clip_norm, jnp.float32))

    def step(
        params: PyTree, batch: Batch, clip: AdaptiveClip, privacy: PrivacyState, *, key: Any
    ) -> tuple[PrivateGrad, AdaptiveClip, PrivacyState]:
        check_key(key, "a private step")
        secure = isinstance(key, crypto.ChaChaKey)
        key_grad, key_count = crypto.split(key) if secure else jax.random.split(key)
        inner = private_step(
            loss_fn,
            l2_clip_norm=clip.l2_clip_norm,
            noise_multiplier=multiplier,
            accounted=noise_multiplier,
            sampling=sampling,
            chunk_size=chunk_size,
            axis_name=axis_name,
        )
        out, privacy = inner(params, batch, privacy, key=key_grad)
        info = out.diagnostics
        # Shares times counts are whole numbers but for rounding, which must not be released.
        counted = info.size - info.nonfinite
        short = jnp.round((1 - info.clipped) * counted)
        noised = add_noise(key_count, short - counted / 2, count_stddev)
        share = noised / sampling.expected_size + 0.5
        bound = clip.l2_clip_norm * jnp.exp(-learning_rate * (share - quantile))
        # Never where `clipped_grad` returns zeros, or what overflows.
        return out, AdaptiveClip(jnp.clip(bound, 1e-12, 1e12)), privacy

    return init, step
