"""Deterministic transformations in front of a model."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from spax.checks import check_bounds, check_number
from spax.typing import Array, Bounds, Number, lift, wide

__all__ = ["bit_depth", "quantize"]


def quantize(x: Array, bits: Number, bounds: Bounds = (0.0, 1.0)) -> Array:
    """Rounds inputs to ``2^bits`` equally spaced levels: ``round(u (2^b - 1)) / (2^b - 1)``.

    ``u`` is x mapped from ``bounds`` to [0, 1]. The derivative is zero almost everywhere; give it
    a stand-in with `spax.gradients.bpda`.

    Args:
      x: ``[B, ...]``, floating.
      bits: how many bits, in [1, 24] (float32 tells no more apart), may be traced; whole
        numbers are meant.
      bounds: range that the levels span, ends included; numbers or arrays of trailing shape. What
        lies outside goes to the nearest end.

    Returns:
      Shape and dtype of ``x``. Halfway between two levels, the one of even index is taken.

    Raises:
      ValueError: if concrete bits are outside [1, 24], x is not floating, or bounds are not
        low < high.

    Example:
      >>> import jax.numpy as jnp
      >>> quantize(jnp.array([[0.2, 0.6]]), 1).tolist()
      [[0.0, 1.0]]

    References:
      W. Xu, D. Evans, Y. Qi, Feature squeezing: detecting adversarial examples in deep neural
      networks, 2017, arXiv:1704.01155, Section III-A.
    """
    check_number("bits", bits, low=1, high=24)
    check_bounds(bounds)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point (got x.dtype={x.dtype})")
    dtype = wide(x)  # bfloat16 cannot tell 255 levels apart
    low, high = (jnp.broadcast_to(jnp.asarray(b, dtype), x.shape) for b in bounds)
    steps = jnp.round(jnp.exp2(jnp.asarray(bits, dtype))) - 1
    share = jnp.clip((x.astype(dtype) - low) / (high - low), 0, 1)
    return (low + (high - low) * (jnp.round(share * steps) / steps)).astype(x.dtype)


def bit_depth(
    logits_fn: Callable[..., Any], *, bits: Number, bounds: Bounds = (0.0, 1.0)
) -> Callable[..., Any]:
    """Feature squeezing by bit depth: the model sees its inputs in fewer grey levels.

    Shatters gradients and is no defence by itself: to attack it, put
    ``lift(bpda(partial(quantize, bits=bits)), logits_fn)`` in its place, which has the same values
    and the derivative of the identity.

    Args:
      logits_fn: the model, plain or Stochastic.
      bits: how many bits remain, in [1, 24], may be traced (1 in the paper for MNIST, 5 for
        CIFAR-10).
      bounds: valid range of the inputs.

    Returns:
      A model of the same kind, of the same inputs.

    Raises:
      ValueError: if concrete bits are outside [1, 24], or bounds are not low < high.

    Example:
      >>> import jax.numpy as jnp
      >>> squeezed = bit_depth(lambda x: 10 * x, bits=1)
      >>> squeezed(jnp.array([[0.2, 0.6]])).tolist()
      [[0.0, 10.0]]

    References:
      W. Xu, D. Evans, Y. Qi, Feature squeezing: detecting adversarial examples in deep neural
      networks, 2017, arXiv:1704.01155, Section III-A.
    """
    check_number("bits", bits, low=1, high=24)
    check_bounds(bounds)
    return lift(lambda x: quantize(x, bits, bounds), logits_fn)
