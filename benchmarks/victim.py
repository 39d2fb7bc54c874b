"""The models under attack: small convolutional networks, of MNIST and of CIFAR-10.

Trained once and kept, with the images to attack and their logits, in one npz file: every system
reads the same weights from it.
"""

import dataclasses
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CACHE = pathlib.Path(__file__).parent / ".cache"
CHANNELS, HIDDEN, CLASSES = (16, 32), 128, 10
SIDE = 28


def init(key, images=(SIDE, SIDE, 1), channels=CHANNELS, hidden=HIDDEN):
    """He-normal weights, zero biases."""
    first, second = channels
    shapes = {
        "conv1": (3, 3, images[2], first),
        "conv2": (3, 3, first, second),
        "dense1": (second * (images[0] // 4) * (images[1] // 4), hidden),
        "dense2": (hidden, CLASSES),
    }
    params = {}
    for name, shape in shapes.items():
        key, subkey = jax.random.split(key)
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        params[f"{name}/kernel"] = scale * jax.random.normal(subkey, shape)
        params[f"{name}/bias"] = jnp.zeros(shape[-1])
    return params


def apply_fn(params, x):
    """Logits [B, 10] of images [B, H, W, C]: two 3x3 convolutions of stride 2, two dense layers.

    Strides, as in `spax.nets.CNN`, and not pooling: the derivative of `lax.reduce_window` is so
    slow on CPUs that it would hide whatever an attack adds to it.
    """
    for name in ("conv1", "conv2"):
        x = lax.conv_general_dilated(
            x,
            params[f"{name}/kernel"],
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params[f"{name}/bias"][None, None, None, :])
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ params["dense1/kernel"] + params["dense1/bias"][None, :])
    return x @ params["dense2/kernel"] + params["dense2/bias"][None, :]


def _data(quick):
    # Imported here so that a peer's environment, without spax, can import `apply_fn` and `load`.
    from spax import datasets

    folder = os.environ.get("SPAX_DATA")
    if folder and not quick:
        return datasets.load_npz(pathlib.Path(folder) / "mnist.npz")
    data = datasets.digits()

    def enlarge(x):
        return np.clip(jax.image.resize(x, (len(x), SIDE, SIDE, 1), "linear"), 0, 1)

    return dataclasses.replace(data, x_train=enlarge(data.x_train), x_test=enlarge(data.x_test))


def _train(x, y, epochs, batch_size=128, learning_rate=1e-3):
    import optax

    steps = epochs * (len(x) // batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def update(params, opt_state, x, y):
        def loss_fn(params):
            logits = apply_fn(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = init(jax.random.key(0))
    opt_state = optimizer.init(params)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            params, opt_state = update(params, opt_state, x[rows], y[rows])
    return params


def _train_robustly(x, y, params, *, eps, epochs, batch_size=128, learning_rate=2e-3):
    """Against PGD in linf eps, a radius that grows over the first two fifths of the steps."""
    import optax

    from spax.defenses import adversarial_loss
    from spax.evasion import pgd

    steps = epochs * (len(x) // batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def update(params, opt_state, x, y, radius, key):
        def attack(logits_fn, x, y, *, key):
            return pgd(logits_fn, x, y, key=key, eps=radius, step_size=radius / 3, steps=7)

        loss_fn = adversarial_loss(lambda p, x, *, train, key: apply_fn(p, x), attack=attack)
        grads = jax.grad(lambda p: loss_fn(p, (x, y), key)[0])(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    rng = np.random.default_rng(0)
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            radius = jnp.float32(eps * min(1, 2.5 * step / steps))
            key = jax.random.key(step)
            params, opt_state = update(params, opt_state, x[rows], y[rows], radius, key)
            step += 1
    return params


def prepare(quick, examples=1000, *, robust=False):
    """The path of the npz file with the weights, the images to attack, their labels and logits.

    MNIST where the variable SPAX_DATA names the folder with mnist.npz; otherwise, and when quick,
    the embedded digits enlarged to the same size: as good for timing. ``robust``: the same network,
    trained by PGD in linf 0.3.
    """
    data = _data(quick)
    large = len(data.x_train) > 10_000

    def train():
        if robust:
            return _train_robustly(
                data.x_train,
                data.y_train,
                init(jax.random.key(0)),
                eps=0.3,
                epochs=5 if large else 10,
            )
        return _train(data.x_train, data.y_train, epochs=2 if large else 20)

    return _kept(f"{data.name}{'-robust' if robust else ''}", data, train, examples)


def prepare_cifar(examples=1000):
    """The same for the subset of CIFAR-10 in SPAX_DATA: a wider network, trained by PGD in 8/255.

    None where there is no such data.
    """
    from spax import datasets

    path = pathlib.Path(os.environ.get("SPAX_DATA", "")) / "cifar10_subset.npz"
    if not path.exists():
        return None
    data = datasets.load_npz(path)

    def train():
        params = init(jax.random.key(0), (32, 32, 3), channels=(32, 64), hidden=256)
        return _train_robustly(
            data.x_train, data.y_train, params, eps=8 / 255, epochs=15, learning_rate=1e-3
        )

    return _kept("cifar10-robust", data, train, examples)


def _kept(name, data, train, examples):
    """The file of that name, made if it is not there yet.

    All its images are classified correctly; where there are too few, they repeat.
    """
    path = CACHE / f"victim-{name}.npz"
    if not path.exists():
        params = train()
        predict = jax.jit(apply_fn)
        logits = np.concatenate([predict(params, x) for x in np.array_split(data.x_test, 10)])
        right = np.argmax(logits, axis=1) == data.y_test
        rows = np.resize(np.flatnonzero(right), examples)
        CACHE.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=CACHE, suffix=".npz", delete=False) as file:
            np.savez(
                file,
                x=data.x_test[rows],
                y=data.y_test[rows],
                logits=logits[rows],
                accuracy=right.mean(),
                **params,
            )
        os.replace(file.name, path)  # two scripts started together must not read half a file
    return path


def load(path, batch_size):
    """(params, x, y) of the first ``batch_size`` images, as NumPy arrays."""
    with np.load(path, allow_pickle=False) as file:
        params = {name: file[name] for name in file.files if "/" in name}
        return params, file["x"][:batch_size], file["y"][:batch_size]


def next_class(y):
    """The targets of targeted attacks: the class after each label's."""
    return (y + 1) % CLASSES


def judged(path, x_adv, *, norm, eps=None, target=None):
    """(success, distance), [B] each, of what any system returned, by the one judge."""
    from spax.evaluation import judge

    params, x, y = load(path, len(x_adv))
    targeted = target is not None
    labels = target if targeted else y
    found = judge(
        lambda x: apply_fn(params, x), x, x_adv, labels, norm=norm, eps=eps, targeted=targeted
    )
    return np.asarray(found.success), np.asarray(found.distance)


def success(path, x_adv, *, norm, eps):
    """The share of the images that a system fooled."""
    return float(judged(path, x_adv, norm=norm, eps=eps)[0].mean())
