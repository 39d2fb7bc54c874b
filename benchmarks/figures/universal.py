"""One perturbation for many inputs, and attacks that transfer, on the MNIST network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import victim
from benchmarks.figures.common import KEY, mnist
from spax import evasion
from spax.gradients import canonical_convolutions
from spax.losses import cross_entropy


def measure():
    """Universal perturbations and transfer."""
    return {"universal": universal(), **transfer()}


def share(v):
    """A mean in per cent."""
    return round(100 * float(jnp.mean(v)), 1)


def train(init, apply_fn, x, y, *, epochs, key, batch_size=128, rate=2e-3):
    """Parameters after some epochs of Adam with a cosine, in one compiled loop."""
    steps = epochs * (len(x) // batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def run(params, x, y, key):
        def step(carry, key):
            params, opt_state = carry
            rows = jax.random.randint(key, (batch_size,), 0, len(x))
            loss = lambda p: cross_entropy(apply_fn(p, x[rows]), y[rows]).mean()  # noqa: E731
            grads = canonical_convolutions(jax.grad(loss))(params)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][0]

    return run(init, jnp.asarray(x), jnp.asarray(y), key)


@functools.cache
def mnist_data():
    """MNIST, or what the victim was trained on in its place."""
    return victim._data(quick=False)


@functools.cache
def mnist_networks():
    """Two networks of the victim's form, of other data and other seeds."""
    data = mnist_data()
    found = []
    for seed, part in ((11, slice(0, 15_000)), (12, slice(15_000, 30_000))):
        init = victim.init(jax.random.key(seed))
        x, y = data.x_train[part], data.y_train[part]
        found.append(train(init, victim.apply_fn, x, y, epochs=2, key=jax.random.key(seed)))
    return tuple(found)


def universal():
    """One perturbation of MNIST, linf 0.3, fitted on 5,000 training images, on 2,000 others."""
    params, *_ = mnist()
    data = mnist_data()
    x, x_test = jnp.asarray(data.x_train[:5000]), jnp.asarray(data.x_test[:2000])

    @jax.jit
    def fit(params, x, key):
        attack = evasion.universal(functools.partial(victim.apply_fn, params), eps=0.3)

        def epoch(state, key):
            rows = jax.random.permutation(key, len(x))[: len(x) // 128 * 128].reshape(-1, 128)
            return jax.lax.scan(lambda s, r: (attack.update(s, x[r])[1], None), state, rows)[
                0
            ], None

        return jax.lax.scan(epoch, attack.init(x[0]), jax.random.split(key, 10))[0].v

    @jax.jit
    def fit_classic(params, x):
        f = functools.partial(victim.apply_fn, params)
        attack = evasion.universal_deepfool(f, eps=0.3, steps=10)
        return attack.update(attack.init(x[0]), x)[1].v

    predict = jax.jit(lambda params, x: jnp.argmax(victim.apply_fn(params, x), 1))

    def rate(v):
        return share(predict(params, evasion.apply_universal(v, x_test)) != predict(params, x_test))

    return {
        "fooled": rate(fit(params, x, KEY)),
        "deepfool": rate(fit_classic(params, x[:300])),
        "noise": rate(0.3 * jax.random.rademacher(KEY, x.shape[1:], jnp.float32)),
    }


def transfer():
    """From two other networks to the victim: one at a time, and both as an ensemble."""
    params, x, y, _ = mnist()

    @jax.jit
    def run(params, others, x, y):
        fns = [functools.partial(victim.apply_fn, p) for p in others]
        attack = functools.partial(evasion.mi_fgsm, eps=0.2, return_last=True)
        victim_fn = functools.partial(victim.apply_fn, params)
        return evasion.transfer_matrix(
            [*fns, evasion.ensemble(fns), victim_fn], [*fns, victim_fn], x, y, attack=attack
        )

    matrix = 100 * np.asarray(run(params, mnist_networks(), x, y), np.float64)
    matrix = np.round(matrix, 1)
    first, second, both, own = matrix[:, 2]
    return {
        "ensemble": {"first": first, "second": second, "both": both},
        "transfer_matrix": {"own": own, "matrix": matrix.tolist()},
    }
