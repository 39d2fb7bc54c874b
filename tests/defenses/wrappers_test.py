"""Model wrappers: what they compute, and that BPDA and EOT see through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from spax.defenses import bit_depth, quantize, random_resize_pad, randomized_resize
from spax.evasion import fgsm, pgd
from spax.gradients import bpda, eot
from spax.losses import cross_entropy, misclassified
from spax.typing import Stochastic, call, lift

KEY = jax.random.key(0)

# ------------------------------------------------------------------------------ bit depth


def test_eight_bits_of_eight_bit_data_change_nothing(strict):
    x = jnp.arange(256, dtype=jnp.float32)[None, :] / 255
    np.testing.assert_array_equal(quantize(x, 8), x)


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_quantisation_is_the_nearest_of_its_levels(bits, strict):
    x = jax.random.uniform(KEY, (4, 50), minval=-0.1, maxval=1.1)
    levels = np.arange(2**bits) / (2**bits - 1)
    wanted = levels[np.abs(np.asarray(x)[..., None] - levels).argmin(-1)]
    got = quantize(x, bits)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    np.testing.assert_array_equal(quantize(got, bits), got)  # idempotent
    traced = jax.jit(quantize)(x, jnp.float32(bits))
    np.testing.assert_allclose(traced, got, atol=1e-6)


def test_quantisation_of_other_ranges_and_dtypes(strict):
    x = jax.random.uniform(KEY, (4, 3))
    low, high = jnp.array([-1.0, 0.0, 2.0]), jnp.array([1.0, 5.0, 3.0])
    scaled = quantize(low[None] + (high - low)[None] * x, 3, (low, high))
    np.testing.assert_allclose((scaled - low[None]) / (high - low)[None], quantize(x, 3), atol=1e-6)
    half = quantize(x.astype(jnp.bfloat16), 3)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        half.astype(jnp.float32), quantize(half.astype(jnp.float32), 3), atol=4e-3
    )


@pytest.fixture
def model(linear):
    apply_fn, params, x, y = linear
    return lambda x: apply_fn(params, x), x, y


def test_bit_depth_has_no_gradient_and_bpda_gives_one(model, strict):
    logits_fn, x, y = model
    squeezed = bit_depth(logits_fn, bits=3)
    stand_in = lift(bpda(functools.partial(quantize, bits=3)), logits_fn)
    np.testing.assert_array_equal(squeezed(x), logits_fn(quantize(x, 3)))
    np.testing.assert_array_equal(stand_in(x), squeezed(x))

    def slope(f, x):
        return jax.grad(lambda x: cross_entropy(f(x), y).sum())(x)

    assert not slope(squeezed, x).any()
    # the identity's: the model's gradient where the quantiser put x
    np.testing.assert_allclose(slope(stand_in, x), slope(logits_fn, quantize(x, 3)), rtol=1e-6)


def test_bit_depth_falls_to_bpda_alone(model):
    logits_fn, x, y = model
    squeezed = bit_depth(logits_fn, bits=3)
    stand_in = lift(bpda(functools.partial(quantize, bits=3)), logits_fn)

    @jax.jit
    def errors(x, y):
        naive = fgsm(squeezed, x, y, eps=0.3)
        adaptive = fgsm(stand_in, x, y, eps=0.3)
        return [misclassified(squeezed(v), y).mean() for v in (x, naive, adaptive)]

    clean, naive, adaptive = errors(x, y)
    assert naive == clean
    assert adaptive == 1


def test_wrappers_keep_what_they_wrap_stochastic(model):
    logits_fn, _, _ = model
    noisy = Stochastic(lambda x, key: logits_fn(x) + jax.random.normal(key, (x.shape[0], 4)))
    assert isinstance(bit_depth(noisy, bits=3), Stochastic)
    assert not isinstance(bit_depth(logits_fn, bits=3), Stochastic)
    wrapped = randomized_resize(
        Stochastic(lambda x, key: jax.random.normal(key, x.shape)), low=2, high=3, out=4
    )
    images = jnp.ones((2, 2, 2, 1))
    first, second = (wrapped(images, jax.random.key(i)) for i in (0, 1))
    assert not np.array_equal(first, second)
    assert call(bit_depth(wrapped, bits=1), images, KEY).shape == (2, 4, 4, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: bit_depth(jnp.sin, bits=0), "got bits=0"),
        (lambda: bit_depth(jnp.sin, bits=2, bounds=(1.0, 0.0)), "low < high"),
        (lambda: quantize(jnp.ones(3, jnp.int32), 2), "int32"),
    ],
)
def test_bad_bits_raise(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


# ------------------------------------------------------------------------ resize and pad

IMAGES = jax.random.uniform(jax.random.key(3), (5, 6, 6, 2))


def test_resizing_to_the_same_size_is_the_identity(strict):
    for method in ("nearest", "linear"):
        got = random_resize_pad(IMAGES, KEY, low=6, high=6, out=6, method=method)
        np.testing.assert_array_equal(got, IMAGES)


@pytest.mark.parametrize("method", ["nearest", "linear"])
@pytest.mark.parametrize("side", [4, 9])
def test_resizing_is_jaxs_own(method, side):
    got = random_resize_pad(IMAGES, KEY, low=side, high=side, out=side, method=method)
    shape = (5, side, side, 2)
    wanted = jax.image.resize(IMAGES, shape, method, antialias=False)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def drawn():
    """Sides and offsets of 3000 draws, read off white images."""
    out = jax.jit(functools.partial(random_resize_pad, low=3, high=5, out=6))
    white = np.asarray(out(jnp.ones((3000, 4, 4, 1)), KEY))[..., 0]
    assert set(np.unique(white)) == {0, 1}
    rows, columns = white.max(axis=2), white.max(axis=1)
    np.testing.assert_array_equal(white, rows[:, :, None] * columns[:, None, :])  # a square, padded
    np.testing.assert_array_equal(rows.sum(1), columns.sum(1))
    return rows.sum(1).astype(int), rows.argmax(1), columns.argmax(1)


def test_sides_and_offsets_are_uniform(drawn):
    sides, tops, lefts = drawn
    assert scipy.stats.chisquare(np.bincount(sides)[3:]).pvalue > 0.001
    for side in (3, 4, 5):
        for offset in (tops, lefts):
            counts = np.bincount(offset[sides == side], minlength=7 - side)
            assert len(counts) == 7 - side
            assert scipy.stats.chisquare(counts).pvalue > 0.001


def test_an_image_does_not_depend_on_its_neighbours(strict):
    resize = functools.partial(random_resize_pad, key=KEY, low=4, high=8, out=9)
    np.testing.assert_array_equal(resize(IMAGES)[:2], resize(IMAGES[:2]))
    assert resize(IMAGES.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_derivative_is_the_transpose(strict):
    resize = functools.partial(random_resize_pad, key=KEY, low=4, high=8, out=9)
    out, pull = jax.vjp(resize, IMAGES)
    u = jax.random.normal(jax.random.key(5), out.shape)
    np.testing.assert_allclose(jnp.vdot(u, out), jnp.vdot(pull(u)[0], IMAGES), rtol=1e-4)


def test_bad_sizes_raise():
    wrong = [
        ({"low": 0, "high": 2, "out": 3}, "got low=0"),
        ({"low": 3, "high": 2, "out": 3}, "got high=2"),
        ({"low": 2, "high": 4, "out": 3}, "got out=3"),
        ({"low": 2, "high": 2, "out": 2, "method": "cubic"}, "cubic"),
    ]
    for sizes, message in wrong:
        with pytest.raises(ValueError, match=message):
            randomized_resize(jnp.sin, **sizes)
    with pytest.raises(ValueError, match=r"x\.shape=\(2, 3\)"):
        random_resize_pad(jnp.ones((2, 3)), KEY, low=2, high=2, out=2)
    with pytest.raises(TypeError, match="high=2"):
        randomized_resize(jnp.sin, low=2, high=2.0, out=3)


# ------------------------------------------------------------------ EOT against randomness


def test_eot_gradient_is_the_mean_over_the_draws():
    # Of a linear model behind the resizing, the mean gradient is the gradient of the mean.
    weights = jax.random.normal(jax.random.key(7), (8, 8, 2))
    model = randomized_resize(
        lambda x: jnp.sum(x * weights[None], axis=(1, 2, 3)), low=5, high=7, out=8
    )
    fn = Stochastic(lambda x, key: (model(x, key), None))
    gradient = jax.jit(lambda x, key: eot(512)(fn, x, key)[1])
    estimate, again = gradient(IMAGES, jax.random.key(1)), gradient(IMAGES, jax.random.key(2))
    one = jax.grad(lambda x: jnp.sum(model(x, KEY)))(IMAGES)
    assert np.abs(estimate - again).max() < 0.25 * np.abs(one).max()
    cosine = np.vdot(estimate, again) / (np.linalg.norm(estimate) * np.linalg.norm(again))
    assert cosine > 0.98
    # every image has the same expected gradient, whatever its own draws were
    assert np.corrcoef(np.asarray(estimate).reshape(5, -1)).min() > 0.97


@pytest.fixture(scope="module")
def hidden():
    """A model that classifies by brightness, behind noise that hides the gradient of one draw."""

    def logits_fn(x):
        z = 10 * (x.mean(axis=(1, 2, 3)) - 0.3)
        return jnp.stack([-z, z], axis=1)

    def dither(x, key):
        mask = jax.random.bernoulli(key, 0.05, x.shape)  # one pixel in twenty is seen
        return jnp.where(mask, x, 0.5)

    y = jnp.ones(20, jnp.int32)
    return lift(Stochastic(dither), logits_fn), jnp.full((20, 8, 8, 1), 0.5), y


def test_eot_finds_more_of_the_gradient_than_one_draw(hidden):
    model, x, y = hidden

    @jax.jit
    def moved(x, y):
        one = fgsm(model, x, y, key=KEY, eps=0.1)
        many = fgsm(model, x, y, key=KEY, eps=0.1, gradient=eot(100))
        return [jnp.mean(v < x) for v in (one, many)]

    one, many = moved(x, y)
    assert one < 0.1
    assert many > 0.95


@pytest.mark.slow
def test_randomised_resizing_of_digits_falls_to_eot(digits):
    """On digits, a CNN behind random resizing: an attack on one frozen draw, and one on all."""
    import optax

    from spax.nets import CNN

    net = CNN((16, 32), 64)
    x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
    x_test, y_test = jnp.asarray(digits.x_test[:200]), jnp.asarray(digits.y_test[:200])
    optimizer = optax.adam(3e-3)

    def defended(params):
        return randomized_resize(lambda x: net.apply(params, x), low=8, high=12, out=14)

    @jax.jit
    def train(key):
        params = net.init(key, jnp.zeros((1, 14, 14, 1)))

        def step(carry, key):
            params, state = carry
            key_batch, key_draw = jax.random.split(key)
            i = jax.random.randint(key_batch, (64,), 0, x.shape[0])

            def loss(params):
                return cross_entropy(defended(params)(x[i], key_draw), y[i]).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, jax.random.split(key, 1000))[0][0]

    @jax.jit
    def accuracies(params):
        model = defended(params)

        def accuracy(x):  # on draws that no attack saw
            keys = jax.random.split(jax.random.key(99), 10)
            return 1 - jnp.mean(jax.vmap(lambda k: misclassified(model(x, k), y_test))(keys))

        attack = functools.partial(pgd, x=x_test, y=y_test, key=KEY, eps=0.2, steps=20)
        frozen = attack(lambda x: model(x, jax.random.key(5)))
        averaged = attack(model, gradient=eot(20))
        return [accuracy(v) for v in (x_test, frozen, averaged)]

    clean, frozen, averaged = accuracies(train(KEY))
    print(f"clean {clean:.3f}, one frozen draw {frozen:.3f}, eot {averaged:.3f}")
    assert clean > 0.9
    assert averaged < frozen - 0.1
    assert averaged < 0.05


def test_more_bits_than_a_float_tells_apart_are_refused():
    x = jnp.array([[0.2, 0.6]])
    assert jnp.isfinite(quantize(x, 24)).all()
    with pytest.raises(ValueError, match="bits must be >= 1 and <= 24"):
        quantize(x, 25)
    with pytest.raises(ValueError, match="bits must be >= 1 and <= 24"):
        bit_depth(lambda x: x, bits=200)
