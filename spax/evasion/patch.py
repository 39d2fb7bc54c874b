"""Adversarial patches: a printed sticker that makes everything one class."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_batch, check_bounds, check_count, check_key, check_number, is_concrete
from spax.evasion.adam import Moments, adam, no_moments
from spax.evasion.fgsm import objective
from spax.evasion.imaging import affine_source, bilinear, check_images
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import cross_entropy
from spax.norms import box, example_keys
from spax.typing import (
    Array,
    Gradient,
    Key,
    Model,
    Number,
    PerExampleLoss,
    wide,
)

__all__ = ["Patch", "PatchState", "adversarial_patch", "apply_patch"]


class PatchState(NamedTuple):
    """The patch so far, Adam's averages, and how many minibatches they have seen."""

    patch: Array
    moments: Moments
    steps: Array
    hit: Array  # the share of the last minibatch that the patch before it drove to its targets


class Patch(NamedTuple):
    """``init(key) -> state`` and ``update(state, x, y, key) -> (patch, state)``."""

    init: Callable[[Key], PatchState]
    update: Callable[[PatchState, Array, Array, Key], tuple[Array, PatchState]]


def _disc(height: int, width: int) -> Array:
    """The largest ellipse within a patch, its rim softened over one pixel."""
    rows = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2) / (height / 2)
    columns = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2) / (width / 2)
    radius = jnp.sqrt(rows[:, None] ** 2 + columns[None, :] ** 2)
    return jnp.clip((1 - radius) * min(height, width) / 2 + 0.5, 0, 1)


def _check_placement(scale: Any, rotation: Any) -> None:
    if not isinstance(scale, tuple | list) or len(scale) != 2:
        raise ValueError(f"scale must be a pair (low, high) (got scale={scale!r})")
    for bound in scale:
        check_number("scale", bound, low=0, high=1, low_open=True)
    if is_concrete(scale) and np.any(np.asarray(scale[0]) > np.asarray(scale[1])):
        raise ValueError(f"scale must have low <= high (got scale={scale!r})")
    check_number("rotation", rotation, low=0)


def _paste(
    x: Array, patch: Array, mask: Array | None, key: Key, scale: Any, rotation: Number
) -> Array:
    height, width, _ = x.shape[1:]
    dtype = wide(x)
    form = _disc(*patch.shape[:2]) if mask is None else mask
    sticker = jnp.concatenate([patch.astype(dtype), form.astype(dtype)[..., None]], axis=-1)
    low, high = (jnp.asarray(s, jnp.float32) for s in scale)
    widest = jnp.asarray(rotation, jnp.float32)

    def one(image: Array, key: Key) -> Array:
        key_scale, key_angle, key_place = jax.random.split(key, 3)
        share = jax.random.uniform(key_scale, (), jnp.float32, low, high)
        degrees = jax.random.uniform(key_angle, (), jnp.float32, -widest, widest)
        side = share * min(height, width)
        room = (jnp.array([height, width], jnp.float32) - side) / 2
        place = room * jax.random.uniform(key_place, (2,), jnp.float32, -1, 1)
        rows, columns = affine_source(
            (height, width),
            (patch.shape[0], patch.shape[1]),
            scale=side / max(patch.shape[0], patch.shape[1]),
            degrees=degrees,
            shift=(place[0], place[1]),
        )
        # What lies beyond the patch is transparent; its colour there is that of its edge.
        colour = bilinear(sticker[..., :-1], rows, columns)
        cover = bilinear(sticker[..., -1:], rows, columns, fill=0.0)
        return (image.astype(dtype) * (1 - cover) + colour * cover).astype(image.dtype)

    return jax.vmap(one)(x, example_keys(key, x))


def _check_patch(x: Array, patch: Array, mask: Array | None) -> None:
    check_images(x)
    if jnp.ndim(patch) != 3 or patch.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"patch must be one image [h, w, {x.shape[-1]}] (got patch.shape={jnp.shape(patch)})"
        )
    if mask is not None:
        if jnp.shape(mask) != patch.shape[:2]:
            raise ValueError(
                f"mask must have shape {patch.shape[:2]}, the patch's (got {jnp.shape(mask)})"
            )
        check_number("mask", mask, low=0, high=1)


def apply_patch(
    x: Array,
    patch: Array,
    mask: Array | None = None,
    *,
    key: Key,
    scale: tuple[Number, Number] = (0.2, 0.5),
    rotation: Number = 22.5,
) -> Array:
    """Pastes a patch on every image at a random place, size and angle.

    ``A(patch, x, l, t) = x (1 - m) + patch m``, where patch and mask m are scaled, rotated and
    shifted by bilinear interpolation. Differentiable in the patch and in x.

    Args:
      x: images ``[B, H, W, C]``, floating.
      patch: ``[h, w, C]``.
      mask: its opacity, ``[h, w]`` in [0, 1]; None: the largest disc within it.
      key: a random key; image i draws from ``fold_in(key, i)``, whatever its neighbours.
      scale: range of the longer side of the patch, as a share of the shorter side of the image,
        in (0, 1]; uniform. A disc of scale s covers ``pi s^2 / 4`` of a square image: a tenth at
        0.357.
      rotation: largest angle in degrees, either way, >= 0; uniform.

    Returns:
      ``[B, H, W, C]``, in the dtype of ``x``.

    Guarantees:
      The patch's square, before rotation, lies within the image. A convex combination of x and
      patch: within bounds if both are.

    Raises:
      ValueError: on wrong shapes, or a concrete number out of its range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = apply_patch(jnp.zeros((2, 16, 16, 1)), jnp.ones((8, 8, 1)), key=jax.random.key(0))
      >>> x.shape, float(x.max())
      ((2, 16, 16, 1), 1.0)

    References:
      T. Brown et al., Adversarial patch, 2017, arXiv:1712.09665, Section 2.
    """
    check_batch(x)
    _check_patch(x, patch, mask)
    _check_placement(scale, rotation)
    check_key(key, "apply_patch")
    return _paste(x, patch, mask, key, scale, rotation)


