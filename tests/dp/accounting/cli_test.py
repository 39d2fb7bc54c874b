"""``spax epsilon``: figures, assumptions, refusals."""

import json
import re

import pytest

from spax.__main__ import run
from spax.dp.accounting import gdp, rdp

RECIPE = "--noise-multiplier 2.0 --sampling-rate {q} --steps {steps} --delta 1e-5"


def spax(capsys, rest, q=0.05, steps=100):
    code = run(["epsilon", *RECIPE.format(q=q, steps=steps).split(), *rest.split()])
    out, err = capsys.readouterr()
    return code, out, err


def test_it_reports_all_accountants_and_what_they_assume(capsys):
    code, out, err = spax(capsys, "")
    assert (code, err) == (0, "")
    found = {n: float(v) for n, v in re.findall(r"^  (\w+) +epsilon +([\d.]+)", out, re.MULTILINE)}
    assert list(found) == ["pld", "rdp", "moments"]
    assert found["pld"] < found["rdp"] < found["moments"]
    _, state = rdp.update(rdp.init(), noise_multiplier=2.0, sampling_rate=0.05, steps=100)
    exact = float(rdp.epsilon(state, 1e-5))
    assert exact <= found["rdp"] <= exact + 1e-4
    for words in ("Poisson sampling", "added or removed", "expected size", "clip norm"):
        assert words in out


def test_json_says_the_same(capsys):
    code, out, _ = spax(capsys, "--json --sampler fixed_size")
    report = json.loads(out)
    assert code == 0
    assert list(report["epsilon"]) == ["rdp", "moments"]
    assert any("replaced" in line for line in report["assumptions"])


@pytest.mark.parametrize(
    ("sampler", "adjacency"), [("shuffled", "replace"), ("balls_in_bins", "add_remove")]
)
def test_batches_of_an_epoch_have_a_bound_without_amplification(capsys, sampler, adjacency):
    code, out, _ = spax(capsys, f"--sampler {sampler} --json", steps=101)
    _, state = gdp.update(gdp.init(adjacency=adjacency), noise_multiplier=2.0, steps=6)
    report = json.loads(out)
    assert code == 0
    assert report["epsilon"]["gdp"] == pytest.approx(float(gdp.epsilon(state, 1e-5)))
    assert "pld" not in report["epsilon"]
    assert any("no bound here" in line for line in report["assumptions"])


def test_full_batches_are_exact(capsys):
    _, out, _ = spax(capsys, "--sampler full_batch --json", q=1, steps=4)
    assert json.loads(out)["epsilon"]["gdp"] == pytest.approx(4.377178, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--noise-multiplier 0", r"--noise-multiplier must be > 0 \(got 0\)"),
        ("--sampling-rate 1.5", r"--sampling-rate must be in \(0, 1\] \(got 1.5\)"),
        ("--steps -1", r"--steps must be >= 0 .*\(got -1\)"),
        ("--delta 1", r"--delta must be in \(0, 1\) \(got 1\)"),
        ("--delta nan", r"--delta must be in"),
        ("--noise-multiplier inf", r"--noise-multiplier must be"),
        ("--sampler full_batch", r"--sampling-rate 1 \(got 0.05\)"),
        ("--sampler cards", "invalid choice: 'cards'"),
        ("--steps many", "invalid int value: 'many'"),
        ("--noise-multiplier 0.001", "noise_multiplier must be >= 0.02"),
    ],
)
def test_bad_input_is_one_line_and_code_two(capsys, arguments, message):
    code, out, err = spax(capsys, arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"spax epsilon: error: [^\n]+\n", err)
    assert re.search(message, err)
