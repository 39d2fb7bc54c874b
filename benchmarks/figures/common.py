"""The models and the data that several rooms are measured on."""

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spax
from benchmarks import victim
from spax.gradients import canonical_convolutions
from spax.losses import misclassified
from spax.typing import call

KEY = jax.random.key(0)
IMAGES = 300


def median_seconds(call, repetitions=15):
    """The median time of a compiled call, to the end of its work."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


@functools.cache
def mnist():
    """(params, x, y, name of the data) of the network under attack."""
    path = victim.prepare(quick=False)
    with np.load(path) as stored:
        params = {name: jnp.asarray(v) for name, v in stored.items() if "/" in name}
        x, y = stored["x"][:IMAGES], stored["y"][:IMAGES].astype(np.int32)
    return params, jnp.asarray(x), jnp.asarray(y), path.stem.removeprefix("victim-")


def remaining(attack, *, through=lambda f: f, judged=lambda f: f, labels=None, **settings):
    """Accuracy, in per cent, of the judged model on points found through another."""
    params, x, y, _ = mnist()
    given = y if labels is None else labels

    @jax.jit
    def run(params, x, given, y, key):
        f = functools.partial(victim.apply_fn, params)
        x_adv = attack(through(f), x, given, key=key, **settings)
        return x_adv, misclassified(call(judged(f), x_adv, jax.random.key(7)), y)

    x_adv, wrong = run(params, x, given, y, KEY)
    return round(100 * float(1 - wrong.mean()), 1), x_adv


@functools.cache
def digits():
    """The embedded digits as JAX arrays: (x_train, y_train, x_test, y_test)."""
    data = spax.datasets.digits()
    return tuple(jnp.asarray(v) for v in (data.x_train, data.y_train, data.x_test, data.y_test))


def trained(make_loss, epochs, batch_size=64, data=None):
    """A small network trained on ``make_loss(apply_fn, progress) -> loss_fn``, on digits."""
    x, y = digits()[:2] if data is None else data
    net = spax.nets.CNN(features=(32, 64), hidden=64)

    def apply_fn(params, x, *, train, key):
        return net.apply(params, x)

    a_pass = len(x) // batch_size
    steps = epochs * a_pass
    optimizer = optax.adam(optax.cosine_decay_schedule(6e-3, steps))

    @jax.jit
    def run(params, x, y, key):
        key_order, key_steps = jax.random.split(key)
        order = jax.vmap(lambda k: jax.random.permutation(k, len(x))[: a_pass * batch_size])(
            jax.random.split(key_order, epochs)
        ).reshape(steps, batch_size)

        def step(carry, given):
            params, opt_state = carry
            i, rows, key = given
            loss_fn = make_loss(apply_fn, jnp.minimum(1.0, 4 * (i + 1) / steps))
            gradient = canonical_convolutions(jax.grad(loss_fn, has_aux=True))
            grads, _ = gradient(params, (x[rows], y[rows]), key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        given = jnp.arange(steps), order, jax.random.split(key_steps, steps)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), given)
        return params

    params = run(net.init(jax.random.key(1), x[:1]), x, y, KEY)
    return lambda x: net.apply(params, x)


def plain_objective(apply_fn, progress):
    """Cross-entropy, in the form of the other objectives."""

    def loss_fn(params, batch, key):
        x, y = batch
        logits = apply_fn(params, x, train=True, key=key)
        return spax.losses.cross_entropy(logits, y).mean(), None

    return loss_fn


@functools.cache
def audit_models():
    """The three models of ``spax audit``."""
    from spax.audit import defaults, progress

    return defaults.train(spax.datasets.digits(), key=KEY, progress=progress.Silent())


def rounded_up(value, digits=2):
    """What bounds a leak is never rounded down."""
    return math.ceil(float(value) * 10**digits) / 10**digits
