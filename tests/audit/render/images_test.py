import base64
import re
import struct
import zlib

import numpy as np
import pytest

from spax.audit import Images
from spax.audit.render import image_grid
from spax.audit.render.images import png


def decoded(data):
    """A PNG file without interlacing whose rows are not filtered, as the standard has it."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,), tag = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert check == zlib.crc32(tag + body)
        chunks[tag], at = body, at + 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3, 6: 4}[kind]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (4, 2, 3), (1, 1, 4)])
def test_the_file_holds_the_pixels(shape):
    whole = np.random.default_rng(0).integers(0, 256, shape)
    np.testing.assert_array_equal(decoded(png(whole / 255)).reshape(shape), whole)


def test_what_is_no_share_of_white_is_clipped():
    found = decoded(png(np.array([[-1.0, 2.0, np.nan, np.inf, -np.inf]])))
    assert found.ravel().tolist() == [0, 255, 0, 255, 0]


@pytest.mark.parametrize("shape", [(2, 2, 2), (0, 3), (3,), (2, 2, 2, 1)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"got pixels\.shape"):
        png(np.zeros(shape))


def test_a_grid_shows_each_image_with_its_labels():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3)) / 255
    labels = tuple(tuple(f"{r}{c} & so" for c in range(3)) for r in range(2))
    table = image_grid(Images("t", pixels, ("<clean>", "model"), labels))
    found = re.findall(
        r'<img class="coarse" src="data:image/png;base64,([^"]+)" alt="([^"]+)"', table
    )
    assert len(found) == 6
    for (data, alt), image, label in zip(
        found, pixels.reshape(6, 4, 4, 3), sum(labels, ()), strict=True
    ):
        np.testing.assert_allclose(decoded(base64.b64decode(data)) / 255, image, atol=1e-7)
        assert alt.endswith(label.replace("&", "&amp;"))
    assert "&lt;clean&gt;" in table


def test_large_images_are_not_pixelated():
    grid = Images("t", np.zeros((1, 1, 128, 128, 1)), ("a",), (("b",),))
    assert "coarse" not in image_grid(grid)


def test_a_report_is_not_lost_for_what_is_no_image():
    grid = Images("t", np.zeros((1, 1, 4, 4, 2)), ("a",), ())
    assert "no image" in image_grid(grid)
