"""Poisoning: attacks on the data that a model learns from."""

from spax.poisoning.label_flip import flip_labels

__all__ = ["flip_labels"]
