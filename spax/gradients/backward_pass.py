"""Backward pass differentiable approximation: a stand-in derivative for what has none."""

from collections.abc import Callable
from typing import Any

import jax

from spax.typing import Array, Key, Stochastic, call

__all__ = ["bpda"]


def bpda(h: Callable[..., Array], surrogate: Callable[..., Array] | None = None) -> Any:
    """Gives a preprocessing step the derivative of a surrogate, and leaves its value alone.

    Compose it with a model by `spax.typing.lift`: ``lift(bpda(h), logits_fn)``. It goes together
    with every ``gradient=`` hook, and both modes of differentiation work through it.

    Args:
      h: ``x -> x'``, not differentiable or not usefully so; plain or Stochastic.
      surrogate: a differentiable stand-in of the same output shape; None for the identity. A
        Stochastic one sees the key that ``h`` sees.

    Returns:
      ``h'`` with ``h'(x) == h(x)`` and the derivative of ``surrogate`` at ``x``; Stochastic if
      ``h`` or the surrogate is.

    Raises:
      ValueError: at the call, if the shapes or dtypes of ``h(x)`` and ``surrogate(x)`` differ (an
        ``h`` that changes the shape cannot have the identity as its surrogate).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> step = bpda(jnp.round)
      >>> float(step(0.7)), float(jax.grad(step)(0.7))
      (1.0, 1.0)

    References:
      A. Athalye, N. Carlini, D. Wagner, Obfuscated gradients give a false sense of security, 2018,
      arXiv:1802.00420, Section 4.1.
    """
    soft = (lambda x: x) if surrogate is None else surrogate

    def value(x: Array, key: Key | None) -> Array:
        hard, smooth = call(h, jax.lax.stop_gradient(x), key), call(soft, x, key)
        got, wanted = jax.typeof(smooth), jax.typeof(hard)
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            raise ValueError(
                "bpda needs a surrogate with the output shape and dtype of h "
                f"(got h(x): {wanted}, surrogate(x): {got})"
            )
        # s(x) - s(x) is exactly zero and carries the derivative of s.
        return jax.lax.stop_gradient(hard) + (smooth - jax.lax.stop_gradient(smooth))

    if isinstance(h, Stochastic) or isinstance(surrogate, Stochastic):
        return Stochastic(value)
    return lambda x: value(x, None)
