"""Rules of clipping on the digits, at one noise multiplier, and how exact lengths are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spax
from benchmarks.figures.common import rounded_up

STEPS, RATE, NOISE, DELTA = 200, 0.2, 3.0, 1e-5
# Steps of normalised gradients have one length whatever C; each rule has the better of these rates.
RATES = (0.25, 1.0)
QUANTILE = 0.5
SGD = functools.partial(optax.sgd, momentum=0.9)


def measure():
    """Test accuracy of one hidden layer of 64 under every rule, and the error of lengths."""
    data = spax.datasets.digits()
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    net = spax.nets.MLP(hidden=(64,), num_classes=10)
    start = net.init(jax.random.key(0), x[:1])
    capacity = spax.dp.capacity_for(len(x), RATE, STEPS)
    sampling = spax.dp.Poisson(RATE, capacity, len(x))

    def loss_fn(params, example, key):
        image, label = example
        return spax.losses.cross_entropy(net.apply(params, image[None]), label[None])[0], None

    def accuracy(params):
        right = jnp.argmax(net.apply(params, data.x_test), axis=1) == data.y_test
        return round(100 * float(right.mean()), 1)

    def train(step, carry, rate, rule=SGD):
        optimizer = rule(optax.cosine_decay_schedule(rate, STEPS))

        @jax.jit
        def run(params, carry):
            def one(state, key):
                params, opt_state, carry, privacy = state
                keys = jax.random.split(key)
                batch = spax.dp.sample(keys[0], (x, y), sampling)
                out, carry, privacy = step(params, batch, carry, privacy, keys[1])
                updates, opt_state = optimizer.update(out.grads, opt_state)
                return (optax.apply_updates(params, updates), opt_state, carry, privacy), None

            state = params, optimizer.init(params), carry, spax.dp.init_privacy(sampling)
            keys = jax.random.split(jax.random.key(1), STEPS)
            return jax.lax.scan(one, state, keys)[0]

        params, _, carry, privacy = run(start, carry)
        return accuracy(params), carry, privacy

    shared = {"noise_multiplier": NOISE, "sampling": sampling}
    found = {}
    rules = {
        "flat": spax.dp.flat,
        "per_layer": spax.dp.per_layer(),
        "automatic": spax.dp.automatic(),
        "normalised": spax.dp.normalised,
    }
    for name, rule in rules.items():
        gradient = spax.dp.private_grad(loss_fn, l2_clip_norm=0.5, rule=rule, **shared)

        def step(params, batch, carry, privacy, key, gradient=gradient):
            out, privacy = gradient(params, batch, privacy, key=key)
            return out, carry, privacy

        runs = [train(step, None, rate) for rate in RATES]
        found[name] = max(run[0] for run in runs)
        epsilon = rounded_up(spax.dp.epsilon(runs[0][2], DELTA))

    init, adaptive = spax.dp.adaptive_private_grad(
        loss_fn, l2_clip_norm=10.0, quantile=QUANTILE, **shared
    )

    def adapting(params, batch, clip, privacy, key):
        return adaptive(params, batch, clip, privacy, key=key)

    # Adam, whose steps do not shrink as the bound does.
    runs = [train(adapting, init(), rate / 50, optax.adam) for rate in RATES]
    best = max(runs, key=lambda run: run[0])
    return {
        "rules": {"epsilon": epsilon, **found},
        "adaptive": {
            "accuracy": best[0],
            "epsilon": rounded_up(spax.dp.epsilon(best[2], DELTA)),
            "first": 10,
            "quantile": QUANTILE,
            "last": float(f"{float(best[1].l2_clip_norm):.2g}"),
        },
        "norms": norms(loss_fn, start, x[:128], y[:128]),
    }


def norms(loss_fn, params, x, y):
    """The largest relative difference from lengths of gradients that were formed."""
    batch = spax.dp.Batch((x, y), jnp.ones(len(x), bool))
    lengths = np.asarray(spax.dp.per_example_norms(loss_fn, params, batch))
    gradient = jax.grad(lambda p, e: loss_fn(p, e, None)[0])
    formed = jax.vmap(functools.partial(gradient, params))((x, y))
    exact = np.sqrt(sum(np.square(np.asarray(g, np.float64)).reshape(len(x), -1).sum(1)
                        for g in jax.tree.leaves(formed)))  # fmt: skip
    return {"error": f"{float(np.max(np.abs(lengths / exact - 1))):.0e}"}
