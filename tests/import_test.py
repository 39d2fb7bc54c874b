"""What importing the package costs, and what it must not bring along."""

import subprocess
import sys

import pytest

import spax


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.parametrize("heavy", ["flax", "sklearn", "matplotlib", "scipy", "rich"])
def test_import_spax_brings_nothing_heavy(heavy):
    assert run(f"import sys, spax; print({heavy!r} in sys.modules)") == "False"


def test_the_attacks_come_without_flax_sklearn_and_matplotlib():
    code = (
        "import sys, spax; spax.evasion.pgd; spax.dp.private_grad; spax.leakage; spax.defenses;"
        "print([m for m in ('flax', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_every_room_is_reached_by_name():
    for room in spax.__all__:
        assert getattr(spax, room) is not None
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        spax.nowhere  # noqa: B018


def test_the_version_is_printed_without_importing_jax():
    code = (
        "import sys; from spax.__main__ import main\n"
        "try: main(['--version'])\n"
        "except SystemExit as stop: print(stop.code, 'jax' in sys.modules)"
    )
    assert run(code) == f"spax {spax.__version__}\n0 False"


def test_the_package_leaves_the_64_bit_flag_alone():
    assert (
        run("import spax, jax; spax.evasion, spax.dp; print(jax.config.jax_enable_x64)") == "False"
    )
