"""The report as strict JSON, for programs."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from spax.audit.render.text import named
from spax.audit.sections import SCHEMA_VERSION, AuditReport, Images

__all__ = ["SCHEMA", "to_json"]

SCHEMA = "spax.audit.report"


def to_json(report: AuditReport) -> str:
    """The report as JSON text: every figure with its definition and settings, in order.

    All but the last block, ``timings``, depends on nothing but what was found. Numbers that JSON
    does not know are the strings ``"Infinity"``, ``"-Infinity"`` and ``"NaN"``. Of images the
    labels are kept, not the pixels.

    Args:
      report: the report.

    Returns:
      The text, which ends in a line break; ``schema_version`` grows when a reader has to change.

    Example:
      >>> import json
      >>> report = AuditReport("Audit", ("m",), {}, {"eps": float("inf")}, {}, ())
      >>> json.loads(to_json(report))["settings"]
      {'eps': 'Infinity'}
    """
    fields = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
    timings = fields.pop("timings")
    document = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **fields, "timings": timings}
    return json.dumps(_simple(document), indent=1, allow_nan=False) + "\n"


def _simple(value: Any) -> Any:
    """The value made of what JSON knows."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Images):
        shown = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        shown["pixels"] = {"shape": np.shape(value.pixels)}
        return _simple(shown)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _simple(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _simple(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_simple(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((_simple(v) for v in value), key=repr)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return _simple(value.tolist())
    return named(value)
