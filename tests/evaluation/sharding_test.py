"""A sweep says the same wherever its rows lie: on one device, several, or in several processes."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.evaluation import sharded_sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]


def mesh(devices):
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])


@pytest.mark.slow
def test_each_shard_is_a_batch_of_its_own_bit_for_bit():
    params, x, y = sharded_sweep.problem()
    alone = jax.jit(sharded_sweep.grid)
    half = len(x) // 2
    parts = [
        alone(params, x[rows], y[rows], jax.random.key(1))
        for rows in (slice(None, half), slice(half, None))
    ]
    success, distance = sharded_sweep.run(mesh(2), local=True)
    assert 0 < success.mean() < 1  # the case says something
    assert np.array_equal(success, np.concatenate([p[0] for p in parts], axis=-1))
    assert np.array_equal(distance, np.concatenate([p[1] for p in parts], axis=-1))


@pytest.mark.slow
def test_a_batch_over_a_mesh_is_the_batch_on_one_device():
    one, four = (sharded_sweep.run(mesh(n), local=False) for n in (1, 4))
    assert np.array_equal(one[0], four[0])
    both = np.isfinite(one[1])
    assert np.array_equal(both, np.isfinite(four[1]))
    assert np.allclose(one[1][both], four[1][both], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_say_what_one_says_bit_for_bit(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    # One device each, whatever the tests around have asked for.
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.evaluation.sharded_sweep", coordinator, "2"]
    running = [
        subprocess.Popen([*command, str(i), str(tmp_path / f"{i}.npz")], cwd=ROOT, env=environment)
        for i in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    success, distance = sharded_sweep.run(mesh(2), local=True)
    for i in range(2):
        with np.load(tmp_path / f"{i}.npz") as found:
            assert np.array_equal(found["success"], success)
            assert np.array_equal(found["distance"], distance)
