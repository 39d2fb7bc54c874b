import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from spax.defenses import quantize
from spax.evasion import bim, destruction_rate, fgsm, photo_transform, random_affine_photo
from spax.evasion.imaging import affine_source, bilinear, gaussian_blur, perspective_source
from spax.typing import Stochastic
from tests.evasion import ridge

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.slow]

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(size=(7, 9, 2)).astype(np.float32)
BATCH = jnp.asarray(RNG.uniform(size=(4, 8, 6, 3)), jnp.float32)


# ---------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("sigma", [0.0, 0.7, 2.0])
def test_blur_is_scipys(sigma):
    wanted = scipy.ndimage.gaussian_filter(IMAGE, (sigma, sigma, 0), mode="nearest", truncate=20)
    np.testing.assert_allclose(gaussian_blur(jnp.asarray(IMAGE), sigma), wanted, atol=1e-6)


@pytest.mark.parametrize(("fill", "mode"), [(None, "nearest"), (0.3, "grid-constant")])
def test_affine_warps_are_scipys(fill, mode):
    scale, angle, shift = 1.3, np.deg2rad(25.0), np.array([0.5, -1.0])
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = rotation / scale
    centre = (np.array(IMAGE.shape[:2]) - 1) / 2
    offset = centre - matrix @ (centre + shift)
    wanted = np.stack(
        [
            scipy.ndimage.affine_transform(
                IMAGE[..., c], matrix, offset, order=1, mode=mode, cval=0.3
            )
            for c in range(2)
        ],
        -1,
    )
    source = affine_source((7, 9), (7, 9), scale=scale, degrees=25.0, shift=(0.5, -1.0))
    np.testing.assert_allclose(bilinear(jnp.asarray(IMAGE), *source, fill), wanted, atol=1e-5)


def test_a_perspective_maps_corners_to_corners_and_lines_to_lines():
    corners = jnp.asarray(RNG.uniform(-0.2, 0.2, size=(4, 2)), jnp.float32)
    rows, columns = perspective_source((7, 9), corners)
    square = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    got = np.array([[rows[i, j], columns[i, j]] for i, j in square * [-1, -1]])
    np.testing.assert_allclose(got, (square + np.asarray(corners)) * [6, 8], atol=1e-4)
    middle = np.stack([rows[3], columns[3]], 1)
    along = middle - middle[0]
    area = along[:, 0] * along[-1, 1] - along[:, 1] * along[-1, 0]
    np.testing.assert_allclose(area, 0, atol=1e-4)


# ------------------------------------------------------------------------------- photos


def test_by_default_nothing_happens():
    np.testing.assert_array_equal(photo_transform(BATCH, KEY), BATCH)
    np.testing.assert_allclose(
        photo_transform(BATCH, KEY, warp=jnp.float32(0), blur=jnp.float32(0)), BATCH, atol=1e-5
    )
    still = random_affine_photo(
        BATCH, KEY, scale=(1.0, 1.0), rotation=0.0, brightness=0.0, noise=0.0
    )
    np.testing.assert_allclose(still, BATCH, atol=1e-6)


def test_light_and_contrast_by_hand():
    bounds = (-1.0, 3.0)
    out = photo_transform(BATCH, KEY, brightness=0.1, contrast=1.5, bounds=bounds)
    np.testing.assert_allclose(out, np.clip(1 + 1.5 * (BATCH - 1) + 0.1, *bounds), atol=1e-6)


def test_noise_has_the_variance_it_says_and_is_each_images_own():
    x = jnp.full((4, 60, 60, 1), 0.5)
    out = photo_transform(x, KEY, noise=0.05)
    np.testing.assert_allclose(jnp.std(out, axis=(1, 2, 3)), np.full(4, 0.05), rtol=0.05)
    ranged = photo_transform(x, KEY, noise=(0.01, 0.1))
    spread = np.asarray(jnp.std(ranged, axis=(1, 2, 3)))
    assert ((spread > 0.009) & (spread < 0.105)).all()
    assert spread.std() > 0.005


PHOTO = functools.partial(
    photo_transform,
    brightness=(-0.2, 0.2),
    contrast=(0.7, 1.3),
    blur=(0.0, 1.0),
    noise=0.05,
    warp=(0.0, 0.2),
)


@pytest.mark.parametrize("transform", [PHOTO, random_affine_photo])
def test_photos_are_pure_bounded_and_do_not_see_their_neighbours(transform):
    run = jax.jit(transform)
    out = run(BATCH, KEY)
    assert ((out >= 0) & (out <= 1)).all()
    np.testing.assert_array_equal(out, run(BATCH, KEY))
    assert (out != run(BATCH, jax.random.key(1))).any()
    np.testing.assert_allclose(jax.jit(transform)(BATCH[:1], KEY), out[:1], atol=1e-6)
    low = run(BATCH.astype(jnp.bfloat16), KEY)
    assert low.dtype == jnp.bfloat16
    assert ((low >= 0) & (low <= 1)).all()
    grad = jax.jit(jax.grad(lambda x: transform(x, KEY).sum()))(BATCH)
    assert jnp.isfinite(grad).all()
    assert (grad != 0).any()


