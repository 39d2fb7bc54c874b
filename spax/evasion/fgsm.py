"""The gradient sign family: one step, iterated, with momentum, and projected from random starts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax.checks import check_batch, check_choice, check_count, check_key, check_number
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import cross_entropy, hits, misclassified
from spax.norms import box, displace, example_keys, project, sample, steepest
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Gradient,
    Key,
    Model,
    Number,
    PerExampleLoss,
    PyTree,
    Stochastic,
    call,
    expand,
)

__all__ = ["bim", "fgsm", "least_likely", "mi_fgsm", "pgd"]

_PGD_NORMS = ("linf", "l2", "l1")


class _Best(NamedTuple):
    x: Array
    fooled: Array  # share of the hook's draws that fool: 0 or 1 for one draw
    value: Array


def _better(best: _Best, x: Array, value: Array, fooled: Array) -> _Best:
    """Prefers what fools, then the higher loss; a NaN is never better."""
    wins = (fooled > best.fooled) | ((fooled == best.fooled) & (value > best.value))
    return _Best(
        jnp.where(expand(wins, wins).reshape((-1,) + (1,) * (x.ndim - 1)), x, best.x),
        jnp.where(wins, fooled, best.fooled),
        jnp.where(wins, value, best.value),
    )
