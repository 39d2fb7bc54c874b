import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import adversarial_patch, apply_patch
from spax.gradients import nes
from spax.losses import margin
from spax.typing import Stochastic
from tests.evasion import ridge

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.slow]

KEY = jax.random.key(0)
SQUARE = jnp.ones((8, 8))
paste = jax.jit(apply_patch, static_argnames=())


def test_a_white_disc_covers_the_area_of_its_scale():
    """pi s^2 / 4 of the image, at every angle and place."""
    x = jnp.zeros((16, 40, 40, 1))
    for scale in (0.357, 0.6):
        out = paste(x, jnp.ones((20, 20, 1)), key=KEY, scale=(scale, scale), rotation=45.0)
        share = np.asarray(out.mean((1, 2, 3)))
        np.testing.assert_allclose(share, np.full(16, np.pi * scale**2 / 4), rtol=0.06)


def test_the_patch_stays_inside_and_goes_everywhere():
    x = jnp.zeros((200, 20, 20, 1))
    out = paste(x, jnp.ones((8, 8, 1)), SQUARE, key=KEY, scale=(0.3, 0.3), rotation=0.0)
    # Six by six pixels, wherever they are: none is cut off.
    np.testing.assert_allclose(out.sum((1, 2, 3)), np.full(200, 36.0), rtol=1e-3)
    reached = out.max(0)[..., 0]
    assert (reached > 0.5).mean() > 0.95
    assert (out[1:] != out[:-1]).any(axis=(1, 2, 3)).all()


def test_without_scaling_or_turning_the_patch_is_pasted_as_it_is():
    patch = jax.random.uniform(KEY, (6, 6, 3))
    out = paste(
        jnp.zeros((1, 6, 6, 3)), patch, jnp.ones((6, 6)), key=KEY, scale=(1.0, 1.0), rotation=0.0
    )
    np.testing.assert_allclose(out[0], patch, atol=1e-5)


def test_a_mask_of_zeros_hides_it():
    x = jax.random.uniform(KEY, (2, 8, 8, 1))
    np.testing.assert_array_equal(paste(x, jnp.ones((8, 8, 1)), 0 * SQUARE, key=KEY), x)


def test_an_image_does_not_see_its_neighbours_and_dtypes_stay():
    x = jax.random.uniform(KEY, (3, 9, 9, 1))
    patch = jnp.ones((4, 4, 1))
    together = apply_patch(x, patch, key=KEY)
    np.testing.assert_array_equal(apply_patch(x[:1], patch, key=KEY), together[:1])
    assert apply_patch(x.astype(jnp.bfloat16), patch, key=KEY).dtype == jnp.bfloat16
    assert apply_patch(x[:0], patch, key=KEY).shape == (0, 9, 9, 1)


def brightness(x):
    """Class 1 where the first channel outshines the second."""
    means = x.mean((1, 2))
    return jnp.stack([means[:, 1], means[:, 0]], axis=1)


@pytest.mark.parametrize("gradient", [None, nes(60, 0.05)])
def test_of_a_linear_model_the_best_patch_is_at_its_bounds(gradient):
    hook = {} if gradient is None else {"gradient": gradient}
    attack = adversarial_patch(
        brightness, patch_shape=(4, 4, 2), step_size=0.2, scale=(0.5, 0.5), loss=margin, **hook
    )
    state, update = attack.init(KEY), jax.jit(attack.update)
    x, y = jnp.full((4, 8, 8, 2), 0.5), jnp.ones(4, jnp.int32)
    for i in range(15):
        patch, state = update(state, x, y, jax.random.fold_in(KEY, i))
    middle = np.asarray(patch[1:3, 1:3])
    if gradient is None:
        np.testing.assert_allclose(middle, np.broadcast_to([1.0, 0.0], (2, 2, 2)))
        assert float(state.hit) == 1.0
    else:
        assert middle[..., 0].mean() > middle[..., 1].mean() + 0.2
    assert int(state.steps) == 15
    assert ((patch >= 0) & (patch <= 1)).all()


