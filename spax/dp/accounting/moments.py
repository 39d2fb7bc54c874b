"""The moments accountant of 2016 under its own name; `rdp` has the tighter bound from its state."""

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_number
from spax.dp.accounting import rdp
from spax.dp.accounting.pairs import joined, rounded_up
from spax.typing import Array, Number

__all__ = ["delta", "epsilon"]

_LAMBDA = np.arange(1, 33)
# Divergences grow with the order: the next one that is kept stands for lambda + 1.
_PLACES = np.searchsorted(rdp.ORDERS, _LAMBDA + 1)


def _moments(state: rdp.RdpState) -> Array:
    """``alpha(lambda) = lambda D_{lambda + 1}``; what is damaged is infinite."""
    divergence = joined(state.total, state.carry)
    if divergence.shape != rdp.ORDERS.shape:
        raise ValueError(f"one state at a time; vmap over many (got shape {divergence.shape})")
    divergence = divergence[_PLACES]
    return jnp.asarray(_LAMBDA) * jnp.where(divergence >= 0, divergence, jnp.inf)


def epsilon(state: rdp.RdpState, delta: Number) -> Array:
    """Epsilon as the paper computes it: from at most 32 moments, by Markov's inequality.

    ``min (alpha(lambda) - log delta) / lambda`` over lambda = 1, ..., 32. It is there to reproduce
    papers; `rdp.epsilon` of the same state is never larger.

    Args:
      state: what was spent, an `rdp.RdpState`.
      delta: in (0, 1).

    Returns:
      float32 scalar, rounded up.

    Guarantees:
      As of `rdp.epsilon`.

    Raises:
      ValueError: if a concrete delta is outside (0, 1).

    Example:
      >>> _, state = rdp.update(rdp.init(), noise_multiplier=4.0, sampling_rate=0.01, steps=10_000)
      >>> round(float(epsilon(state, 1e-5)), 2)  # the paper's 1.26
      1.26

    References:
      M. Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133, Theorem 2
      and Section 3.2 (lambda up to 32).
    """
    check_number("delta", delta, low=0, high=1, low_open=True, high_open=True, scalar=True)
    with jax.enable_x64(True):
        log_delta = jnp.log(jnp.asarray(delta, jnp.float64))
        bound = jnp.min((_moments(state) - log_delta) / _LAMBDA)
        return rounded_up(jnp.where(jnp.isnan(bound), jnp.inf, jnp.maximum(bound, 0.0)))


def delta(state: rdp.RdpState, epsilon: Number) -> Array:
    """Delta as the paper computes it: ``min exp(alpha(lambda) - lambda epsilon)``.

    Args:
      state: what was spent, an `rdp.RdpState`.
      epsilon: >= 0.

    Returns:
      float32 scalar in [0, 1], rounded up.

    Guarantees:
      As of `rdp.delta`.

    Raises:
      ValueError: if a concrete epsilon < 0.

    Example:
      >>> _, state = rdp.update(rdp.init(), noise_multiplier=10.0, steps=100)
      >>> bool(rdp.delta(state, 5.0) < delta(state, 5.0) < 1e-4)
      True

    References:
      M. Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133, Theorem 2.
    """
    check_number("epsilon", epsilon, low=0, scalar=True)
    with jax.enable_x64(True):
        budget = jnp.asarray(epsilon, jnp.float64)
        exponent = jnp.min(_moments(state) - _LAMBDA * budget)
        bound = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(exponent), 0.0, exponent), 0.0))
        return jnp.minimum(rounded_up(bound), jnp.float32(1))
