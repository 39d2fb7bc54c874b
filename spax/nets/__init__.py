"""Flax networks for audits, tests and benchmarks; the only room that imports Flax.

Nothing in the package requires them: every function takes models as plain functions,
``logits_fn = lambda x: net.apply(params, x)``.
"""

from spax.nets.convolutional import CNN, MLP

__all__ = ["CNN", "MLP"]
