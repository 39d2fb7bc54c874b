"""Adam, for attacks that optimise something other than a batch of points by plain steps."""

from typing import NamedTuple

import jax.numpy as jnp

from spax.typing import Array

__all__ = ["Moments", "adam", "no_moments"]

_BETA1, _BETA2, _STABILITY = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """The two running averages of Adam, and t, how many gradients they have seen."""

    m: Array
    v: Array
    t: Array


def no_moments(x: Array) -> Moments:
    """The averages before the first gradient, shaped as ``x``."""
    return Moments(jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros((), jnp.int32))


def adam(moments: Moments, grad: Array) -> tuple[Array, Moments]:
    """One step of Adam of unit length along a gradient; what is not finite in it counts as 0.

    References:
      D. Kingma, J. Ba, Adam: a method for stochastic optimization, 2014, arXiv:1412.6980,
      Algorithm 1.
    """
    dtype = moments.m.dtype
    g = jnp.where(jnp.isfinite(grad), grad, 0).astype(dtype)
    m = _BETA1 * moments.m + (1 - _BETA1) * g
    v = _BETA2 * moments.v + (1 - _BETA2) * g * g
    t = moments.t + 1
    power = t.astype(dtype)
    m_hat = m / (1 - jnp.asarray(_BETA1, dtype) ** power)
    v_hat = v / (1 - jnp.asarray(_BETA2, dtype) ** power)
    return m_hat / (jnp.sqrt(v_hat) + _STABILITY), Moments(m, v, t)
