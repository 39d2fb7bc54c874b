"""``spax audit``: what the options of the command line ask for."""

import argparse
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn, TypeVar

import jax
from rich.console import Console

from spax.audit import fail_under
from spax.audit.budget import BUDGETS, Budget
from spax.audit.defaults import TRAINING_UNITS, train
from spax.audit.errors import AuditError
from spax.audit.loading import load_model
from spax.audit.numbers import real
from spax.audit.progress import Part, Progress, Silent
from spax.audit.render import folder, terminal
from spax.audit.run import STANDARD, expected_units, run
from spax.audit.sections import AuditReport
from spax.datasets import Dataset, DatasetError, digits, load_npz

__all__ = ["audit"]

_T = TypeVar("_T")


def audit(options: argparse.Namespace) -> int:
    """Runs ``spax audit``.

    Args:
      options: as the parser of `spax.__main__` reads them.

    Returns:
      The exit code: 0 done, 1 a ``--fail-under`` was not reached, 2 bad input.
    """
    try:
        gates = [fail_under.parse(text) for text in options.fail_under]
        _check(options)
        folder.check(options.out)
        own = options.model is not None
        data = load_npz(options.data, bounds=options.bounds) if own else digits()
        names = (options.model.rpartition(":")[2],) if own else tuple(TRAINING_UNITS)
        fail_under.check_names(gates, names)
        budget = _budget(options, gates, data.bounds)
        # Nothing but the result belongs on standard output, whatever a model prints.
        with contextlib.redirect_stdout(sys.stderr):
            report = _report(options, names, data, budget)
        with _terminated_tidily():
            page = folder.write(report, options.out)
    except (AuditError, DatasetError) as error:
        print(f"spax audit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.json:
        sys.stdout.write((page.parent / "report.json").read_text(encoding="utf-8"))
    elif not options.quiet:
        terminal.print_report(report, Console(), page.parent)
    failed = fail_under.failures(gates, report)
    for line in failed:
        print(f"spax audit: --fail-under {line}", file=sys.stderr)
    return 1 if failed else 0


_ATTACKED = ("distance_examples", "masking_examples", "strong_examples")


def _check(options: argparse.Namespace) -> None:
    """Raises unless the options fit together."""
    if options.model is None and options.data is not None:
        raise AuditError("--data was given alone; give --model MODULE:NAME too")
    if options.data is None and options.model is not None:
        raise AuditError("--model was given alone; give --data FILE.npz too")
    if options.model is None and options.bounds is not None:
        raise AuditError("--bounds belongs to --data; the digits have their own")
    if not 0 <= options.seed < 2**32:
        raise AuditError(f"--seed must be in [0, 2**32) (got {options.seed})")


def _budget(
    options: argparse.Namespace, gates: Sequence[fail_under.Gate], bounds: tuple[float, float]
) -> Budget:
    """The budget named, with what the other options change; radii of gates join the grid."""
    given = {
        name: getattr(options, name)
        for name in ("max_examples", "batch_size")
        if getattr(options, name) is not None
    }
    eps = [_radius(word) for text in options.eps for word in text.split(",") if word.strip()]
    if options.eps and not eps:
        raise AuditError(f"--eps names no radius (got {options.eps[0]!r})")
    budget = dataclasses.replace(BUDGETS[options.budget], norm=options.norm, **given)
    few = {n: min(getattr(budget, n), budget.max_examples) for n in _ATTACKED}
    budget = dataclasses.replace(budget, **few)
    wanted = [gate.eps for gate in gates if gate.eps is not None]
    if wanted and not eps:
        eps = list(budget.for_bounds(bounds).eps)
    return dataclasses.replace(budget, eps=(*eps, *wanted))


def _radius(text: str) -> float:
    try:
        return real(text)
    except ValueError:
        raise AuditError(f"--eps takes numbers such as 0.1 or 8/255 (got {text!r})") from None


def _report(
    options: argparse.Namespace, names: Sequence[str], data: Dataset, budget: Budget
) -> AuditReport:
    """Loads or trains the models, and audits them: one bar of progress for all of it."""
    key_train, key_run = jax.random.split(jax.random.key(options.seed))
    progress: Progress = (
        Silent() if options.quiet else terminal.console_progress(Console(stderr=True))
    )
    part, units = Part(progress), expected_units(STANDARD)
    try:
        if options.model is None:
            progress.start(sum(TRAINING_UNITS.values()) + units)
            models = _aside(partial(train, data, key=key_train, progress=part))
        else:
            progress.start(units)
            progress.advance(0.0, f"loading {options.model}")
            models = {names[0]: load_model(options.model)}
            progress.start(units)  # anew: how long their code takes says nothing about ours
        work = partial(run, models, data, probes=STANDARD, budget=budget, key=key_run)
        report = _aside(partial(work, progress=part))
    finally:
        progress.finish()
    chosen = {"seed": options.seed, "model": options.model}
    return dataclasses.replace(report, settings={**chosen, **report.settings})


def _aside(work: Callable[[], _T]) -> _T:
    """Runs it on another thread, so that Ctrl-C is heard at once and not when XLA has finished."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work).result()
    finally:
        pool.shutdown(wait=False)


@contextlib.contextmanager
def _terminated_tidily() -> Iterator[None]:
    """Meanwhile SIGTERM is an exception, so that what was begun is taken back."""

    def stop(signum: int, frame: object) -> NoReturn:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
