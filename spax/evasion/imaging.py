"""Geometry and optics of images, differentiable in the image: what patches and photos share.

Images are ``[H, W, C]`` or batches of them; pixel centres lie at whole numbers.
"""

import jax.numpy as jnp

from spax.typing import Array, Number, wide

__all__ = [
    "affine_source",
    "bilinear",
    "blur_variance",
    "check_images",
    "gaussian_blur",
    "perspective_source",
]


def check_images(x: Array) -> None:
    """Raises unless x is a batch of images."""
    if x.ndim != 4:
        raise ValueError(f"x must be images [B, H, W, C] (got x.shape={x.shape})")


def bilinear(image: Array, rows: Array, columns: Array, fill: Number | None = None) -> Array:
    """Values of an image between its pixels; outside it ``fill``, or its edge (None).

    Args:
      image: ``[H, W, C]``.
      rows: where to look, any shape.
      columns: the same shape.
      fill: what surrounds the image, reached linearly over the last half pixel and the next.

    Returns:
      ``[*rows.shape, C]``, in the dtype of ``image``.
    """
    dtype = wide(image)
    height, width, _ = image.shape
    source = image.astype(dtype)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top).astype(dtype)[..., None], (columns - left).astype(dtype)[..., None]
    # Far away is as good as just outside, and fits into an integer.
    i = jnp.clip(top, -2, height + 1).astype(jnp.int32)
    j = jnp.clip(left, -2, width + 1).astype(jnp.int32)

    def at(i: Array, j: Array) -> Array:
        values = source[jnp.clip(i, 0, height - 1), jnp.clip(j, 0, width - 1)]
        if fill is None:
            return values
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        return jnp.where(inside[..., None], values, jnp.asarray(fill, dtype))

    above = at(i, j) * (1 - right) + at(i, j + 1) * right
    below = at(i + 1, j) * (1 - right) + at(i + 1, j + 1) * right
    return (above * (1 - down) + below * down).astype(image.dtype)


def _grid(shape: tuple[int, int]) -> tuple[Array, Array]:
    rows, columns = jnp.meshgrid(
        jnp.arange(shape[0], dtype=jnp.float32),
        jnp.arange(shape[1], dtype=jnp.float32),
        indexing="ij",
    )
    return rows, columns


def affine_source(
    out: tuple[int, int],
    source: tuple[int, int],
    *,
    scale: Array,
    degrees: Array,
    shift: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Where each output pixel of a scaled, rotated and shifted image comes from.

    The image's centre goes to the output's centre plus ``shift`` (rows, columns), in pixels.

    Args:
      out: height and width of the output.
      source: height and width of the image.
      scale: output pixels an image pixel, > 0.
      degrees: rotation, from the row axis to the column axis.
      shift: in output pixels.

    Returns:
      ``(rows, columns)`` of the image, each ``out``: the inverse map, for `bilinear`.
    """
    rows, columns = _grid(out)
    rows = rows - (out[0] - 1) / 2 - shift[0]
    columns = columns - (out[1] - 1) / 2 - shift[1]
    angle = degrees * (jnp.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (
        (cos * rows + sin * columns) / scale + (source[0] - 1) / 2,
        (cos * columns - sin * rows) / scale + (source[1] - 1) / 2,
    )


def perspective_source(shape: tuple[int, int], corners: Array) -> tuple[Array, Array]:
    """Where each pixel comes from when the image is seen from elsewhere.

    Args:
      shape: height and width, of the image and of the output.
      corners: ``[4, 2]``, how far (rows, columns), as shares of the sides, the four corners are
        displaced: top left, top right, bottom right, bottom left. The output's corners look
        there.

    Returns:
      ``(rows, columns)``, each ``shape``: the homography that maps the unit square to the
      displaced corners.

    References:
      P. Heckbert, Fundamentals of texture mapping and image warping, 1989, Section 2.2.3.
    """
    square = jnp.array([[0, 0], [0, 1], [1, 1], [1, 0]], jnp.float32)
    p0, p1, p2, p3 = square + corners
    sigma = p0 - p1 + p2 - p3
    d1, d2 = p1 - p2, p3 - p2
    det = d1[1] * d2[0] - d2[1] * d1[0]
    g = (sigma[1] * d2[0] - d2[1] * sigma[0]) / det
    h = (d1[1] * sigma[0] - sigma[1] * d1[0]) / det
    rows, columns = _grid(shape)
    last = jnp.array([max(shape[0] - 1, 1), max(shape[1] - 1, 1)], jnp.float32)
    v, u = rows / last[0], columns / last[1]
    depth = g * u + h * v + 1

    def seen(axis: int) -> Array:
        a, b = p1[axis] - p0[axis] + g * p1[axis], p3[axis] - p0[axis] + h * p3[axis]
        return last[axis] * (a * u + b * v + p0[axis]) / depth

    return seen(0), seen(1)


def _kernel(size: int, sigma: Number) -> tuple[Array, Array]:
    """Offsets and weights of a Gaussian on whole pixels, wide enough for images of a size."""
    reach = 4 * size  # what lies beyond weighs nothing unless sigma is as wide as the image
    offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    variance = jnp.maximum(jnp.square(jnp.asarray(sigma, jnp.float32)), 1e-12)
    weights = jnp.exp(-jnp.square(offsets) / (2 * variance))
    return offsets, weights / jnp.sum(weights)


def blur_variance(size: int, sigma: Number) -> Array:
    """The variance that `gaussian_blur` really has: below sigma^2 where sigma is under a pixel."""
    offsets, weights = _kernel(size, sigma)
    return jnp.sum(jnp.square(offsets) * weights)


def _blur_matrix(size: int, sigma: Number) -> Array:
    """``[size, size]``: a Gaussian filter with the edge repeated, rows summing to 1."""
    reach = 4 * size
    _, weights = _kernel(size, sigma)
    i = jnp.arange(size)
    if size == 1:
        return jnp.ones((1, 1), jnp.float32)
    # Past an edge lies the edge: it takes all the weight from there on.
    up_to = jnp.cumsum(weights)
    matrix = weights[i[None, :] - i[:, None] + reach]
    matrix = matrix.at[:, 0].set(up_to[reach - i])
    return matrix.at[:, -1].set(up_to[reach - (size - 1 - i)])


def gaussian_blur(x: Array, sigma: Number) -> Array:
    """Gaussian filter of standard deviation ``sigma`` pixels, the edge repeated.

    Exact, by two small matrix products, whatever the width: sigma may be traced, and 0 is the
    identity.

    Args:
      x: images ``[B, H, W, C]`` or one ``[H, W, C]``.
      sigma: a scalar >= 0.

    Returns:
      Shape and dtype of ``x``.
    """
    dtype = wide(x)
    rows, columns = (_blur_matrix(size, sigma).astype(dtype) for size in x.shape[-3:-1])
    out = jnp.einsum("ih,...hwc,jw->...ijc", rows, x.astype(dtype), columns, precision="highest")
    return out.astype(x.dtype)
