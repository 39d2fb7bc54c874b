"""A linear classifier of the embedded digits in closed form: real data, and nothing to train."""

import jax.numpy as jnp
import numpy as np


def fit(x, y, ridge=1.0, scale=8.0):
    """Least squares on one-hot labels: weights [D + 1, 10] of a softmax model (`logits`)."""
    flat = np.concatenate([x.reshape(len(x), -1), np.ones((len(x), 1))], axis=1)
    onehot = np.eye(10)[y] - 0.1
    w = np.linalg.solve(flat.T @ flat + ridge * np.eye(flat.shape[1]), flat.T @ onehot)
    return jnp.asarray(scale * w, jnp.float32)


def logits(w, x):
    """Logits [B, 10]."""
    flat = x.reshape(x.shape[0], -1)
    w = w.astype(x.dtype)
    return flat @ w[:-1] + w[-1][None, :]
