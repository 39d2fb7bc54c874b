"""Renders the tables of benchmarks/README.md from benchmarks/results/*.json.

python benchmarks/render.py          # writes them
python benchmarks/render.py --check  # exit 1 where README.md differs
"""

import argparse
import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
README, RESULTS = FOLDER / "README.md", FOLDER / "results"
START, END = "<!-- results: start -->", "<!-- results: end -->"


def tables(results):
    """The Markdown of {file name: result}, or a line where there are none."""
    if not results:
        return "Nothing has been measured yet."
    return "\n\n".join(_section(name, results[name]) for name in sorted(results))


def _section(name, result):
    parts = [f"### {result['title']}", f"{result['about']} (`{name}`)"]
    if result["comparisons"]:
        parts.append(
            _table(
                [
                    "spax",
                    "against",
                    "pairs",
                    "seconds",
                    "CPU seconds",
                    "ratio",
                    "CPU ratio",
                    "claim",
                ],
                [_comparison(figures) for figures in result["comparisons"].values()],
            )
        )
    if result["facts"]:
        rows = [
            [fact["about"], _number(fact["value"]), _claim(fact)]
            for fact in result["facts"].values()
        ]
        parts.append(_table(["figure", "value", "claim"], rows))
    machine = result["environment"]
    settings = ", ".join(f"{key} {_value(v)}" for key, v in sorted(result["settings"].items()))
    parts.append(
        f"Settings: {settings}. On {machine['cores']} cores of {machine['processor']}, "
        f"load before {machine['load_before']}. {_versions(result['versions'])}"
    )
    return "\n\n".join(parts)


def _comparison(figures):
    quarter, three_quarters = figures["wall_ratio_quartiles"]
    return [
        figures["ours"],
        figures["theirs"],
        str(figures["pairs"]),
        f"{_number(figures['ours_wall_s'])} / {_number(figures['theirs_wall_s'])}",
        f"{_number(figures['ours_cpu_s'])} / {_number(figures['theirs_cpu_s'])}",
        f"**{figures['wall_ratio']:.3f}** ({quarter:.3f} to {three_quarters:.3f})",
        f"{figures['cpu_ratio']:.3f}",
        _claim(figures),
    ]


def _claim(figures):
    if "at_most" not in figures:
        return ""
    return f"at most {_number(figures['at_most'])}: {'holds' if figures['holds'] else 'missed'}"


def _number(value):
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _value(value):
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def _versions(versions):
    """Each package once; systems in one environment share most of them."""
    seen = sorted({f"{package} {v}" for of in versions.values() for package, v in of.items()})
    return f"Versions: {', '.join(seen)}." if seen else ""


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rendered(text, results):
    """``text`` with everything between the two markers replaced by the tables."""
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md must contain {START} and {END}, in this order")
    return f"{before}{START}\n\n{tables(results)}\n\n{END}{after}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    options = parser.parse_args(argv)
    results = {path.name: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    # Others hold the figures of the systems table.
    results = {name: result for name, result in results.items() if "comparisons" in result}
    old = README.read_text()
    new = rendered(old, results)
    if old == new:
        return 0
    if options.check:
        print("benchmarks/README.md is stale: run python benchmarks/render.py", file=sys.stderr)
        return 1
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
