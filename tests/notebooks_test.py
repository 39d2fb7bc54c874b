"""The notebooks run from top to bottom, on small settings."""

import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
SMALL = "EPOCHS, PRIVATE_STEPS, EXAMPLES = 2, 10, 60"


def parameters(notebook):
    return [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the machinery, not of what is tested
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path):
    nbformat, nbclient = map(pytest.importorskip, ("nbformat", "nbclient"))
    notebook = nbformat.read(path, as_version=4)
    (cell,) = parameters(notebook)
    cell.source = SMALL
    # Warnings inside are errors, as in every test.
    notebook.cells.insert(
        0, nbformat.v4.new_code_cell('import warnings\nwarnings.simplefilter("error")')
    )
    resources = {"metadata": {"path": path.parent}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()


def test_they_hold_their_results():
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        cells = [c for c in notebook.cells if c.cell_type == "code"]
        assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
        (cell,) = parameters(notebook)
        names = [line.partition(" =")[0] for line in cell.source.splitlines()]
        assert ", ".join(names) == SMALL.partition(" =")[0]
