"""Gradients: the hooks of attacks, stand-in derivatives, and convolutions inside loops."""

from spax.gradients.backward_pass import bpda
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import eot, exact, nes, spsa

__all__ = ["bpda", "canonical_convolutions", "eot", "exact", "nes", "spsa"]
