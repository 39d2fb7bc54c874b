"""Renders the systems table of README.md from one file a room and from measured results.

    python systems/render.py          # writes the table
    python systems/render.py --check  # exit 1 if README.md differs

Each ``systems/<room>.toml`` holds ``[[system]]`` entries: ``paper``, ``arxiv`` (optional),
``function``, ``test``, ``paper_figure`` and ``measured``, a format string over the entry
``results = "<file>:<key>"`` of ``benchmarks/results/``.
"""

import argparse
import json
import pathlib
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
START, END = "<!-- systems: start -->", "<!-- systems: end -->"
ROOMS = ("evasion", "defenses", "poisoning", "dp", "leakage", "he", "crypto", "gradients")


def rows() -> Iterator[Mapping[str, str]]:
    """All entries, room by room."""
    for room in ROOMS:
        path = ROOT / "systems" / f"{room}.toml"
        for entry in tomllib.loads(path.read_text())["system"]:
            yield {"room": room, **entry}


def measured(entry: Mapping[str, str]) -> str:
    """The measured figure of an entry, formatted from the stored results."""
    file, _, key = entry["results"].partition(":")
    values: Any = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
    for part in key.split("."):
        values = values[part]
    return entry["measured"].format(**values)


def rendered(text: str) -> str:
    """``text`` with everything between the two markers replaced by the table."""
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"it must contain {START} and {END}, in this order")
    return f"{before}{START}\n{table()}\n{END}{after}"


def table() -> str:
    """The table, as Markdown."""
    lines = [
        "| paper | function | test | paper's figure | measured here |",
        "|---|---|---|---|---|",
    ]
    for entry in rows():
        paper = entry["paper"]
        if "arxiv" in entry:
            paper += f" ([{entry['arxiv']}](https://arxiv.org/abs/{entry['arxiv']}))"
        file, _, name = entry["test"].partition("::")
        test = f"[`{name}`]({file})"
        figure = entry.get("paper_figure", "-")
        lines.append(f"| {paper} | `{entry['function']}` | {test} | {figure} | {measured(entry)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    arguments = parser.parse_args(argv)
    text = README.read_text()
    try:
        wanted = rendered(text)
    except ValueError as error:
        parser.error(f"{README.name}: {error}")
    if arguments.check:
        if text != wanted:
            print(f"{README.name} is stale: run `python systems/render.py`", file=sys.stderr)
            return 1
        return 0
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