def test_a_picture_within_the_frame_is_never_cut():
    """Scaled down, all of it is seen, wherever it lands."""
    x = jnp.ones((64, 20, 20, 1))
    seen = random_affine_photo(
        x, KEY, scale=(0.6, 0.6), rotation=0.0, brightness=0.0, noise=0.0, fill=0.0
    )
    np.testing.assert_allclose(seen.sum((1, 2, 3)), np.full(64, 144.0), rtol=0.02)
    assert (seen.max(0)[1:-1, 1:-1] > 0.5).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blur": -1.0}, "blur must be >= 0"),
        ({"noise": (0.2, 0.1)}, "noise must have low <= high"),
        ({"contrast": (0.1, 0.2, 0.3)}, "contrast must be a number or a pair"),
        ({"warp": 0.6}, "warp must be <= 0.5"),
        ({"bounds": (1.0, 0.0)}, "low < high"),
        ({"x": BATCH[0]}, "images"),
    ],
)
def test_bad_photos_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        photo_transform(**{"x": BATCH, "key": KEY, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be > 0"),
        ({"rotation": -1.0}, "rotation must be >= 0"),
        ({"noise": -1.0}, "noise must be >= 0"),
        ({"fill": float("nan")}, "fill must be a number"),
        ({"x": BATCH[0]}, "images"),
    ],
)
def test_bad_affine_photos_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_affine_photo(**{"x": BATCH, "key": KEY, **arguments})


# --------------------------------------------------------------------- destruction rate

FIRST = jnp.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1]])
LABELS = jnp.array([0, 0, 0, 0])  # the third is misclassified when clean
ATTACKED = jnp.array([[0.4, 0.5], [0.2, 0.9], [0.1, 0.9], [0.8, 0.2]])  # the fourth fails


def rate(transform, **settings):
    return destruction_rate(lambda x: x, FIRST, ATTACKED, LABELS, transform=transform, **settings)


def test_destruction_rate_by_hand():
    share, count = rate(lambda x, key: x + jnp.array([[0.2, 0.0]]))
    assert (float(share), int(count)) == (0.5, 2)  # of the first two; the first comes back
    share, count = rate(lambda x, key: x)
    assert (float(share), int(count)) == (0.0, 2)
    share, count = rate(lambda x, key: x[:, ::-1])
    assert (float(share), int(count)) == (1.0, 2)


def test_with_targets_it_is_the_target_that_counts():
    three = lambda x: jnp.concatenate([x, 1 - x[:, :1] - 0.35], axis=1)  # noqa: E731
    target = jnp.array([1, 1, 1, 2])
    share, count = destruction_rate(
        three, FIRST, ATTACKED, LABELS, transform=lambda x, key: 0 * x, target=target
    )
    logits = np.asarray(three(ATTACKED))
    counted = (np.asarray(three(FIRST)).argmax(1) == 0) & (logits.argmax(1) == np.asarray(target))
    assert int(count) == counted.sum() > 0
    assert float(share) == 1.0  # at zero the third class wins


def test_where_nothing_was_fooled_the_rate_is_nan():
    share, count = destruction_rate(lambda x: x, FIRST, FIRST, LABELS, transform=lambda x, key: x)
    assert jnp.isnan(share)
    assert int(count) == 0


def test_bad_rates_raise():
    with pytest.raises(ValueError, match="x_adv must have the shape of x"):
        destruction_rate(lambda x: x, FIRST, FIRST[:1], LABELS, transform=lambda x, key: x)
    with pytest.raises(ValueError, match="needs a random key"):
        destruction_rate(
            Stochastic(lambda x, key: x), FIRST, FIRST, LABELS, transform=lambda x, key: x
        )


def test_light_destroys_few_attacks_on_digits_and_blur_more(digits):
    """Kurakin et al.: changes of brightness and contrast destroy little, blur much more."""
    w = ridge.fit(digits.x_train, digits.y_train)
    f = functools.partial(ridge.logits, w)
    x, y = jnp.asarray(digits.x_test[:300]), jnp.asarray(digits.y_test[:300])

    def rates(attack):
        x_adv = quantize(jax.jit(lambda x, y: attack(f, x, y, eps=0.15))(x, y), 8)
        photos = ({"brightness": 0.05}, {"contrast": 0.9}, {"blur": 0.7})
        return [
            float(
                destruction_rate(
                    f, x, x_adv, y, key=KEY, transform=functools.partial(photo_transform, **photo)
                )[0]
            )
            for photo in photos
        ]

    for attack in (fgsm, bim):
        light, contrast, blur = rates(attack)
        assert max(light, contrast) < 0.1
        assert blur > max(light, contrast)
