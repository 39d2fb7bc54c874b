"""The command line: ``spax audit`` and ``spax --version``."""

import argparse
import sys
from collections.abc import Sequence

from spax._version import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
      argv: the arguments; None: those of the process.

    Returns:
      0 when all is well, 1 where ``--fail-under`` was not reached, 2 on bad input.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["audit"]:
        # Imported here: `spax --version` must not wait for JAX.
        from spax.audit.cli import main as audit

        return audit(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="spax", description="Secure and private AI: attack, defend, measure, in JAX."
    )
    parser.add_argument("--version", action="version", version=f"spax {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    commands.add_parser(
        "audit", help="attack and probe a model; report how secure and how private it is"
    )
    parser.parse_args(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
