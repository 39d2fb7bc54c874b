"""The command line: ``spax audit``, ``spax epsilon`` and ``spax --version``."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from spax._version import __version__

__all__ = ["main", "run"]

_DESCRIPTION = """\
Attacks and probes models and reports how secure and how private they are. Without --model and
--data: trains three small networks on the embedded digits (plainly, adversarially, with
differential privacy) and audits those."""

_EPSILON = """\
Reports the epsilon of differential privacy of noisy training, by all accountants that have a bound
for the way in which batches were drawn, and what the figures assume."""

_EPILOG = """\
--model runs your code: the module is imported (from the current directory too) and NAME is called.
NAME is one of
  a function logits_fn(x): x [B, ...] in the bounds of the data -> logits [B, K];
  a function that can be called without arguments and returns such a function;
  a spax.typing.Stochastic, or a spax.audit.Model, or a function that returns one.

--data FILE.npz holds x (or x_test) and y (or y_test), and x_train and y_train where the examples
that the model was trained on shall be told apart from the others. Pickled arrays are not loaded.

--budget: the three small networks take about a minute and a half with quick, ten minutes with
standard (AutoAttack as published, 500 examples) and forty with full (1,000 examples), on two cores.

--fail-under [MODEL:]METRIC=LEAST, METRIC one of clean, robust@EPS (accuracy under the worst
attack; EPS joins the grid, and at the radius of the summary AutoAttack counts too) and cw (median
l2 distance). Without MODEL: every model. Robustness that the masking checks do not trust does not
pass.

Exit code: 0 done, 1 a --fail-under was not reached, 2 bad input, 130 interrupted."""

INTERRUPTED = 130


class _Usage(Exception):
    """Arguments that make no sense; the message is one line."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise _Usage(f"{self.prog}: error: {' '.join(message.split())} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="spax", description="Secure and private AI: attack, defend, measure, in JAX."
    )
    parser.add_argument("--version", action="version", version=f"spax {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    audit = commands.add_parser(
        "audit",
        help="attack and probe a model; report how secure and how private it is",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_options(audit)
    audit.set_defaults(parser=audit)
    epsilon = commands.add_parser(
        "epsilon",
        help="what a recipe of private training costs, with the assumptions spelled out",
        description=_EPSILON,
        epilog="Exit code: 0 done, 2 bad input.",
        allow_abbrev=False,
    )
    _add_recipe(epsilon)
    epsilon.set_defaults(parser=epsilon)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--noise-multiplier",
        type=float,
        required=True,
        metavar="SIGMA",
        help="standard deviation of the noise over the clip norm, > 0",
    )
    parser.add_argument(
        "--sampling-rate",
        type=float,
        required=True,
        metavar="Q",
        help="share of the units in a batch (on average), in (0, 1]",
    )
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="number of batches")
    parser.add_argument("--delta", type=float, required=True, help="in (0, 1), below 1 / units")
    parser.add_argument(
        "--sampler",
        choices=("poisson", "fixed_size", "full_batch", "shuffled", "balls_in_bins"),
        default="poisson",
        help="how batches were drawn (poisson); each has a bound of its own",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_options(parser: argparse.ArgumentParser) -> None:
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
    how.add_argument(
        "--budget",
        choices=("quick", "standard", "full"),
        default="quick",
        help="what the attacks may spend (quick); see below",
    )
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


def run(argv: Sequence[str]) -> int:
    """Runs the command line in this process.

    Args:
      argv: the arguments.

    Returns:
      The exit code: 0 done, 1 a ``--fail-under`` was not reached, 2 bad input, 130 interrupted.
    """
    try:
        options, unknown = _parser().parse_known_args(argv)
        if unknown:
            options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        # Imported here: --version, --help and a slip of the fingers must not wait for JAX.
        if options.command == "epsilon":
            from spax.dp.accounting.cli import epsilon

            return epsilon(options)
        from spax.audit.cli import audit

        return audit(options)
    except _Usage as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("spax: interrupted; no half-written report is left", file=sys.stderr)
        return INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """The process: `run`, and an end at once where it was interrupted.

    Args:
      argv: the arguments; None: those of the process.

    Returns:
      The exit code of `run`.
    """
    code = run(sys.argv[1:] if argv is None else argv)
    if code == INTERRUPTED:
        # XLA may still compute on its own threads, and crashes if Python is taken down meanwhile.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
