"""A model of MNIST for ``spax audit``: a small Flax network, trained when it is asked for.

From the four IDX files in the folder ``mnist`` to a report, in the folder above this one::

    python -c "import spax; spax.datasets.idx_to_npz('mnist/', 'mnist.npz')"
    spax audit --model examples.mnist:model --data mnist.npz

The training takes the file that the variable MNIST names, or else ``mnist.npz`` in the current
folder, and less than half a minute on two cores.
"""

import os

import flax.linen as nn
import jax
import numpy as np
import optax

from spax.datasets import load_npz

EPOCHS, BATCH_SIZE = 3, 120


class Net(nn.Module):
    """Images ``[B, 28, 28, 1]`` to logits ``[B, 10]``."""

    @nn.compact
    def __call__(self, x):
        """Two strided convolutions and two dense layers."""
        x = nn.relu(nn.Conv(16, (5, 5), strides=2)(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(100)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def model():
    """Trains the network, and returns it as ``logits_fn(x)``."""
    data, net = load_npz(os.environ.get("MNIST", "mnist.npz")), Net()
    params = net.init(jax.random.key(0), data.x_test[:1])
    steps = len(data.x_train) // BATCH_SIZE
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, EPOCHS * steps))
    opt_state = optimizer.init(params)

    def loss_fn(params, x, y):
        logits = net.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, opt_state, x, y):
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, x, y), opt_state)
        return optax.apply_updates(params, updates), opt_state

    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(data.x_train))
        for rows in order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE):
            params, opt_state = step(params, opt_state, data.x_train[rows], data.y_train[rows])
    return lambda x: net.apply(params, x)
