"""Two processes, each with half of a batch, take the private gradient that one device takes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = '''
import json, sys

import jax

number, count, port = (int(v) for v in sys.argv[1:4])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, number)

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from spax import dp

assert jax.device_count() == count
rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=8).astype(np.float32)
mask = np.arange(8) % 4 > 0
sampling = dp.Poisson(rate=0.5, capacity=8, num_records=16)
mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
step = dp.private_grad(
    lambda w, e, key: ((e[0] @ w - e[1]) ** 2, None),
    l2_clip_norm=0.5, noise_multiplier=2.0, sampling=sampling, axis_name="data")


def shared(value):
    """One array over all processes, each of which gives its part."""
    return jax.make_array_from_process_local_data(
        NamedSharding(mesh, P("data")), np.split(value, count)[number])


def local(w, batch, privacy):
    out, privacy = step(w, batch, privacy, key=jax.random.key(3))
    return out.grads, privacy


sharded = jax.jit(jax.shard_map(
    local, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P()))
batch = dp.Batch((shared(x), shared(y)), shared(mask))
w, privacy = jnp.ones(3), dp.init_privacy(sampling)
for _ in range(2):
    grads, privacy = sharded(w, batch, privacy)
    w = w - 0.5 * grads
print(json.dumps({"w": np.asarray(w).tolist(), "steps": int(privacy.steps),
                  "spent": np.asarray(privacy.spent.total)[::500].tolist()}))
'''


def run(folder, count):
    """The output of each of ``count`` processes."""
    script = folder / "gradient.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(i), str(count), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    try:
        results = []
        for process in processes:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            results.append(json.loads(output.splitlines()[-1]))
        return results
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_processes_take_the_gradient_of_one(tmp_path):
    (alone,) = run(tmp_path, 1)
    first, second = run(tmp_path, 2)
    assert first == second
    np.testing.assert_allclose(first["w"], alone["w"], rtol=1e-5, atol=1e-6)
    assert first["steps"] == alone["steps"] == 2
    assert first["spent"] == alone["spent"]