def adversarial_patch(
    logits_fn: Model,
    *,
    step_size: Number = 0.05,
    scale: tuple[Number, Number] = (0.2, 0.5),
    rotation: Number = 22.5,
    mask: Array | None = None,
    patch_shape: tuple[int, int, int],
    bounds: tuple[float, float] = (0.0, 1.0),
    loss: PerExampleLoss = cross_entropy,
    gradient: Gradient = exact,
) -> Patch:
    """Adversarial patch: one sticker that drives any image it is pasted on towards a class.

    Each update pastes the patch at fresh random places, sizes and angles (`apply_patch`), one a
    image, and takes one step of Adam that lowers the loss of the wanted labels. Targeted: pass
    images of *other* classes than the wanted one, or their own evidence is counted as the patch's;
    and score it on placements (keys) and images that it was not fitted on.

    Args:
      logits_fn: the model, ``[B, H, W, C] -> [B, K]``, plain or Stochastic; an
        `spax.evasion.ensemble` for a patch that transfers.
      step_size: Adam's, > 0, in the units of ``x``.
      scale: range of the patch's longer side as a share of the image's shorter side, in (0, 1].
      rotation: largest angle in degrees, >= 0.
      mask: the patch's opacity, ``[h, w]`` in [0, 1]; None: a disc.
      patch_shape: ``(h, w, C)``, static.
      bounds: valid range of patch and images, two numbers.
      loss: ``(outputs, y) -> [B]``, lowered.
      gradient: how the gradient with respect to the patched images is taken.

    Returns:
      ``Patch(init, update)``. ``init(key)`` is noise, uniform within ``bounds``, float32.
      ``update(state, x, y, key)`` takes a minibatch ``[B, H, W, C]`` and its wanted labels, int
      ``[B]``; it returns the patch and the state, whose ``hit`` is the share of the minibatch that
      the patch before it drove to them.

    Guarantees:
      The patch lies within ``bounds``.

    Raises:
      ValueError: on a wrong shape or a number out of its range; at an update, if concrete x is out
        of bounds or a label outside the classes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = adversarial_patch(lambda x: x.mean((1, 2)), patch_shape=(4, 4, 2))
      >>> state = attack.init(jax.random.key(0))
      >>> x, y = jnp.full((2, 8, 8, 2), 0.5), jnp.array([1, 1])
      >>> patch, state = jax.jit(attack.update)(state, x, y, jax.random.key(1))
      >>> patch.shape, int(state.steps)
      ((4, 4, 2), 1)

    References:
      T. Brown, D. Mané, A. Roy, M. Abadi, J. Gilmer, Adversarial patch, 2017, arXiv:1712.09665,
      Section 2 (the objective; scale and angle uniform as said above).
    """
    check_number("step_size", step_size, low=0, low_open=True)
    _check_placement(scale, rotation)
    check_bounds(bounds)
    if len(patch_shape) != 3:
        raise ValueError(f"patch_shape must be (h, w, C) (got patch_shape={patch_shape!r})")
    for size in patch_shape:
        check_count("patch_shape", size)

    def init(key: Key) -> PatchState:
        low, high = bounds
        patch = jax.random.uniform(key, patch_shape, jnp.float32, low, high)
        zero = jnp.zeros((), jnp.float32)
        return PatchState(patch, no_moments(patch), jnp.zeros((), jnp.int32), zero)

    def update(state: PatchState, x: Array, y: Array, key: Key) -> tuple[Array, PatchState]:
        check_batch(x, y, bounds)
        _check_patch(x, state.patch, mask)
        key_place, key_grad = jax.random.split(check_key(key, "a patch's placement"))
        goal = objective(logits_fn, y, loss=loss, criterion=None, targeted=True)

        def look(patch: Array) -> tuple[Array, Array]:
            z, pull = jax.vjp(lambda p: _paste(x, p, mask, key_place, scale, rotation), patch)
            _, grad, hit = gradient(goal, z, key_grad)
            return pull(jnp.where(jnp.isfinite(grad), grad, 0))[0], hit

        grad, hit = canonical_convolutions(look)(state.patch)
        direction, moments = adam(state.moments, grad)
        low, high = box(bounds, state.patch)
        moved = state.patch + jnp.asarray(step_size, jnp.float32) * direction
        patch = jnp.clip(moved, low, high)
        rate = jnp.mean(hit.astype(jnp.float32)) if x.shape[0] else state.hit
        return patch, PatchState(patch, moments, state.steps + 1, rate)

    return Patch(init, update)