def test_its_first_step_is_that_of_the_written_objective():
    """The gradient of the mean loss over the same placements, by hand; Adam's first is its sign."""
    attack = adversarial_patch(brightness, patch_shape=(4, 4, 2), step_size=0.01)
    state = attack.init(KEY)
    x, y = jax.random.uniform(KEY, (3, 8, 8, 2)), jnp.array([1, 0, 1])
    patch, _ = attack.update(state, x, y, KEY)
    place = jax.random.split(KEY)[0]

    def total(p):
        z = brightness(apply_patch(x, p, key=place))
        return jnp.sum(jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], 1)[:, 0])

    grad = jax.grad(total)(state.patch)
    clear = jnp.abs(grad) > 1e-5
    moved = jnp.clip(state.patch - 0.01 * jnp.sign(grad), 0, 1)
    np.testing.assert_allclose(patch[clear], moved[clear], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.3}, "scale must be a pair"),
        ({"scale": (0.0, 0.5)}, "scale must be > 0"),
        ({"scale": (0.5, 1.5)}, "scale must be > 0 and <= 1"),
        ({"scale": (0.5, 0.3)}, "low <= high"),
        ({"rotation": -1.0}, "rotation must be >= 0"),
        ({"key": None}, "needs a random key"),
        ({"mask": jnp.ones((3, 3))}, "mask must have shape"),
        ({"mask": 2 * SQUARE}, "mask must be >= 0 and <= 1"),
        ({"patch": jnp.ones((8, 8, 3))}, r"one image \[h, w, 1\]"),
        ({"x": jnp.zeros((8, 8, 1))}, "images"),
    ],
)
def test_bad_placements_raise(arguments, message):
    given = {"x": jnp.zeros((1, 16, 16, 1)), "patch": jnp.ones((8, 8, 1)), "key": KEY, **arguments}
    with pytest.raises(ValueError, match=message):
        apply_patch(**given)


def test_bad_settings_raise():
    make = functools.partial(adversarial_patch, brightness, patch_shape=(4, 4, 2))
    with pytest.raises(ValueError, match="step_size must be > 0"):
        make(step_size=0.0)
    with pytest.raises(ValueError, match=r"patch_shape must be \(h, w, C\)"):
        adversarial_patch(brightness, patch_shape=(4, 4))
    with pytest.raises(ValueError, match="patch_shape must be >= 1"):
        adversarial_patch(brightness, patch_shape=(4, 0, 1))
    attack = make()
    state, x = attack.init(KEY), jnp.full((2, 8, 8, 2), 0.5)
    with pytest.raises(ValueError, match="labels must lie"):
        attack.update(state, x, jnp.array([2, 1]), KEY)
    with pytest.raises(ValueError, match="within bounds"):
        attack.update(state, 4 * x, jnp.array([0, 1]), KEY)
    with pytest.raises(ValueError, match="needs a random key"):
        attack.update(state, x, jnp.array([0, 1]), None)
    noisy = adversarial_patch(Stochastic(lambda x, key: brightness(x)), patch_shape=(4, 4, 2))
    noisy.update(state, x, jnp.array([0, 1]), KEY)


def test_a_patch_on_digits_beats_a_real_digit_pasted_the_same_way(digits):
    """Brown et al.: a patch is more of its class than an image of it.

    Not by much on a linear model, where what helps in one place hurts in another.
    """
    w = ridge.fit(digits.x_train, digits.y_train)
    target = 8
    x = jnp.asarray(digits.x_train[digits.y_train != target][:512])
    x_test = jnp.asarray(digits.x_test[digits.y_test != target])
    real = jnp.asarray(digits.x_test[digits.y_test == target][0])

    @jax.jit
    def fit(w, x):
        attack = adversarial_patch(
            functools.partial(ridge.logits, w), patch_shape=(8, 8, 1), scale=(0.6, 0.6)
        )
        y = jnp.full(128, target, jnp.int32)

        def step(state, given):
            batch, key = given
            return attack.update(state, batch, y, key)[1], None

        batches = jnp.tile(x.reshape(4, 128, 8, 8, 1), (15, 1, 1, 1, 1))
        return jax.lax.scan(step, attack.init(KEY), (batches, jax.random.split(KEY, 60)))[0].patch

    def rate(patch):
        z = paste(x_test, patch, key=jax.random.key(9), scale=(0.6, 0.6))
        return float((jnp.argmax(ridge.logits(w, z), 1) == target).mean())

    patch = fit(w, x)
    assert rate(patch) > 2 * rate(real)
