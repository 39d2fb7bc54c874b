"""Privacy accountants: how much a sequence of releases gives away, never less than the truth."""

from spax.dp.accounting import composition, gdp, moments, pld, rdp, zcdp

__all__ = ["composition", "gdp", "moments", "pld", "rdp", "zcdp"]
