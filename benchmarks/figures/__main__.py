"""Takes the figures of README's systems table, on real data, and stores them as JSON.

    python -m benchmarks.figures             # all of them
    python -m benchmarks.figures evasion dp  # some

The attacks meet the MNIST network of `benchmarks.victim` (its first 300 correctly classified test
images; the embedded digits where SPAX_DATA is not set), the rest runs on the embedded digits. A
module of this folder with a function ``measure() -> dict`` gives one file in
``benchmarks/results/figures/``; the table itself is rendered by ``python systems/render.py``.
"""

import argparse
import importlib
import importlib.metadata
import json
import pathlib
import sys
import time

import spax
from benchmarks import figures, harness

MODULES = sorted(
    path.stem
    for path in pathlib.Path(figures.__path__[0]).glob("[a-z]*.py")
    if path.stem != "common"
)
FOLDER = harness.RESULTS / "figures"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def main(argv=None):
    """Takes and stores the figures of the modules asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(MODULES)}; or none")
    parser.add_argument(
        "--out", type=pathlib.Path, default=FOLDER, help="the folder of the results"
    )
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(MODULES):
        parser.error(f"there is no {', '.join(sorted(unknown))} (but {', '.join(MODULES)})")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or MODULES:
        environment, start = harness.environment(), time.perf_counter()
        found = importlib.import_module(f"benchmarks.figures.{name}").measure()
        environment["seconds"] = round(time.perf_counter() - start, 1)
        result = {
            **found,
            "environment": environment,
            "versions": {
                "spax": spax.__version__,
                **{package: importlib.metadata.version(package) for package in PACKAGES},
            },
        }
        path = options.out / f"{name}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
