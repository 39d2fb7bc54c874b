"""Runs the probes and puts what they find into one report."""

import dataclasses
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax._version import __version__
from spax.audit.budget import BUDGETS, Budget
from spax.audit.conclusion import conclude
from spax.audit.data import check_data, describe_data
from spax.audit.errors import AuditError
from spax.audit.inspection import inspect
from spax.audit.model import Model
from spax.audit.probes import STANDARD
from spax.audit.progress import Progress, Silent
from spax.audit.sections import AuditReport, Measurement, Section
from spax.datasets import Dataset
from spax.typing import Key

__all__ = ["STANDARD", "Probe", "expected_units", "run"]

Probe = Callable[[dict[str, Model], Dataset, Budget, Key], Section]

# About how many seconds the probes take on small models, mostly of compilation, for the time left;
# a new probe may be missing.
_UNITS = {
    "clean": 1.5,
    "robustness": 6.0,
    "strongest": 15.0,
    "distance": 9.0,
    "masking": 13.0,
    "membership": 0.5,
    "privacy": 1.5,
}
_OTHER = 3.0


def expected_units(probes: Sequence[Probe]) -> float:
    """How many units of progress `run` will report: one for the inspection, and the probes'."""
    return 1.0 + sum(_units(probe) for probe in probes)


def _units(probe: Probe) -> float:
    return _UNITS.get(_name(probe), _OTHER)


def _name(probe: Probe) -> str:
    return getattr(probe, "__name__", type(probe).__name__)


def run(
    models: Mapping[str, Model],
    data: Dataset,
    *,
    probes: Sequence[Probe] = STANDARD,
    budget: str | Budget = "quick",
    key: Key,
    title: str = "Security and privacy audit",
    progress: Progress | None = None,
) -> AuditReport:
    """Audits models on data: measures what can be attacked and what leaks.

    Args:
      models: `Model` by name; models of the same ``apply_fn`` share what is compiled.
      data: test examples, and the training examples where membership shall be measured.
      probes: functions ``(models, data, budget, key) -> Section``; probe i gets
        ``fold_in(key, i)``.
      budget: ``"quick"``, ``"standard"``, ``"full"`` or a `Budget`: radii, norm, and how much to
        spend.
      key: a random key; all randomness comes from it.
      title: of the report.
      progress: shows how far the audit is; None: nothing does.

    Returns:
      The report: the verdict on each model's robustness, then one section a probe, in their order.

    Guarantees:
      The same key, data, models, versions and machine give the same figures; all but ``timings``
      is then equal.

    Raises:
      AuditError: if models, data or budget cannot be used; one line that names cause and remedy.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from spax.datasets import Dataset
      >>> x = np.eye(4, dtype=np.float32)
      >>> data = Dataset(None, None, x, np.arange(4, dtype=np.int32), "corners")
      >>> report = run({"linear": Model(lambda x: 9 * x)}, data, probes=STANDARD[:1],
      ...              key=jax.random.key(0))
      >>> report.sections[0].measurements[0].value
      1.0
    """
    models = _checked_models(models)
    check_data(data)
    budget = _checked_budget(budget).for_bounds(data.bounds)
    _check_key(key)
    if not isinstance(probes, Sequence) or not all(map(callable, probes)):
        raise AuditError(
            "probes must be a sequence of functions (models, data, budget, key) -> Section, such "
            f"as spax.audit.STANDARD (got {probes!r})"
        )
    progress = progress or Silent()
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    seconds: dict[str, float] = {}
    sections: list[Section] = []

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name], clock = now - clock, now

    progress.start(expected_units(probes))
    try:
        progress.advance(0.0, "looking at the models")
        inspect(models, data, jax.random.fold_in(key, len(probes)), budget.batch_size)
        lap("inspection")
        pending = 1.0
        for i, probe in enumerate(probes):
            name, units = _name(probe), _units(probe)
            progress.advance(pending, name)
            steps = _Steps(progress, units)
            told = dataclasses.replace(budget, tell=steps)
            found = probe(models, data, told, jax.random.fold_in(key, i))
            if not isinstance(found, Section):
                raise AuditError(
                    f"probe {name} must return a spax.audit.Section (got {type(found).__name__})"
                )
            sections.append(found)
            lap(name)
            pending = units - steps.done
        progress.advance(pending, "writing the report")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise AuditError(
                f"out of memory with batches of {budget.batch_size} examples; "
                "lower the batch size (--batch-size)"
            ) from error
        raise
    finally:
        progress.finish()
    verdict = conclude(tuple(models), sections, budget)
    return AuditReport(
        title=title,
        models=tuple(models),
        data=describe_data(data),
        settings={
            "key": np.asarray(jax.random.key_data(key)).ravel().tolist(),
            "budget": budget.settings(),
            "probes": [_name(probe) for probe in probes],
        },
        versions=_versions(),
        sections=_with_doubts([verdict, *sections] if verdict else sections),
        timings={
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
        },
    )


def _check_key(key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.ndim == 1
    if not (typed and key.ndim == 0) and not raw:
        got = f"an array of shape {key.shape}" if isinstance(key, jax.Array) else repr(key)
        raise AuditError(f"an audit draws: pass key=jax.random.key(0) (got key={got})")


class _Steps:
    """Turns the shares of a probe into units of the whole audit."""

    def __init__(self, progress: Progress, units: float) -> None:
        self.progress, self.units, self.done = progress, units, 0.0

    def __call__(self, share: float, text: str) -> None:
        step = min(max(share, 0.0), 1.0) * self.units - self.done
        self.progress.advance(max(step, 0.0), text)
        self.done += max(step, 0.0)


def _checked_models(models: Any) -> dict[str, Model]:
    if not isinstance(models, Mapping) or not models:
        raise AuditError(
            "models must be a dict of at least one model by name, such as "
            '{"mine": Model(logits_fn)} '
            f"(got {type(models).__name__ if models else 'none'})"
        )
    for name, model in models.items():
        if not isinstance(name, str) or not name:
            raise AuditError(f"a model's name must be a string that is not empty (got {name!r})")
        if not isinstance(model, Model):
            raise AuditError(
                f"model {name!r} must be a spax.audit.Model (got {type(model).__name__}); "
                "wrap it: Model(logits_fn)"
            )
    return dict(models)


def _checked_budget(budget: Any) -> Budget:
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, str) and budget in BUDGETS:
        return BUDGETS[budget]
    raise AuditError(f"budget must be {', '.join(BUDGETS)}, or a Budget (got {budget!r})")


def _with_doubts(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Notes beside each robustness figure of a model whose masking checks found a sign."""
    doubted = {
        verdict.model
        for section in sections
        for verdict in section.verdicts
        if verdict.name in ("robustness", "masking") and verdict.level == "failure"
    }

    def noted(m: Measurement) -> Measurement:
        if m.model not in doubted or m.name not in ("robust_accuracy", "distance_median"):
            return m
        note = "; ".join(filter(None, ("not trustworthy: gradients are masked", m.note)))
        return dataclasses.replace(m, note=note)

    return tuple(
        dataclasses.replace(s, measurements=tuple(map(noted, s.measurements))) for s in sections
    )


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
    device = jax.devices()[0]
    return {
        "spax": __version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "backend": f"{device.platform} ({device.device_kind})",
    }
