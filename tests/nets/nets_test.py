"""Shapes, sizes and structure of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spax import nets
from spax.losses import ctc

# Compiled whole: op by op, Flax's initialisers alone would take longer than all the tests.
KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (3, 8, 8, 2))


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


CLASSIFIERS = {
    # weights and biases, counted by hand
    "mlp": (nets.MLP((5,), 10), (128 + 1) * 5 + (5 + 1) * 10),
    "linear": (nets.MLP((), 10), (128 + 1) * 10),
    "cnn": (nets.CNN((4, 6), 7), (18 + 1) * 4 + (36 + 1) * 6 + (24 + 1) * 7 + (7 + 1) * 10),
    "cnn_flat": (nets.CNN((4,), 0), (18 + 1) * 4 + (64 + 1) * 10),
    "resnet": (
        nets.ResNet((4, 6)),
        18 * 4 + 2 * 4  # stem
        + 2 * (36 * 4 + 2 * 4)  # first stage: no change of shape
        + (4 * 6 + 2 * 6) + (36 * 6 + 2 * 6) + (54 * 6 + 2 * 6)  # second: 1x1 shortcut
        + (6 + 1) * 10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_have_the_stated_size_and_keep_the_dtype(name):
    net, count = CLASSIFIERS[name]
    variables = jax.eval_shape(net.init, KEY, IMAGES)
    assert size(variables["params"]) == count
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jax.ShapeDtypeStruct(IMAGES.shape, dtype)
        logits = jax.eval_shape(net.apply, variables, x)
        assert logits.shape == (3, 10)
        assert logits.dtype == dtype


def test_resnet_of_the_paper_has_its_number_of_parameters():
    net = nets.ResNet((16, 32, 64), blocks=3)
    shapes = jax.eval_shape(net.init, KEY, jnp.zeros((1, 32, 32, 3)))["params"]
    # ResNet-20 for CIFAR-10: 0.27 M in Table 6 of the paper. Scales and offsets counted, and the
    # 1x1 shortcuts (3,024 with their normalisation: its option B).
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert abs(count - 0.27e6) < 0.01e6


def test_resnet_normalises_by_the_batch_in_training_only():
    net = nets.ResNet((4, 6))
    variables = jax.jit(net.init)(KEY, IMAGES)

    @jax.jit
    def run(variables, x):
        logits, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
        alone, _ = net.apply(variables, x[:1], train=True, mutable=["batch_stats"])
        return logits, new, alone, net.apply(variables, x), net.apply(variables, x[:1])

    logits, new, alone, evaluated, evaluated_alone = run(variables, IMAGES)
    assert not np.allclose(logits[:1], alone, atol=1e-3)
    old = variables["batch_stats"]
    assert not jax.tree.all(
        jax.tree.map(lambda a, b: jnp.array_equal(a, b), old, new["batch_stats"])
    )
    # the stem's running mean: 0.9 old + 0.1 of this batch
    kernel = variables["params"]["Conv_0"]["kernel"]
    stem = jax.lax.conv_general_dilated(
        IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = new["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(got, 0.1 * stem.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(evaluated[:1], evaluated_alone, atol=1e-5)


def test_no_example_of_the_cnn_sees_another():
    net = nets.CNN((4,), 5)

    @jax.jit
    def last_by_input(x):
        params = net.init(KEY, x)
        return jax.grad(lambda x: jnp.sum(net.apply(params, x)[-1]))(x)

    grad = np.asarray(last_by_input(IMAGES))
    assert not grad[:-1].any()
    assert grad[-1].any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_classifies_sequences_and_ignores_what_follows_them(bidirectional):
    net = nets.LSTM((6,), 4, bidirectional=bidirectional)
    x, lengths = jax.random.normal(KEY, (2, 5, 3)), jnp.array([5, 2])

    @jax.jit
    def run(x):
        params = net.init(KEY, x)
        other = x.at[1, 2:].set(9.0)
        cut = net.apply(params, x[1:, :2])
        return net.apply(params, x, lengths), net.apply(params, other, lengths), cut

    logits, padded, cut = run(x)
    assert logits.shape == (2, 4)
    np.testing.assert_allclose(logits, padded, atol=1e-6)
    np.testing.assert_allclose(logits[1:], cut, atol=1e-6)


def test_lstm_per_frame_is_causal_and_learns_by_ctc():
    net = nets.LSTM((6,), 4, per_frame=True)
    x = jax.random.normal(KEY, (2, 5, 3))
    params = jax.jit(net.init)(KEY, x)
    early = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(net.apply(params, x)[:, 2])))(x))
    assert not early[:, 3:].any()
    assert early[:, :3].any(axis=-1).all()
    y = (jnp.array([[1, 2], [3, 3]]), jnp.array([2, 1]), jnp.array([5, 4]))

    @jax.jit
    def loss_and_step(params):
        loss, grads = jax.value_and_grad(lambda p: ctc(net.apply(p, x), y).mean())(params)
        assert net.apply(params, x).shape == (2, 5, 4)
        return loss, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    first, params = loss_and_step(params)
    second, _ = loss_and_step(params)
    assert second < first


def test_autoencoder_gives_back_an_image():
    shape = (7, 5, 3)  # no multiple of the strides
    net = nets.Autoencoder(code=4, features=(6, 8))
    x = jax.random.uniform(KEY, (2, *shape))

    @jax.jit
    def run(x):
        params = net.init(KEY, x)

        def flat(x):
            return net.apply(params, x[None])[0].ravel()

        code = net.apply(params, x, method="encode")
        return net.apply(params, x), code, jax.jacobian(flat)(x[0])

    out, code, jacobian = run(x)
    assert out.shape == x.shape
    assert ((out > 0) & (out < 1)).all()
    assert code.shape == (2, 4)
    # all that the reconstruction knows of x is the code
    assert np.linalg.matrix_rank(np.asarray(jacobian).reshape(out[0].size, -1), tol=1e-6) <= 4


def test_gan_pair_fits_together():
    generator, critic = nets.Generator((8, 8, 1), (8, 4)), nets.Discriminator((4, 8))

    @jax.jit
    def run(z):
        params = generator.init(KEY, z)
        images = generator.apply(params, z)
        critic_params = critic.init(KEY, images)

        def score(params):
            return jnp.sum(critic.apply(critic_params, generator.apply(params, z)))

        return images, critic.apply(critic_params, images), jax.grad(score)(params)

    images, scores, grads = run(jax.random.normal(KEY, (3, 5)))
    assert images.shape == (3, 8, 8, 1)
    assert ((images > 0) & (images < 1)).all()
    assert scores.shape == (3,)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixelcnn_is_autoregressive(channels):
    net = nets.PixelCNN(features=6, blocks=2, levels=4)
    n = 5 * 5 * channels

    @jax.jit
    def sees(x):
        params = net.init(KEY, x)
        jacobian = jax.jacrev(lambda x: net.apply(params, x).reshape(n, 4).sum(1))(x)
        return jacobian.reshape(n, n) != 0

    depends = np.asarray(sees(jax.random.uniform(KEY, (1, 5, 5, channels))))
    assert not np.triu(depends).any()  # entry i of the raster order sees only j < i
    # and it does see its neighbours: to the left, above, and the previous channel
    steps = [channels, 5 * channels] + ([1] if channels == 3 else [])
    i = 2 * 5 * channels + 2 * channels + (channels - 1)  # last channel of the centre pixel
    assert all(depends[i, i - step] for step in steps)


def test_pixelcnn_needs_a_feature_per_channel():
    with pytest.raises(ValueError, match=r"features=2"):
        jax.eval_shape(nets.PixelCNN(features=2).init, KEY, jnp.zeros((1, 4, 4, 3)))


def test_pixelcnn_likelihood_sums_to_one():
    # Over all 2^4 binary images of 2 by 2 pixels.
    net = nets.PixelCNN(features=4, blocks=1, levels=2)
    images = jnp.array(np.indices((2,) * 4).reshape(4, -1).T.reshape(-1, 2, 2, 1), jnp.float32)

    @jax.jit
    def likelihood(x):
        log_p = jax.nn.log_softmax(net.apply(net.init(KEY, x), x), axis=-1)
        chosen = jnp.take_along_axis(log_p, x.astype(jnp.int32)[..., None], axis=-1)
        return jnp.exp(chosen.reshape(16, 4).sum(axis=1))

    np.testing.assert_allclose(np.sum(likelihood(images)), 1, rtol=1e-5)


def test_cnn_learns():
    net = nets.CNN((4,), 8)
    x = IMAGES
    y = jnp.array([0, 1, 2])
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(x):
        params = net.init(KEY, x)

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=100)[1]

    losses = train(x)
    assert losses[-1] < 0.1 * losses[0]
