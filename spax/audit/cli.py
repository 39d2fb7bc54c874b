"""``spax audit``: the command line of the audit."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from spax.audit.errors import AuditError

__all__ = ["load_model", "main"]

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
    # The checks of data and models are AuditErrors too; spax.datasets needs JAX, --help does not.
    try:
        options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
        return _audit(options)
    except KeyboardInterrupt:
        print("spax audit: interrupted, no report was written", file=sys.stderr)
        return 130
    except AuditError as error:
        return _refuse(str(error))
    except ValueError as error:
        from spax.datasets import DatasetError

        if not isinstance(error, DatasetError):
            raise
        return _refuse(str(error))


def _refuse(message: str) -> int:
    print(f"spax audit: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _audit(options: argparse.Namespace) -> int:
    from spax.audit import fail_under

    gates = [fail_under.parse(text) for text in options.fail_under]
    if (options.model is None) != (options.data is None):
        given, missing = (
            ("--model", "--data FILE.npz") if options.model else ("--data", "--model M:F")
        )
        raise AuditError(f"{given} was given alone; give {missing} too, or neither for the digits")
    if options.model is None and options.bounds is not None:
        raise AuditError("--bounds belongs to --data; the digits have their own")
    if not 0 <= options.seed < 2**32:
        raise AuditError(f"--seed must be in [0, 2**32) (got {options.seed})")
    budget = _budget(options, gates)

    import jax
    from rich.console import Console

    from spax.audit.defaults import TRAINING_UNITS
    from spax.audit.progress import Silent
    from spax.audit.render import folder, terminal
    from spax.datasets import digits

    folder.check(options.out)
    log = Console(stderr=True)
    progress = Silent() if options.quiet else terminal.console_progress(log)
    key_train, key_run = jax.random.split(jax.random.key(options.seed))
    settings: dict[str, Any] = {"seed": options.seed}
    if options.model is None:
        data = digits()
        names = tuple(TRAINING_UNITS)
        fail_under.check_names(gates, names)
    ...
    return 0
