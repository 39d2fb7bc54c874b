"""A training that is killed and resumed neither uses noise twice nor forgets what it spent."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

from spax import dp

SCRIPT = """
import json, pathlib, sys, time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from spax import dp

folder, steps, pause = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
KEY = jax.random.key(7)  # of the whole training; every step folds its number in
rng = np.random.default_rng(0)
data = tuple(jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((64, 3), (64,)))
sampling = dp.Poisson(rate=0.25, capacity=40, num_records=64)
gradient = dp.private_grad(
    lambda w, e, key: ((e[0] @ w - e[1]) ** 2, None),
    l2_clip_norm=1.0, noise_multiplier=1.5, sampling=sampling)
optimizer = optax.adam(0.05)


@jax.jit
def step(state):
    w, opt_state, privacy = state
    key_batch, key_noise = jax.random.split(jax.random.fold_in(KEY, privacy.steps))
    batch = dp.sample(key_batch, data, sampling)
    out, privacy = gradient(w, batch, privacy, key=key_noise)
    updates, opt_state = optimizer.update(out.grads, opt_state)
    return optax.apply_updates(w, updates), opt_state, privacy


state = jnp.zeros(3), optimizer.init(jnp.zeros(3)), dp.init_privacy(sampling)
options = ocp.CheckpointManagerOptions(max_to_keep=2)
with ocp.CheckpointManager(folder / "kept", options=options) as kept:
    if kept.latest_step() is not None:
        state = kept.restore(kept.latest_step(), args=ocp.args.StandardRestore(state))
        print("resumed at", int(state[2].steps), flush=True)
    while int(state[2].steps) < steps:
        state = step(state)
        kept.save(int(state[2].steps), args=ocp.args.StandardSave(state))
        kept.wait_until_finished()
        print("step", int(state[2].steps), flush=True)
        time.sleep(pause)
w, _, privacy = state
(folder / "end.json").write_text(json.dumps({
    "w": np.asarray(w).tolist(), "steps": int(privacy.steps),
    "epsilon": float(dp.epsilon(privacy, 1e-5))}))
"""


def started(folder, steps, pause=0.0):
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(SCRIPT)
    root = pathlib.Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(steps), str(pause)],
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_training_killed_in_the_middle_ends_as_if_it_had_not_been(tmp_path):
    steps = 8
    whole = started(tmp_path / "whole", steps)
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors

    broken = started(tmp_path / "broken", steps, pause=0.5)
    for line in broken.stdout:
        if line.strip() == "step 3":
            time.sleep(0.2)  # somewhere between two checkpoints, or in one
            broken.send_signal(signal.SIGKILL)
            break
    broken.communicate(timeout=60)
    assert broken.returncode == -signal.SIGKILL
    assert not (tmp_path / "broken" / "end.json").exists()
    again = started(tmp_path / "broken", steps)
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert output.startswith("resumed at")

    expected, found = (
        json.loads((tmp_path / name / "end.json").read_text()) for name in ("whole", "broken")
    )
    assert found == expected  # bit for bit, the receipt included
    assert found["steps"] == steps


SAMPLING = dp.Poisson(rate=0.5, capacity=16, num_records=16)


def loss_fn(w, example, key):
    x, y = example
    return (x @ w - y) ** 2, None


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(16, 3)), jnp.float32), jnp.asarray(
        rng.normal(size=16), jnp.float32
    )


@pytest.fixture(scope="module")
def gradient():
    return jax.jit(
        dp.private_grad(loss_fn, l2_clip_norm=1.0, noise_multiplier=2.0, sampling=SAMPLING)
    )


def private_batch(data, privacy):
    key_batch, key_noise = jax.random.split(jax.random.fold_in(jax.random.key(0), privacy.steps))
    return dp.sample(key_batch, data, SAMPLING), key_noise


def test_no_two_steps_share_their_noise(data, gradient):
    privacy, seen = dp.init_privacy(SAMPLING), []
    for _ in range(4):
        batch, key = private_batch(data, privacy)
        empty = dp.Batch(batch.data, jnp.zeros(16, bool))
        out, privacy = gradient(jnp.zeros(3), empty, privacy, key=key)
        seen.append(np.asarray(out.grads))
    assert len(np.unique(np.stack(seen), axis=0)) == 4


def test_gradients_accumulate_and_every_release_is_paid_for(data, gradient):
    """Two private gradients an update: their mean, by optax; two receipts, by spax."""
    optimizer = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2).gradient_transformation()
    w, privacy, grads = jnp.zeros(3), dp.init_privacy(SAMPLING), []
    opt_state = optimizer.init(w)
    for _ in range(2):
        batch, key = private_batch(data, privacy)
        out, privacy = gradient(w, batch, privacy, key=key)
        updates, opt_state = optimizer.update(out.grads, opt_state, w)
        w = optax.apply_updates(w, updates)
        grads.append(np.asarray(out.grads))
    np.testing.assert_allclose(w, -0.1 * np.mean(grads, axis=0), rtol=1e-5)
    assert int(privacy.steps) == 2


def test_a_large_batch_in_parts_is_one_release(data, gradient):
    """What ``chunk_size`` is for: memory of 5 rows at a time, one receipt, the same gradient."""
    parts = jax.jit(
        dp.private_grad(
            loss_fn, l2_clip_norm=1.0, noise_multiplier=2.0, sampling=SAMPLING, chunk_size=5
        )
    )
    batch, key = private_batch(data, dp.init_privacy(SAMPLING))
    (one, _), (other, privacy) = (
        step(jnp.zeros(3), batch, dp.init_privacy(SAMPLING), key=key) for step in (gradient, parts)
    )
    # (What rounding takes off the bound depends on the size of the parts.)
    np.testing.assert_allclose(one.grads, other.grads, rtol=1e-4, atol=1e-6)
    assert int(privacy.steps) == 1


class TrainState(train_state.TrainState):
    """Flax's, with the receipt beside the optimizer's state."""

    privacy: dp.PrivacyState


def test_a_flax_train_state_carries_the_receipt(data):
    net = nn.Dense(1)
    params = net.init(jax.random.key(1), data[0][:1])
    gradient = dp.private_grad(
        lambda params, e, key: ((net.apply(params, e[0])[0] - e[1]) ** 2, None),
        l2_clip_norm=1.0,
        noise_multiplier=2.0,
        sampling=SAMPLING,
    )
    state = TrainState.create(
        apply_fn=net.apply,
        params=params,
        tx=optax.adam(0.1),
        privacy=dp.init_privacy(SAMPLING),
    )

    @jax.jit
    def step(state):
        batch, key = private_batch(data, state.privacy)
        out, privacy = gradient(state.params, batch, state.privacy, key=key)
        return state.apply_gradients(grads=out.grads, privacy=privacy)

    for _ in range(3):
        state = step(state)
    assert int(state.step) == int(state.privacy.steps) == 3
    assert 0 < float(dp.epsilon(state.privacy, 1e-5)) < np.inf
