"""What the room's tests share."""

import jax.numpy as jnp

from spax import crypto


def fresh(number=0):
    """A key that is the same in every run."""
    return crypto.ChaChaKey(jnp.arange(8, dtype=jnp.uint32) + jnp.uint32(8 * number))
