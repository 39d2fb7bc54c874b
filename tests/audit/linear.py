"""A two-class linear problem, whose robust accuracy is known in closed form.

The logits are ``(-s, s)`` with ``s = (x - 1/2) w``. A correct example is lost at the linf radius
eps if and only if ``|s| <= eps |w|_1``, and FGSM finds it: the inputs are too far from the edges of
the box for it to matter up to eps = 0.3.
"""

import jax.numpy as jnp
import numpy as np

from spax.audit import Budget
from spax.datasets import Dataset

SHAPE = (4, 4, 1)
W = np.random.default_rng(0).normal(size=16).astype(np.float32)

TINY = Budget(
    eps=(0.02, 0.05, 0.1),
    max_examples=40,
    batch_size=25,
    steps=3,
    distance_examples=10,
    distance_steps=5,
    distance_rounds=2,
    masking_examples=20,
    long_steps=4,
    query_steps=3,
    query_draws=4,
    strong_examples=20,
    strong_steps=4,
    strong_targets=1,
    strong_queries=8,
    max_scored=50,
)


def apply_fn(w, x):
    s = (x.reshape(len(x), -1) - 0.5) @ w
    return jnp.stack([-s, s], axis=1)


def logits_fn(x):
    return apply_fn(W, x)


def _part(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.3, 0.7, size=(n, *SHAPE)).astype(np.float32)
    y = (scores(x) > 0).astype(np.int32)
    wrong = rng.choice(n, n // 10, replace=False)
    y[wrong] = 1 - y[wrong]
    return x, y


def scores(x):
    return (x.reshape(len(x), -1).astype(np.float64) - 0.5) @ W.astype(np.float64)


def robust_accuracy(x, y, eps):
    s = scores(x)
    right = (s > 0) == (y == 1)
    return float((right & (np.abs(s) > eps * np.abs(W).sum(dtype=np.float64))).mean())


def data(members=True):
    x_train, y_train = _part(60, 1) if members else (None, None)
    return Dataset(x_train, y_train, *_part(40, 2), "linear")
