"""Training steps on JAX: plain, private by spax, and private by `vmap`."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from benchmarks.systems import Job, networks

PACKAGES = ("jax", "jaxlib", "optax")
BOUND = 1.0


def repeated(step, name, *, steps, batch_size=None, **_):
    """``step(params, opt_state, x, y, key)``, compiled, so many times a repetition."""
    params, (x, y) = networks.load(name, batch_size)
    params, x, y = jax.device_put((params, x, y))
    opt_state = optax.sgd(0.01, momentum=0.9).init(params)
    key = jax.random.key(0)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, x, y, key).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    state = [params, opt_state]

    def run(i):
        for j in range(steps):
            state[:] = compiled(*state, x, y, jax.random.fold_in(key, steps * i + j))
        return jax.block_until_ready(state)

    return Job(run, lambda _: {"temporary": jnp.asarray(memory)})


def updated(grads, params, opt_state):
    updates, opt_state = optax.sgd(0.01, momentum=0.9).update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state


def _plain(name, params, opt_state, x, y, key):
    grads = jax.grad(lambda p: networks.losses(name, p, x, y).mean())(params)
    return updated(grads, params, opt_state)


def one_loss(name, params, x, y):
    return networks.losses(name, params, x[None], y[None])[0]


def _spax(name, noise, params, opt_state, x, y, key):
    from spax import dp

    rows = x.shape[0]
    fn = dp.clipped_grad(lambda p, e, k: (one_loss(name, p, *e), None), l2_clip_norm=BOUND)
    total, _ = fn(params, dp.Batch((x, y), jnp.ones(rows, bool)))
    if noise:
        total = dp.add_noise(key, total, noise * BOUND)
    return updated(jax.tree.map(lambda g: g / rows, total), params, opt_state)


def _vmap(name, params, opt_state, x, y, key):
    each = jax.vmap(jax.grad(partial(one_loss, name)), (None, 0, 0))(params, x, y)
    squares = [jnp.sum(g.reshape(len(x), -1) ** 2, 1) for g in jax.tree.leaves(each)]
    scales = jnp.minimum(1, BOUND / jnp.sqrt(sum(squares))) / len(x)
    return updated(jax.tree.map(lambda g: jnp.tensordot(scales, g, 1), each), params, opt_state)


def private_step(name, *, way, noise=0.0, **settings):
    ways = {
        "plain": partial(_plain, name),
        "spax": partial(_spax, name, noise),
        "vmap": partial(_vmap, name),
    }
    return repeated(ways[way], name, **settings)
