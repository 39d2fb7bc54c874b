"""Random transformations in front of a model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spax.checks import check_choice, check_count
from spax.norms import example_keys
from spax.typing import Array, Key, Stochastic, lift, wide

__all__ = ["random_resize_pad", "randomized_resize"]

_METHODS = ("nearest", "linear")


def random_resize_pad(
    x: Array, key: Key, *, low: int, high: int, out: int, method: str = "nearest"
) -> Array:
    """Resizes each image to a random size and pads it with zeros at a random offset.

    The side s is uniform on {low, ..., high}, the offsets uniform on {0, ..., out - s}. Shapes
    are static: each output pixel looks up where it comes from.

    Args:
      x: images ``[B, H, W, C]``. An image that is not square becomes so.
      key: a random key; example i draws from ``fold_in(key, i)``, whatever its neighbours.
      low: smallest side, static, >= 1.
      high: largest side, static, >= low.
      out: side of the result, static, >= high.
      method: ``"nearest"`` (the authors' code) or ``"linear"``, with pixel centres at halves.

    Returns:
      ``[B, out, out, C]`` in the dtype of ``x``; differentiable in x.

    Raises:
      TypeError: if a size is not an int.
      ValueError: on another rank, or unless 1 <= low <= high <= out.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> random_resize_pad(x, jax.random.key(0), low=8, high=10, out=12).shape
      (2, 12, 12, 1)

    References:
      C. Xie et al., Mitigating adversarial effects through randomization, 2017, arXiv:1711.01991,
      Section 3.2.
    """
    _check_sizes(low, high, out, method)
    if x.ndim != 4:
        raise ValueError(f"x must be images [B, H, W, C] (got x.shape={x.shape})")

    def one(image: Array, key: Key) -> Array:
        key_side, key_row, key_column = jax.random.split(key, 3)
        side = jax.random.randint(key_side, (), low, high + 1)
        row = jax.random.randint(key_row, (), 0, out - side + 1)
        column = jax.random.randint(key_column, (), 0, out - side + 1)
        dtype = wide(image)
        rows = _resampling(image.shape[0], out, side, row, method).astype(dtype)
        columns = _resampling(image.shape[1], out, side, column, method).astype(dtype)
        # Resizing is separable: two small matrix products, whose transposes are the derivative.
        resized = jnp.einsum(
            "ih,hwc,jw->ijc", rows, image.astype(dtype), columns, precision="highest"
        )
        return resized.astype(image.dtype)

    return jax.vmap(one)(x, example_keys(key, x))


def randomized_resize(
    logits_fn: Callable[..., Any], *, low: int, high: int, out: int, method: str = "nearest"
) -> Stochastic:
    """Random resizing and padding in front of a model that takes images of side ``out``.

    No defence against an attacker who averages over its draws: ``gradient=eot(n)`` finds what one
    frozen draw hides.

    Args:
      logits_fn: the model, ``[B, out, out, C] -> [B, K]``, plain or Stochastic.
      low: smallest side, static, >= 1.
      high: largest side, static, >= low.
      out: side of the images that the model sees, static, >= high. (The paper, for inputs of side
        299: low 299, high 330, out 331.)
      method: ``"nearest"`` or ``"linear"``.

    Returns:
      A `spax.typing.Stochastic` model of images ``[B, H, W, C]``.

    Raises:
      TypeError: if a size is not an int.
      ValueError: unless 1 <= low <= high <= out; at the call, if x is not ``[B, H, W, C]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = randomized_resize(lambda x: x.mean((1, 2)), low=8, high=10, out=12)
      >>> model(jnp.ones((2, 8, 8, 3)), jax.random.key(0)).shape
      (2, 3)

    References:
      C. Xie et al., Mitigating adversarial effects through randomization, 2017, arXiv:1711.01991.
    """
    _check_sizes(low, high, out, method)

    def preprocess(x: Array, key: Key) -> Array:
        return random_resize_pad(x, key, low=low, high=high, out=out, method=method)

    return lift(Stochastic(preprocess), logits_fn)


def _check_sizes(low: int, high: int, out: int, method: str) -> None:
    check_count("low", low)
    check_count("high", high, minimum=low)
    check_count("out", out, minimum=high)
    check_choice("method", method, _METHODS)


def _resampling(size: int, out: int, side: Array, offset: Array, method: str) -> Array:
    """The matrix ``[out, size]`` that resizes one axis to ``side`` and puts it at ``offset``."""
    place = jnp.arange(out) - offset
    inside = (place >= 0) & (place < side)
    if method == "nearest":
        # floor((place + 1/2) size / side), in integers: exact on every machine
        source = (2 * place + 1) * size // (2 * side)
        weights = (source[:, None] == jnp.arange(size)[None, :]).astype(jnp.float32)
    else:
        centre = (place.astype(jnp.float32) + 0.5) * (size / side.astype(jnp.float32)) - 0.5
        centre = jnp.clip(centre, 0, size - 1)
        distance = jnp.abs(centre[:, None] - jnp.arange(size, dtype=jnp.float32)[None, :])
        weights = jnp.maximum(1 - distance, 0)
    return jnp.where(inside[:, None], weights, 0)
