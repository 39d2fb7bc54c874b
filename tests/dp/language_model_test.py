"""A next-character model of real text, learned with user-level privacy."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.datasets

from spax import dp
from spax.nets import LSTM

LENGTH, CHUNKS = 40, 2


def texts():
    """scikit-learn's descriptions of its data sets, cut into users: int32 ``[K, CHUNKS, LENGTH]``.

    Characters are lower case letters, the space, and one symbol for all others.
    """
    folder = pathlib.Path(sklearn.datasets.__file__).parent / "descr"
    text = " ".join(path.read_text().lower() for path in sorted(folder.glob("*.rst")))
    alphabet = " abcdefghijklmnopqrstuvwxyz"
    codes = np.array([alphabet.find(c) % 28 for c in " ".join(text.split())], np.int32)
    size = CHUNKS * LENGTH
    return codes[: len(codes) // size * size].reshape(-1, CHUNKS, LENGTH)


@pytest.mark.slow
def test_a_private_language_model_comes_near_the_other_one():
    """Within 15 % of the loss without noise and clipping, and better than letter frequencies."""
    users = texts()
    held_out, users = jnp.asarray(users[::10]), jnp.asarray(np.delete(users, np.s_[::10], axis=0))
    net = LSTM(hidden=(32,), num_classes=28, per_frame=True)

    def loss(params, chunk):
        x = jax.nn.one_hot(chunk[..., :-1], 28)
        return optax.softmax_cross_entropy_with_integer_labels(
            net.apply(params, x), chunk[..., 1:]
        ).mean()

    def local_update(params, chunks, key):
        def step(params, chunk):
            grads = jax.grad(loss)(params, chunk[None])
            return jax.tree.map(lambda p, g: p - 1.0 * g, params, grads), None

        return jax.lax.scan(step, params, chunks)[0]

    n, rate, rounds = len(users), 0.1, 150
    sampling = dp.Users(rate, dp.capacity_for(n, rate, rounds, overflow=1e-12), n)

    def trained(noise_multiplier, l2_clip_norm):
        average = dp.fedavg(
            local_update,
            optax.sgd(1.0),
            l2_clip_norm=l2_clip_norm,
            noise_multiplier=noise_multiplier,
            sampling=sampling,
        )

        @jax.jit
        def step(state, users, key):
            key_users, key_noise = jax.random.split(jax.random.fold_in(key, state.privacy.steps))
            clients = dp.sample(key_users, users, sampling)
            return average.update(state, clients, key=key_noise)[1]

        state = average.init(net.init(jax.random.key(1), jnp.zeros((1, LENGTH - 1, 28))))
        for _ in range(rounds):
            state = step(state, users, jax.random.key(0))
        return float(loss(state.params, held_out)), state.privacy

    plain, _ = trained(0.0, 1e3)
    private, privacy = trained(1.0, 0.5)
    shares = np.bincount(np.asarray(users).ravel(), minlength=28) / users.size
    entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-9)))
    assert private <= 1.15 * plain
    assert private < entropy
    assert int(privacy.steps) == rounds
    assert privacy.spent.unit == "user"
    assert 1 < float(dp.epsilon(privacy, 1e-3)) < 15
