"""What a probe reports: measured figures, verdicts and pictures, as frozen data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["AuditReport", "Images", "Measurement", "Plot", "Section", "Series", "Verdict"]

SCHEMA_VERSION = 1
LEVELS = ("ok", "note", "warning", "failure")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One measured figure.

    Args:
      model: name of the model it is about; empty for the data.
      name: what was measured, such as ``"robust_accuracy"``.
      value: the figure; None where it could not be measured (``note`` says why), infinite where
        that is the truth.
      definition: one sentence: what the figure means and how it was taken.
      low: lower end of its 95 % confidence interval, if it has one.
      high: upper end.
      settings: everything needed to take it again: attack, eps, norm, steps, examples.
      headline: its column in the summary table; empty: not in the table.
      kind: how it is written: ``"share"`` (as a percentage), ``"number"`` or ``"count"``.
      note: a remark that belongs beside the figure.
    """

    model: str
    name: str
    value: float | None
    definition: str
    low: float | None = None
    high: float | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    headline: str = ""
    kind: str = "number"
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One judgement about a model; ``level``: "ok", "note", "warning" or "failure"."""

    model: str
    name: str
    level: str
    text: str


@dataclasses.dataclass(frozen=True)
class Series:
    """One line or set of points: ``x`` and ``y`` of equal length, with an optional band."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    style: str = "line"  # "line", "dashed", "points", "steps"


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines or points over two axes; ``log`` names the logarithmic ones (``""``, "x", "xy")."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log: str = ""
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Images:
    """A grid of images ``[rows, columns, H, W, C]`` in [0, 1], labelled by row and by cell."""

    title: str
    pixels: np.ndarray
    row_labels: tuple[str, ...]
    cell_labels: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """What one probe found."""

    name: str
    title: str
    text: str = ""
    measurements: tuple[Measurement, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    plots: tuple[Plot, ...] = ()
    images: tuple[Images, ...] = ()


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """The whole audit.

    Args:
      title: one line.
      models: names of the audited models, in order.
      data: name, shapes, classes and bounds of the data.
      settings: budget, eps grid, norm, seed and everything else that was chosen.
      versions: of spax, jax and their like, and of the machine's backend.
      sections: what the probes found, in order.
      timings: seconds a stage took, start and end: never part of what is compared.
    """

    title: str
    models: tuple[str, ...]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    sections: tuple[Section, ...]
    timings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
