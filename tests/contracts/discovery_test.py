"""Every public function of a room has its shape's laws tried on it, or a reason why not."""

import importlib
import inspect

import pytest

from tests.contracts import cases

SHAPES = (cases.ATTACKS, cases.WRAPPERS, cases.OBJECTIVES, cases.DATASET_MAPS, cases.STATES)
ROOMS = ("evasion", "defenses", "poisoning", "dp", "leakage", "crypto", "gradients", "evaluation")


def public(room):
    return set(importlib.import_module(f"spax.{room}").__all__)


def test_every_public_function_has_a_case():
    named = set(cases.OTHERS).union(*SHAPES)
    missing = {f"spax.{room}.{name}" for room in ROOMS for name in public(room) - named}
    assert not missing, f"add these to tests/contracts/cases.py: {sorted(missing)}"


def test_no_case_is_left_behind():
    named = set(cases.OTHERS).union(*SHAPES)
    assert named <= set().union(*map(public, ROOMS))


@pytest.mark.parametrize("room", [*ROOMS, "losses", "norms", "typing", "datasets", "nets"])
def test_every_public_function_is_documented(room):
    """An example that runs; what it raises and where it is from are asked of each shape's own."""
    module = importlib.import_module(f"spax.{room}")
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            doc = inspect.getdoc(value) or ""
            for part in ("Example:", "Returns:", "Raises:"):
                assert part in doc, f"spax.{room}.{name} lacks {part}"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_system_cites_its_source(shape):
    for name in shape:
        for room in ROOMS:
            module = importlib.import_module(f"spax.{room}")
            if hasattr(module, name):
                assert "References:" in inspect.getdoc(getattr(module, name)), name
