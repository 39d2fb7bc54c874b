"""Clipping rules: how long a per-example gradient may be, and what that makes of its length."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_number
from spax.typing import Array, PyTree

__all__ = ["Rule", "automatic", "flat", "normalised", "per_layer"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What `clipped_grad` scales gradients by; made by `flat`, `per_layer` and their like.

    Args:
      name: of the rule.
      scale: ``(length, unit, limit) -> s``: of a gradient whose length is ``length * unit``, what
        to multiply ``gradient / unit`` by. The product must be no longer than the limit.
      groups: ``params -> (group of each leaf, share of each group)``: groups are clipped by
        themselves, each at its share of the bound; the squares of the shares add up to 1.
      shrinks: whether short gradients are scaled as well as long ones.
    """

    name: str
    scale: Callable[[Array, Array, Array], Array]
    groups: Callable[[PyTree], tuple[list[int], np.ndarray]]
    shrinks: bool


def _together(params: PyTree) -> tuple[list[int], np.ndarray]:
    return [0] * len(jax.tree.leaves(params)), np.ones(1)


def _cut(length: Array, unit: Array, limit: Array) -> Array:
    return jnp.minimum(unit, limit / jnp.maximum(length, jnp.finfo(jnp.float32).tiny))


flat = Rule("flat", _cut, _together, False)
"""The whole gradient at length C: ``min(1, C / |g|)`` (Abadi et al. 2016, arXiv:1607.00133)."""


def per_layer(groups: PyTree = None, *, shares: Mapping[Any, float] | None = None) -> Rule:
    """Clips groups of parameters by themselves: group l at ``C_l``, ``sum C_l^2 = C^2``.

    Args:
      groups: a prefix of the parameters' pytree; leaves with the same label (anything hashable but
        None) are one group. None: every array is a group.
      shares: by label, > 0: the proportions of the ``C_l``. None: all the same, ``C / sqrt(L)``.

    Returns:
      A rule for `clipped_grad`.

    Guarantees:
      The sensitivity is C, as with `flat`: for bounds ``C_l`` of your own take them as shares and
      ``l2_clip_norm = sqrt(sum C_l^2)``.

    Raises:
      ValueError: if a share is not positive; at the call: if the groups are not a prefix of the
        parameters, or not those that there are shares for.

    Example:
      >>> rule = per_layer({"conv": "a", "dense": "b"}, shares={"a": 3.0, "b": 4.0})
      >>> rule.groups({"conv": [1.0, 2.0], "dense": 3.0})
      ([0, 0, 1], array([0.6, 0.8]))

    References:
      H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, Learning differentially private recurrent
      language models, 2018, arXiv:1710.06963, Section 3.
    """
    for share in (shares or {}).values():
        check_number("shares", share, low=0, low_open=True, scalar=True)

    def of(params: PyTree) -> tuple[list[int], np.ndarray]:
        leaves = jax.tree.leaves(params)
        labels = list(range(len(leaves)))
        if groups is not None:
            labels = jax.tree.leaves(jax.tree.broadcast(groups, params))
        names = list(dict.fromkeys(labels))
        if shares is not None and set(shares) != set(names):
            raise ValueError(f"shares must be those of the groups {names} (got {dict(shares)})")
        sizes = np.array([1.0 if shares is None else float(shares[name]) for name in names])
        return [names.index(label) for label in labels], sizes / np.sqrt(np.sum(sizes**2))

    return Rule("per layer", _cut, of, False)


def automatic(gamma: float = 0.01) -> Rule:
    """Scales every gradient by ``C / (|g| + gamma)``: no gradient is cut, and C is a learning rate.

    Args:
      gamma: > 0, static.

    Returns:
      A rule for `clipped_grad`.

    Guarantees:
      The sensitivity is C (1 in the paper, which folds C into the learning rate).

    Raises:
      ValueError: if gamma is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from spax.dp import Batch, clipped_grad
      >>> fn = clipped_grad(lambda w, x, key: (w * x, None), l2_clip_norm=1.0, rule=automatic(1.0))
      >>> total, _ = fn(jnp.float32(0), Batch(jnp.array([3.0]), jnp.array([True])))
      >>> round(float(total), 3)
      0.75

    References:
      Z. Bu, Y.-X. Wang, S. Zha, G. Karypis, Automatic clipping: differentially private deep
      learning made easier and stronger, 2022, arXiv:2206.07136, Equation 3.1.
    """
    check_number("gamma", gamma, low=0, low_open=True, scalar=True)

    def scale(length: Array, unit: Array, limit: Array) -> Array:
        return limit / (length + gamma / unit)

    return Rule(f"automatic, gamma {gamma:g}", scale, _together, True)


def _unit_length(length: Array, unit: Array, limit: Array) -> Array:
    return limit / jnp.maximum(length, 1e-12 / unit)


normalised = Rule("normalised", _unit_length, _together, True)
"""Every gradient at length C: ``C / max(|g|, 1e-12)`` (Das et al. 2021; Yang et al. 2022,
arXiv:2206.13033)."""
