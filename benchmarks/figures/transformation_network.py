"""Networks trained to attack the MNIST network in one pass."""

import functools

import jax
import jax.numpy as jnp
import optax

import spax
from benchmarks import victim
from benchmarks.figures.common import KEY, mnist
from benchmarks.figures.universal import mnist_data, share
from spax import evasion


def measure():
    """The perturbing form, at the paper's three weights."""
    return {"atn": transformation_network()}


def transformation_network():
    """A P-ATN of two dense layers, target 3, on MNIST; on test images of other classes."""
    params, *_ = mnist()
    data, target = mnist_data(), 3
    x = jnp.asarray(data.x_train[:10_000])
    x_test = jnp.asarray(data.x_test[data.y_test != target][:1000])
    y_test = jnp.asarray(data.y_test[data.y_test != target][:1000])
    size = x[0].size

    def net_fn(p, x):
        hidden = jax.nn.relu(x.reshape(len(x), -1) @ p["in"])
        return (hidden @ p["out"]).reshape(x.shape)

    generator = evasion.p_atn(net_fn, eps=1.0)
    start = {
        "in": jax.random.normal(KEY, (size, 256)) * (2 / size) ** 0.5,
        "out": jax.random.normal(jax.random.key(1), (256, size)) * 1e-2,
    }

    @jax.jit
    def fit(params, start, x, beta, key):
        f = functools.partial(victim.apply_fn, params)
        steps = 3 * len(x) // 128
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
        attack = evasion.atn(f, generator, optimizer, target, beta=beta)

        def step(state, key):
            rows = jax.random.randint(key, (128,), 0, len(x))
            return attack.update(state, x[rows])[1], None

        return jax.lax.scan(step, attack.init(start), jax.random.split(key, steps))[0].params

    found = {}
    for name, beta in (("at_010", 0.01), ("at_005", 0.005), ("at_001", 0.001)):
        x_adv = generator(fit(params, start, x, beta, KEY), x_test)
        logits = victim.apply_fn(params, x_adv)
        hit = jnp.argmax(logits, 1) == target
        second = jnp.argsort(logits, axis=1)[:, -2] == y_test
        found[name] = share(hit)
        found[f"second_{name}"] = share(second[hit])
        found[f"l2_{name}"] = round(float(spax.norms.norm(x_adv - x_test, "l2").mean()), 2)
    return found
