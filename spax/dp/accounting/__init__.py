"""Privacy accountants: how much a sequence of releases gives away, never less than the truth."""

from spax.dp.accounting import rdp

__all__ = ["rdp"]
