"""A sweep whose batch is spread over a mesh; run as a script, one of several processes of it.

python -m tests.evaluation.sharded_sweep COORDINATOR PROCESSES INDEX OUT.npz
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spax.evaluation import sweep, worst_of
from spax.evasion import apgd, pgd

EPS = np.array([0.05, 0.1, 0.2], np.float32)
ROWS = 16


def problem():
    """A small convolutional network with random weights, and inputs that it labels itself."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "kernel": 0.5 * jax.random.normal(keys[0], (3, 3, 1, 4)),
        "dense": 0.5 * jax.random.normal(keys[1], (4 * 16, 3)),
    }
    x = jax.random.uniform(keys[2], (ROWS, 8, 8, 1), minval=0.2, maxval=0.8)
    return params, np.asarray(x), np.asarray(jnp.argmax(apply_fn(params, x), axis=-1))


def apply_fn(params, x):
    x = jax.lax.conv_general_dilated(
        x, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(x).reshape(len(x), -1) @ params["dense"]


def grid(params, x, y, key):
    """All radii, both attacks and their restarts, in one program: success [R, B], distance [B]."""
    attack = worst_of([partial(pgd, steps=5, restarts=2), partial(apgd, steps=5)])
    found = sweep(attack, partial(apply_fn, params), x, y, key=key, eps=EPS, norm="linf")
    return found.success, found.distance


def spread(mesh, *, local):
    """The program over a mesh with axis ``data``; ``local``: each shard as a batch of its own."""
    rows = P("data")
    if local:
        program = jax.shard_map(
            grid, mesh=mesh, in_specs=(P(), rows, rows, P()), out_specs=(P(None, "data"), rows)
        )
    else:
        program = grid
    return jax.jit(program, out_shardings=NamedSharding(mesh, P()))


def run(mesh, *, local):
    """Both results, whole, as NumPy arrays."""
    params, x, y = problem()
    place = NamedSharding(mesh, P("data"))
    x, y = (jax.make_array_from_callback(v.shape, place, lambda i, v=v: v[i]) for v in (x, y))
    found = spread(mesh, local=local)(params, x, y, jax.random.key(1))
    return [np.asarray(v.addressable_data(0)) for v in found]


def main(coordinator, processes, index, out):
    jax.distributed.initialize(coordinator, int(processes), int(index))
    success, distance = run(jax.make_mesh((int(processes),), ("data",)), local=True)
    np.savez(out, success=success, distance=distance)


if __name__ == "__main__":
    main(*sys.argv[1:])
