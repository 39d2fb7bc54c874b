"""Grids of images as PNG inside the page: written by hand, and the same on every run."""

import base64
import struct
import zlib

import numpy as np

from spax.audit.render.text import escaped
from spax.audit.sections import Images

__all__ = ["image_grid", "png"]

_KINDS = {1: 0, 3: 2, 4: 6}  # PNG's colour type by channels: grey, RGB, RGB with alpha
_COARSE = 64  # images of so few pixels are enlarged as squares, not smoothed


def png(pixels: np.ndarray) -> bytes:
    """An image ``[H, W]`` or ``[H, W, C]``, C = 1, 3 or 4, of numbers in [0, 1] as a PNG file.

    Args:
      pixels: the image; what is outside [0, 1] is clipped, and what is no number is black.

    Returns:
      The bytes of the file.

    Raises:
      ValueError: if it has another number of channels or no pixels.

    Example:
      >>> png(np.zeros((2, 2)))[1:4]
      b'PNG'
    """
    values = np.nan_to_num(np.asarray(pixels, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] not in _KINDS or not values.size:
        raise ValueError(f"an image has 1, 3 or 4 channels (got pixels.shape={values.shape})")
    height, width, channels = values.shape
    data = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8).reshape(height, -1)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), data], axis=1)  # filter 0 for each row

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = struct.pack(">IIBBBBB", width, height, 8, _KINDS[channels], 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def image_grid(images: Images) -> str:
    """A grid of images as an HTML table with its labels as text.

    Args:
      images: the grid.

    Returns:
      The table; the page's stylesheet gives it its looks. Of what is no image the label is shown.

    Example:
      >>> grid = Images("t", np.zeros((1, 1, 2, 2, 1)), ("clean",), (("3",),))
      >>> image_grid(grid).count("<img")
      1
    """
    rows = []
    for r, row in enumerate(np.asarray(images.pixels)):
        name = escaped(images.row_labels[r]) if r < len(images.row_labels) else ""
        labels = images.cell_labels[r] if r < len(images.cell_labels) else ()
        cells = []
        for c, pixels in enumerate(row):
            said = escaped(labels[c]) if c < len(labels) else ""
            picture = _picture(pixels, f"{name}: {said}")
            cells.append(f'<td role="cell">{picture}<span>{said}</span></td>')
        rows.append(
            f'<tr role="row"><th scope="row" role="rowheader"><bdi>{name}</bdi></th>'
            f"{''.join(cells)}</tr>\n"
        )
    return (
        '<table class="images" role="table"><tbody role="rowgroup">\n'
        f"{''.join(rows)}</tbody></table>"
    )


def _picture(pixels: np.ndarray, alt: str) -> str:
    try:
        source = base64.b64encode(png(pixels)).decode()
    except ValueError:  # a probe's mistake; the rest of the report is not lost for it
        return '<span class="missing">no image</span>'
    coarse = ' class="coarse"' if max(np.shape(pixels)[:2]) <= _COARSE else ""
    return f'<img{coarse} src="data:image/png;base64,{source}" alt="{alt}">'
