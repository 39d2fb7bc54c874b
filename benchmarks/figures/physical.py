"""Patches and photographed attacks, on a small network of the CIFAR-10 subset.

It is trained here, on 15,000 images; its accuracy stands beside what rests on it.
"""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import spax
from benchmarks.figures.common import KEY
from benchmarks.figures.universal import share, train
from spax import evasion
from spax.losses import hits


def measure():
    """All of them on one network."""
    *_, x, y = cifar()
    params, apply_fn = network(1, (24, 32, 48), epochs=4)
    right = jax.jit(lambda p, x, y: jnp.argmax(apply_fn(p, x), 1) == y)(params, x, y)
    rows = np.flatnonzero(np.asarray(right))
    return {
        "accuracy": share(right),
        "patch": patch(params, apply_fn),
        "destruction": destruction(params, apply_fn, x[rows[:200]], y[rows[:200]]),
        "eot": robust(params, apply_fn, x[rows[:20]], y[rows[:20]]),
    }


@functools.cache
def cifar():
    """(x_train, y_train, x_test, y_test) of the subset."""
    folder = os.environ.get("SPAX_DATA")
    if not folder:
        raise SystemExit("the figures of colour images need cifar10_subset.npz: set SPAX_DATA")
    data = spax.datasets.load_npz(pathlib.Path(folder) / "cifar10_subset.npz")
    return tuple(jnp.asarray(v) for v in (data.x_train, data.y_train, data.x_test, data.y_test))


def network(seed, features, epochs):
    """(params, apply_fn) of a small network of the subset."""
    x, y, *_ = cifar()
    net = spax.nets.CNN(features=features, hidden=64)
    key = jax.random.key(seed)
    params = train(net.init(key, x[:1]), net.apply, x, y, epochs=epochs, key=key)
    return params, net.apply


def patch(params, apply_fn, target=8, scale=0.357):
    """A disc of a tenth of the image, on unseen images of other classes; and a real image."""
    x, y, x_test, y_test = cifar()
    others = x[np.flatnonzero(np.asarray(y) != target)]
    unseen = x_test[np.flatnonzero(np.asarray(y_test) != target)[:500]]
    place = {"scale": (scale, scale), "rotation": 22.5}

    @jax.jit
    def fit(params, x, key):
        f = functools.partial(apply_fn, params)
        attack = evasion.adversarial_patch(f, patch_shape=(16, 16, 3), **place)
        wanted = jnp.full(64, target, jnp.int32)

        def step(state, key):
            key_rows, key = jax.random.split(key)
            rows = jax.random.randint(key_rows, (64,), 0, len(x))
            return attack.update(state, x[rows], wanted, key)[1], None

        return jax.lax.scan(step, attack.init(key), jax.random.split(key, 300))[0].patch

    def rate(sticker):
        patched = evasion.apply_patch(unseen, sticker, key=jax.random.key(99), **place)
        return share(jnp.argmax(apply_fn(params, patched), 1) == target)

    real = x_test[np.flatnonzero(np.asarray(y_test) == target)[:10]]
    return {
        "success": rate(fit(params, others, KEY)),
        "real": round(float(np.mean([rate(image) for image in real])), 1),
        "none": share(jnp.argmax(apply_fn(params, unseen), 1) == target),
    }


def destruction(params, apply_fn, x, y):
    """Rates of FGSM and BIM, eps 16/255, stored as 8 bits, under four transformations."""
    f = functools.partial(apply_fn, params)
    found = {}
    photos = {
        "brightness": {"brightness": 30 / 255},
        "contrast": {"contrast": 0.8},
        "blur": {"blur": 1.0},
        "noise": {"noise": 0.1},
    }
    for name, attack in (("fgsm", evasion.fgsm), ("bim", evasion.bim)):
        run = jax.jit(lambda p, x, y, a=attack: a(lambda z: apply_fn(p, z), x, y, eps=16 / 255))
        x_adv = spax.defenses.quantize(run(params, x, y), 8)
        for photo, settings in photos.items():
            seen = functools.partial(evasion.photo_transform, **settings)
            rate, _ = evasion.destruction_rate(f, x, x_adv, y, key=KEY, transform=seen)
            found[f"{name}_{photo}"] = round(100 * float(rate), 1)
    return found


def robust(params, apply_fn, x, y):
    """EOT against a plain attack of each image's own radius, on 100 fresh draws."""
    target = (y + 1 + jax.random.randint(KEY, y.shape, 0, 9)) % 10
    photo = evasion.random_affine_photo

    @jax.jit
    def run(params, x, target):
        f = functools.partial(apply_fn, params)
        x_adv = evasion.eot_attack(
            f, x, target, key=KEY, transform=photo, lam=0.002, steps=120,
            gradient=spax.gradients.eot(8),
        )  # fmt: skip
        eps = jnp.abs(x_adv - x).max(axis=(1, 2, 3))
        plain = evasion.pgd(f, x, target, eps=eps, steps=40, random_start=False, targeted=True)
        keys = jax.random.split(jax.random.key(77), 100)
        shares = [
            jax.lax.map(lambda k, z=z: hits(f(photo(z, k)), target), keys).mean()
            for z in (x_adv, plain)
        ]
        return *shares, eps.mean(), evasion.lab_distance(x, x_adv).mean()

    adversarial, plain, eps, lab = run(params, x, target)
    return {
        "adversarial": share(adversarial),
        "plain": share(plain),
        "linf": round(float(eps), 3),
        "lab": round(float(lab), 1),
    }
