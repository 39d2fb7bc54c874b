"""The audit: how secure and how private is a model? Measured, with intervals, in one report."""

from spax.audit.budget import Budget
from spax.audit.errors import AuditError
from spax.audit.model import Model
from spax.audit.probes import STANDARD
from spax.audit.run import run
from spax.audit.sections import (
    AuditReport,
    Images,
    Measurement,
    Plot,
    Section,
    Series,
    Verdict,
)

__all__ = [
    "STANDARD",
    "AuditError",
    "AuditReport",
    "Budget",
    "Images",
    "Measurement",
    "Model",
    "Plot",
    "Section",
    "Series",
    "Verdict",
    "run",
]
