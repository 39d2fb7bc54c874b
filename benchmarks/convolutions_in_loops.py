"""What a gradient step of a convolutional net costs inside a loop, plain and rewritten.

python -m benchmarks.convolutions_in_loops

Each step is measured on its own (one jitted step, called again and again), in `lax.fori_loop`,
and in `lax.fori_loop` through `spax.gradients.canonical_convolutions`. Once "plain, in a loop" is
no slower than "rewritten, in a loop", jaxlib no longer needs the rewriting.
"""

import time

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax

from benchmarks.harness import Claim, alternate, arguments
from spax.gradients import canonical_convolutions
from spax.losses import cross_entropy

STEPS, BATCH = 10, 100


def apply_fn(params, x):
    for kernel in params["kernels"]:
        x = lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.reshape(len(x), -1) @ params["dense"]


def loss(params, x, y):
    return jnp.sum(cross_entropy(apply_fn(params, x), y))


def attack(batch, state, rewrite):
    """A step of projected gradient ascent (linf)."""
    params, x, y = batch
    grad = rewrite(jax.grad(loss, argnums=1))(params, state, y)
    return jnp.clip(state + 0.01 * jnp.sign(grad), x - 0.3, x + 0.3)


def train(batch, state, rewrite):
    """A step of gradient descent."""
    _, x, y = batch
    grads = rewrite(jax.grad(loss))(state, x, y)
    return jax.tree.map(lambda w, g: w - 1e-4 * g, state, grads)


def train_privately(batch, state, rewrite):
    """A step of DP-SGD but for its noise: the sum of clipped per-example gradients."""
    _, x, y = batch

    def clipped(params, x, y):
        grads = jax.grad(loss)(params, x[None], y[None])
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda g: g / jnp.maximum(norm, 1.0), grads)

    grads = rewrite(jax.vmap(clipped, in_axes=(None, 0, 0)))(state, x, y)
    return jax.tree.map(lambda w, g: w - 1e-3 * jnp.sum(g, 0), state, grads)


def timed(run, *args):
    """Compiles ``run`` and returns what times it: {"wall": seconds, "cpu": seconds}."""
    jax.block_until_ready(run(*args))

    def measure(_):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run(*args))
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    return measure


def alone(step):
    jitted = jax.jit(lambda batch, state: step(batch, state, lambda fn: fn))

    def run(batch, state):
        for _ in range(STEPS):
            state = jitted(batch, state)
        return state

    return run


def looped(step, rewrite):
    def run(batch, state):
        return lax.fori_loop(0, STEPS, lambda _, state: step(batch, state, rewrite), state)

    return jax.jit(run)


def main(argv=None):
    options = arguments(__doc__, argv)
    claim = Claim(
        "convolutions_in_loops",
        options,
        title="Convolutions in loops",
        about=f"{STEPS} steps of a net with two strided convolutions: an attack (linf), SGD, and "
        "the clipped per-example gradients of DP-SGD. 'Rewritten' is "
        "`spax.gradients.canonical_convolutions`.",
        settings={"batch": BATCH, "jaxlib": jaxlib.__version__, "steps": STEPS},
    )
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "kernels": [
            0.1 * jax.random.normal(keys[0], (8, 8, 1, 16)),
            0.03 * jax.random.normal(keys[1], (4, 4, 16, 32)),
        ],
        "dense": 0.01 * jax.random.normal(keys[2], (7 * 7 * 32, 10)),
    }
    x = jax.random.uniform(keys[3], (BATCH, 28, 28, 1))
    batch = (params, x, jnp.arange(BATCH) % 10)
    steps = {"attack": (attack, x), "SGD": (train, params), "DP-SGD": (train_privately, params)}
    for name, (step, state) in steps.items():
        rewritten = timed(looped(step, canonical_convolutions), batch, state)
        ours = f"{name}, rewritten, in a loop"
        by_itself = timed(alone(step), batch, state)
        figures = alternate(rewritten, by_itself, options)
        claim.record(ours, f"{name}, alone", figures, at_most=1.05)
        plain = timed(looped(step, lambda fn: fn), batch, state)
        claim.record(ours, f"{name}, plain, in a loop", alternate(rewritten, plain, options))
    return claim.write()


if __name__ == "__main__":
    main()
