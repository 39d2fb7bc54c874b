"""Every public function of a room has its shape's laws tried on it, or a reason why not."""

import importlib
import inspect

import pytest

from tests.contracts import cases
from tests.contracts.attack_cases import ATTACKS

SHAPES = (ATTACKS, cases.WRAPPERS, cases.OBJECTIVES, cases.DATASET_MAPS, cases.STATES)
ROOMS = (
    "evasion",
    "defenses",
    "poisoning",
    "dp",
    "dp.accounting.composition",
    "dp.accounting.gdp",
    "dp.accounting.moments",
    "dp.accounting.pld",
    "dp.accounting.rdp",
    "dp.publishing",
    "dp.accounting.zcdp",
    "leakage",
    "crypto",
    "gradients",
    "evaluation",
)


def public(room):
    """What a room offers, by name; one within another has its own name put in front."""
    module = importlib.import_module(f"spax.{room}")
    _, inner, leaf = room.rpartition(".")
    return {f"{leaf}.{n}" if inner else n: getattr(module, n) for n in module.__all__}


def test_every_public_function_has_a_case():
    named = set(cases.OTHERS).union(*SHAPES)
    missing = {f"spax.{room}: {name}" for room in ROOMS for name in set(public(room)) - named}
    assert not missing, f"add these to tests/contracts/cases.py: {sorted(missing)}"


def test_no_case_is_left_behind():
    named = set(cases.OTHERS).union(*SHAPES)
    assert named <= set().union(*map(public, ROOMS))


def test_nothing_has_two_shapes():
    names = [name for group in (*SHAPES, cases.OTHERS) for name in group]
    assert len(names) == len(set(names))


NOTHING = ("Returns:", None)


def returns(function):
    return inspect.signature(function).return_annotation


@pytest.mark.parametrize("room", [*ROOMS, "losses", "norms", "typing", "datasets", "nets"])
def test_every_public_function_is_documented(room):
    """An example that runs, what comes back and what is raised."""
    lacking = [
        f"{name} lacks {part}"
        for name, value in public(room).items()
        if inspect.isfunction(value)
        for part in ("Example:", "Returns:", "Raises:")
        if part not in (inspect.getdoc(value) or "") and (part, returns(value)) != NOTHING
    ]
    assert not lacking


@pytest.mark.parametrize("shape", SHAPES)
def test_every_system_cites_its_source(shape):
    offered = {name: value for room in ROOMS for name, value in public(room).items()}
    for name in shape:
        assert "References:" in inspect.getdoc(offered[name]), name
