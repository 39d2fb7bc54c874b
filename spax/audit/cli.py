"""``spax audit``: the command line of the audit."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import NoReturn

import jax
from rich.console import Console

from spax.audit import fail_under
from spax.audit.budget import BUDGETS, Budget
from spax.audit.errors import AuditError
from spax.audit.loading import load_model
from spax.audit.progress import Part, Progress, Silent
from spax.audit.render import folder, terminal
from spax.audit.run import STANDARD, expected_units, run
from spax.audit.sections import AuditReport
from spax.datasets import DatasetError, digits, load_npz

__all__ = ["main"]

_DESCRIPTION = """\
Attacks and probes models and reports how secure and how private they are. Without --model and
--data: trains three small networks on the embedded digits (plainly, adversarially, with
differential privacy) and audits those."""

_EPILOG = """\
--model runs your code: the module is imported (from the current directory too) and NAME is called.
NAME is one of
  a function logits_fn(x): x [B, ...] in the bounds of the data -> logits [B, K];
  a function that can be called without arguments and returns such a function;
  a spax.typing.Stochastic, or a spax.audit.Model, or a function that returns one.

--data FILE.npz holds x (or x_test) and y (or y_test), and x_train and y_train where the examples
that the model was trained on shall be told apart from the others. Pickled arrays are not loaded.

--fail-under [MODEL:]METRIC=LEAST, METRIC one of clean, robust@EPS (accuracy under the worst
attack; EPS joins the grid) and cw (median l2 distance). Without MODEL: every model. Robustness that
the masking checks do not trust does not pass.

Exit code: 0 done, 1 a --fail-under was not reached, 2 bad input, 130 interrupted."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise AuditError(f"{message} (see spax audit --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="spax audit",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what is audited")
    what.add_argument(
        "--model",
        metavar="PACKAGE.MODULE:NAME",
        help="the model, or a factory of it; RUNS YOUR CODE (needs --data)",
    )
    what.add_argument("--data", metavar="FILE.npz", help="labelled examples (needs --model)")
    what.add_argument(
        "--bounds",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="valid range of the inputs (0 1); uint8 images are scaled to it",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--eps",
        nargs="+",
        default=[],
        metavar="EPS",
        help="radii of the attacks, in the units of the inputs, such as 0.1 0.2 or 8/255",
    )
    how.add_argument("--norm", choices=("linf", "l2", "l1"), default="linf", help="(linf)")
    how.add_argument("--budget", choices=("quick", "standard"), default="quick", help="(quick)")
    how.add_argument("--max-examples", type=int, metavar="N", help="examples attacked, at most")
    how.add_argument("--batch-size", type=int, metavar="N", help="examples at a time, at most")
    how.add_argument("--seed", type=int, default=0, help="of all randomness (0)")
    result = parser.add_argument_group("what comes out")
    result.add_argument(
        "--out",
        default="spax-report",
        metavar="DIR",
        help="folder for report.html and report.json (spax-report)",
    )
    result.add_argument("--json", action="store_true", help="print report.json instead of a table")
    result.add_argument("--quiet", action="store_true", help="print neither progress nor table")
    result.add_argument(
        "--fail-under",
        action="append",
        default=[],
        metavar="METRIC=LEAST",
        help="exit with code 1 unless reached, such as robust@0.1=0.5; may be repeated",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``spax audit``.

    Args:
      argv: the arguments after ``spax audit``; None: those of the process.

    Returns:
      The exit code: 0 done, 1 a ``--fail-under`` was not reached, 2 bad input, 130 interrupted.
    """
    try:
        options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
        return _audit(options)
    except KeyboardInterrupt:
        print("spax audit: interrupted, no report was written", file=sys.stderr)
        return 130
    except (AuditError, DatasetError) as error:
        print(f"spax audit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _audit(options: argparse.Namespace) -> int:
    gates = [fail_under.parse(text) for text in options.fail_under]
    if (options.model is None) != (options.data is None):
        given, missing = (
            ("--model", "--data FILE.npz") if options.model else ("--data", "--model MODULE:NAME")
        )
        raise AuditError(f"{given} was given alone; give {missing} too, or neither for the digits")
    if options.model is None and options.bounds is not None:
        raise AuditError("--bounds belongs to --data; the digits have their own")
    if not 0 <= options.seed < 2**32:
        raise AuditError(f"--seed must be in [0, 2**32) (got {options.seed})")
    budget = _budget(options, gates)
    folder.check(options.out)

    report = _report(options, gates, budget)
    page = folder.write(report, options.out)
    if options.json:
        sys.stdout.write((page.parent / "report.json").read_text(encoding="utf-8"))
    elif not options.quiet:
        terminal.print_report(report, Console(), page.parent)
    failed = fail_under.failures(gates, report)
    for line in failed:
        print(f"spax audit: --fail-under {line}", file=sys.stderr)
    return 1 if failed else 0


def _report(
    options: argparse.Namespace, gates: Sequence[fail_under.Gate], budget: Budget
) -> AuditReport:
    """Loads or trains the models, and audits them: one bar of progress for all of it."""
    progress: Progress = (
        Silent() if options.quiet else terminal.console_progress(Console(stderr=True))
    )
    key_train, key_run = jax.random.split(jax.random.key(options.seed))
    if options.model is None:
        from spax.audit.defaults import TRAINING_UNITS, train  # optax, for nothing else

        data, units = digits(), sum(TRAINING_UNITS.values())
        fail_under.check_names(gates, tuple(TRAINING_UNITS))
    else:
        data, units = load_npz(options.data, bounds=options.bounds), 0.0
        models = {options.model.rpartition(":")[2]: load_model(options.model)}
        fail_under.check_names(gates, tuple(models))
    progress.start(units + expected_units(STANDARD))
    try:
        if options.model is None:
            models = train(data, key=key_train, progress=Part(progress))
        report = run(models, data, budget=budget, key=key_run, progress=Part(progress))
    finally:
        progress.finish()
    chosen = {"seed": options.seed, "model": options.model}
    return dataclasses.replace(report, settings={**chosen, **report.settings})


def _budget(options: argparse.Namespace, gates: Sequence[fail_under.Gate]) -> Budget:
    """The budget named, with what the other options change; radii of gates join the grid."""
    given = {
        name: getattr(options, name)
        for name in ("max_examples", "batch_size")
        if getattr(options, name) is not None
    }
    eps = [_radius(word) for text in options.eps for word in text.split(",") if word]
    budget = dataclasses.replace(BUDGETS[options.budget], norm=options.norm, **given)
    wanted = [gate.eps for gate in gates if gate.eps is not None]
    if wanted and not eps:
        bounds = (0.0, 1.0) if options.bounds is None else tuple(options.bounds)
        eps = list(budget.for_bounds(bounds).eps)
    return dataclasses.replace(budget, eps=(*eps, *wanted))


def _radius(text: str) -> float:
    """A number, or a fraction such as 8/255."""
    over, slash, under = text.partition("/")
    try:
        return float(over) / (float(under) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise AuditError(f"--eps takes numbers such as 0.1 or 8/255 (got {text!r})") from None
