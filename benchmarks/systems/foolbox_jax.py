"""Foolbox on JAX, with the model jitted."""

from functools import partial

import foolbox
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import victim
from benchmarks.systems import Job, foolbox_attacks

PACKAGES = ("foolbox", "eagerpy", "jax", "jaxlib", "numpy")


def _on_jax(attack, path, *, batch_size, **settings) -> Job:
    params, x, y = jax.device_put(victim.load(path, batch_size))
    predict = jax.jit(victim.apply_fn)
    model = foolbox.JAXModel(lambda x: predict(params, x), bounds=(0, 1))
    return attack(model, x, jnp.asarray(y), jax.block_until_ready, np.asarray, **settings)


pgd_linf = partial(_on_jax, foolbox_attacks.pgd_linf)
eps_sweep = partial(_on_jax, foolbox_attacks.eps_sweep)
carlini_wagner_l2 = partial(_on_jax, foolbox_attacks.carlini_wagner_l2)
deepfool_l2 = partial(_on_jax, foolbox_attacks.deepfool_l2)
elastic_net = partial(_on_jax, foolbox_attacks.elastic_net)
