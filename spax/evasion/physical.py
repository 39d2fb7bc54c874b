"""What happens to an image that is printed and photographed, and which attacks survive it."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_batch, check_bounds, check_key, check_number, is_concrete
from spax.evasion.imaging import (
    affine_source,
    bilinear,
    check_images,
    gaussian_blur,
    perspective_source,
)
from spax.losses import hits, misclassified
from spax.norms import box, example_keys
from spax.typing import (
    Array,
    Bounds,
    Key,
    Model,
    Number,
    Stochastic,
    call,
    wide,
)

__all__ = [
    "destruction_rate",
    "photo_transform",
    "random_affine_photo",
]

Range: TypeAlias = Number | tuple[Number, Number]
Transform: TypeAlias = Callable[[Array, Key], Array]


def _check_range(name: str, value: Range, low: float | None, low_open: bool = False) -> None:
    ends = value if isinstance(value, tuple | list) else (value, value)
    if len(ends) != 2:
        raise ValueError(f"{name} must be a number or a pair (low, high) (got {name}={value!r})")
    for end in ends:
        check_number(name, end, low=low, low_open=low_open)
    if is_concrete(ends) and np.any(np.asarray(ends[0]) > np.asarray(ends[1])):
        raise ValueError(f"{name} must have low <= high (got {name}={value!r})")


def _draw(key: Key, value: Range) -> Array:
    if isinstance(value, tuple | list):
        low, high = (jnp.asarray(end, jnp.float32) for end in value)
        return jax.random.uniform(key, (), jnp.float32, low, high)
    return jnp.asarray(value, jnp.float32)


def _skips(value: Range, neutral: float) -> bool:
    """Whether a step is switched off, statically: then it costs nothing and rounds nothing."""
    return isinstance(value, int | float) and value == neutral


def photo_transform(
    x: Array,
    key: Key,
    *,
    brightness: Range = 0.0,
    contrast: Range = 1.0,
    blur: Range = 0.0,
    noise: Range = 0.0,
    warp: Range = 0.0,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """What print and camera do to an image: perspective, blur, contrast, brightness, noise.

    In this order; each strength is a number, or a pair (low, high) from which every image draws
    its own, uniformly. With the defaults nothing happens. Differentiable in x, so that attacks can
    average over it: ``lift(Stochastic(partial(photo_transform, ...)), logits_fn)``.

    Args:
      x: images ``[B, H, W, C]``, floating.
      key: a random key; image i draws from ``fold_in(key, i)``, whatever its neighbours.
      brightness: what is added, in the units of x.
      contrast: factor of the distance to the middle of ``bounds``, >= 0; 1: none.
      blur: standard deviation of a Gaussian filter in pixels, >= 0; the edge is repeated.
      noise: standard deviation of Gaussian noise, >= 0, in the units of x.
      warp: how far each corner moves, as a share of the sides, >= 0 and below 0.5: uniform up to
        it in both directions. The image is seen through the homography of its four corners.
      bounds: valid range, to which the result is clipped.

    Returns:
      ``[B, H, W, C]``, in the dtype of ``x``.

    Guarantees:
      Within ``bounds``.

    Raises:
      ValueError: if x is not a batch of images, or a concrete strength is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.full((1, 2, 2, 1), 0.5)
      >>> photo_transform(x, jax.random.key(0), brightness=0.25, contrast=2.0)[0, 0, 0].tolist()
      [0.75]

    References:
      A. Kurakin, I. Goodfellow, S. Bengio, Adversarial examples in the physical world, 2016,
      arXiv:1607.02533, Sections 3 and 4 (its artificial image transformations). JPEG encoding,
      one of them, is not part of this function.
    """
    check_batch(x)
    check_images(x)
    check_bounds(bounds)
    _check_range("brightness", brightness, None)
    for name, value in (("contrast", contrast), ("blur", blur), ("noise", noise), ("warp", warp)):
        _check_range(name, value, 0)
    check_number("warp", warp[1] if isinstance(warp, tuple | list) else warp, high=0.5)
    dtype = wide(x)
    shape = (x.shape[1], x.shape[2])
    low, high = box(bounds, x.astype(dtype))

    def one(image: Array, key: Key, low: Array, high: Array) -> Array:
        key_b, key_c, key_f, key_n, key_w, key_noise, key_corners = jax.random.split(key, 7)
        if not _skips(warp, 0):
            reach = _draw(key_w, warp)
            corners = reach * jax.random.uniform(key_corners, (4, 2), jnp.float32, -1, 1)
            image = bilinear(image, *perspective_source(shape, corners))
        if not _skips(blur, 0):
            image = gaussian_blur(image, _draw(key_f, blur))
        if not _skips(contrast, 1):
            middle = (low + high) / 2
            image = middle + _draw(key_c, contrast).astype(dtype) * (image - middle)
        image = image + _draw(key_b, brightness).astype(dtype)
        if not _skips(noise, 0):
            strength = _draw(key_n, noise).astype(dtype)
            image = image + strength * jax.random.normal(key_noise, image.shape, dtype)
        return jnp.clip(image, low, high)

    return jax.vmap(one)(x.astype(dtype), example_keys(key, x), low, high).astype(x.dtype)


def random_affine_photo(
    x: Array,
    key: Key,
    *,
    scale: tuple[Number, Number] = (0.9, 1.4),
    rotation: Number = 22.5,
    brightness: Number = 0.05,
    noise: Number = 0.1,
    fill: Number | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """The distribution of photos of a flat picture: scale, angle, place, light and grain.

    Scale uniform in ``scale``; angle, brightness and noise level uniform up to theirs; the
    translation uniform among those that keep the scaled picture inside the frame (or, when it is
    larger, the frame inside the picture). Differentiable in x.

    Args:
      x: images ``[B, H, W, C]``, floating.
      key: a random key; image i draws from ``fold_in(key, i)``, whatever its neighbours.
      scale: range of the scale, > 0.
      rotation: largest angle in degrees, either way, >= 0.
      brightness: largest shift of all values, either way, >= 0.
      noise: largest standard deviation of the Gaussian noise, >= 0.
      fill: value around the picture; None: its edge, repeated.
      bounds: valid range, to which the result is clipped.

    Returns:
      ``[B, H, W, C]``, in the dtype of ``x``.

    Guarantees:
      Within ``bounds``.

    Raises:
      ValueError: if x is not a batch of images, or a concrete number is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> random_affine_photo(jnp.ones((2, 8, 8, 3)), jax.random.key(0)).shape
      (2, 8, 8, 3)

    References:
      A. Athalye, L. Engstrom, A. Ilyas, K. Kwok, Synthesizing robust adversarial examples, 2017,
      arXiv:1707.07397, Section 3.1 and the supplement's distribution for the 2-D case.
    """
    check_batch(x)
    check_images(x)
    check_bounds(bounds)
    _check_range("scale", scale, 0, low_open=True)
    for name, value in (("rotation", rotation), ("brightness", brightness), ("noise", noise)):
        check_number(name, value, low=0)
    if fill is not None:
        check_number("fill", fill)
    dtype = wide(x)
    height, width = x.shape[1:3]
    low, high = box(bounds, x.astype(dtype))
    sides = jnp.array([height, width], jnp.float32)

    def one(image: Array, key: Key, low: Array, high: Array) -> Array:
        key_s, key_r, key_t, key_b, key_n, key_noise = jax.random.split(key, 6)
        by = _draw(key_s, scale)
        shift = jnp.abs(by - 1) * sides / 2 * jax.random.uniform(key_t, (2,), jnp.float32, -1, 1)
        degrees = _draw(key_r, (-jnp.asarray(rotation), rotation))
        source = affine_source(
            (height, width), (height, width), scale=by, degrees=degrees, shift=(shift[0], shift[1])
        )
        image = bilinear(image, *source, fill)
        image = image + _draw(key_b, (-jnp.asarray(brightness), brightness)).astype(dtype)
        strength = _draw(key_n, (0.0, noise)).astype(dtype)
        image = image + strength * jax.random.normal(key_noise, image.shape, dtype)
        return jnp.clip(image, low, high)

    return jax.vmap(one)(x.astype(dtype), example_keys(key, x), low, high).astype(x.dtype)


def destruction_rate(
    logits_fn: Model,
    x: Array,
    x_adv: Array,
    y: Array,
    *,
    key: Key | None = None,
    transform: Transform,
    target: Array | None = None,
) -> tuple[Array, Array]:
    """The share of adversarial examples that a transformation undoes.

    Counted over the inputs that were classified correctly and whose adversarial example fools:
    ``d = sum C(x, y) (1 - C(x_adv, y)) C(T(x_adv), y) / sum C(x, y) (1 - C(x_adv, y))``, with
    C = 1 when classified as y.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: the clean inputs ``[B, ...]``, floating.
      x_adv: the attacked ones, the same shape; as they are stored: what is printed or sent as 8
        bits should be rounded (`spax.defenses.quantize`) before.
      y: the labels, int ``[B]``.
      key: a random key, for the transformation or a Stochastic model.
      transform: ``(x, key) -> x'``, such as `photo_transform` with its strengths bound.
      target: the wanted labels, int ``[B]``, of a targeted attack: then an example counts while
        it is classified as that, and is destroyed when it no longer is. None: untargeted.

    Returns:
      ``(rate, count)``: the rate in [0, 1], NaN where the count is 0; the number of inputs that
      were correct and fooled.

    Guarantees:
      Exactly 0 for the identity and a model that does not draw.

    Raises:
      ValueError: on wrong shapes or labels; if the model is Stochastic and key is None.

    Example:
      >>> import jax.numpy as jnp
      >>> x, x_adv = jnp.array([[0.6, 0.4], [0.7, 0.3]]), jnp.array([[0.4, 0.5], [0.2, 0.9]])
      >>> less = lambda x, key: x + jnp.array([[0.2, 0.0]])
      >>> rate, count = destruction_rate(lambda x: x, x, x_adv, jnp.array([0, 0]), transform=less)
      >>> float(rate), int(count)
      (0.5, 2)

    References:
      A. Kurakin, I. Goodfellow, S. Bengio, Adversarial examples in the physical world, 2016,
      arXiv:1607.02533, Section 3.1, Eq 1.
    """
    check_batch(x, y)
    if jnp.shape(x_adv) != x.shape:
        raise ValueError(f"x_adv must have the shape of x, {x.shape} (got {jnp.shape(x_adv)})")
    if isinstance(logits_fn, Stochastic):
        check_key(key, "a destruction rate of a Stochastic model")
    keys = [None] * 4 if key is None else list(jax.random.split(key, 4))

    def fooled(z: Array, key: Key | None) -> Array:
        outputs = call(logits_fn, z, key)
        return misclassified(outputs, y) if target is None else hits(outputs, target)

    right = hits(call(logits_fn, x, keys[0]), y)
    counted = right & fooled(x_adv, keys[1])
    destroyed = counted & ~fooled(transform(x_adv, keys[3]), keys[2])
    count = jnp.sum(counted)
    return jnp.sum(destroyed) / count, count
