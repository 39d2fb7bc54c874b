"""The systems table cannot rot: functions, tests, citations and figures are all resolved."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

from systems import render

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENTRIES = list(render.rows())
IDS = [entry["function"] for entry in ENTRIES]


def resolve(dotted: str):
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_the_function_exists_and_cites_its_paper(entry):
    doc = inspect.getdoc(resolve(entry["function"]))
    if "arxiv" in entry:
        assert f"arXiv:{entry['arxiv']}" in " ".join(doc.split())
    else:
        year = re.search(r"\b(?:19|20)\d\d\b", entry["paper"]).group()
        first_author = re.split(r"[\s,]", entry["paper"])[0]
        assert year in doc
        assert first_author in doc


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_the_test_exists(entry):
    file, _, name = entry["test"].partition("::")
    tree = ast.parse((ROOT / file).read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in names


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_the_measured_figure_comes_from_the_results(entry):
    assert render.measured(entry) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("text", ["", render.START, f"{render.END}{render.START}"])
def test_a_readme_without_markers_is_refused(text, tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    monkeypatch.setattr(render, "README", readme)
    with pytest.raises(SystemExit, match="2"):
        render.main([])
    assert f"must contain {render.START} and {render.END}" in capsys.readouterr().err
    assert readme.read_text() == text


def test_the_check_fails_where_the_table_is_stale(tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"Head\n{render.START}\nBefore.\n{render.END}\nTail\n")
    monkeypatch.setattr(render, "README", readme)
    assert render.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert "Before." in readme.read_text()
    assert render.main([]) == 0
    assert render.main(["--check"]) == 0
    text = readme.read_text()
    assert text.startswith("Head\n")
    assert text.endswith("Tail\n")
    assert "Before." not in text


@pytest.mark.parametrize("script", ["systems/render.py", "benchmarks/render.py"])
def test_the_tables_are_rendered(script):
    done = subprocess.run(
        [sys.executable, script, "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
