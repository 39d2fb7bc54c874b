import json
import os
import pathlib
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_the_mnist_example_trains_on_what_it_is_given(tmp_path, monkeypatch, digits):
    # scikit-learn's digits in MNIST's format: 8 x 8 pixels three times as large, with a frame.
    def enlarged(x):
        images = np.kron(np.round(255 * x[..., 0]).astype(np.uint8), np.ones((1, 3, 3), np.uint8))
        return np.pad(images, ((0, 0), (2, 2), (2, 2)))

    file = tmp_path / "digits.npz"
    x_test = enlarged(digits.x_test)
    np.savez(
        file,
        x_train=enlarged(digits.x_train),
        y_train=digits.y_train,
        x_test=x_test,
        y_test=digits.y_test,
    )
    monkeypatch.setenv("MNIST", str(file))
    from examples import mnist

    logits = mnist.model()(jnp.asarray(x_test[..., None] / np.float32(255)))
    assert logits.shape == (540, 10)
    # Thirty steps only: far from guessing, which is a tenth.
    assert (np.argmax(logits, axis=1) == digits.y_test).mean() > 0.5


def spax(folder, *arguments, **variables):
    """Runs the command line in a process of its own, from a folder."""
    return subprocess.run(
        [sys.executable, "-m", "spax", "audit", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def cpu_seconds():
    """Of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures(folder):
    """Every measured figure by model and name, and by eps where it has one."""
    report = json.loads((folder / "report.json").read_text())
    return {
        (m["model"], m["name"], m["settings"].get("attack"), m["settings"].get("eps")): m["value"]
        for section in report["sections"]
        for m in section["measurements"]
    }


def check_page(page):
    """Loads nothing: what it shows is in it."""
    text = page.read_text()
    assert "<svg" in text
    for opening in ("src=", "href=", "url(", "@import"):
        for place in text.split(opening)[1:]:
            assert place.lstrip("\"'").startswith(("#", "data:")), opening + place[:60]


@pytest.mark.slow
def test_mnist_is_audited_as_the_readme_says(tmp_path, spax_data):
    data = spax_data / "mnist.npz"
    model = "examples.mnist:model"
    gates = ["--fail-under", "clean=97%", "--fail-under", "robust@0.3=0.5"]
    done = spax(tmp_path, "--model", model, "--data", str(data), "--quiet", *gates, MNIST=str(data))
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "robust@0.3=0.5: model has 0, 0.5 less than 0.5" in line
    found = figures(tmp_path / "spax-report")
    assert found["model", "clean_accuracy", None, None] >= 0.97
    assert found["model", "robust_accuracy", "worst", 0.3] <= 0.05
    # 10000 of each part are enough to know an area to within a hundredth
    assert abs(found["model", "membership_auc", "loss_threshold", None] - 0.5) < 0.05
    check_page(tmp_path / "spax-report" / "report.html")


@pytest.mark.slow
def test_the_default_audit_keeps_its_promises(tmp_path):
    before = cpu_seconds()
    done = spax(tmp_path, "--fail-under", "plain:clean=97%", "--fail-under", "private:clean=85%")
    assert done.returncode == 0, done.stderr
    # Of the processors, since the machine may be busy: 90 seconds of two cores.
    assert cpu_seconds() - before < 180
    folder = tmp_path / "spax-report"
    report, found = json.loads((folder / "report.json").read_text()), figures(folder)
    assert report["models"] == ["plain", "adversarial", "private"]
    eps = 0.15  # of the summary
    assert f"robust @ {eps}" in done.stdout
    gain = (
        found["adversarial", "robust_accuracy", "worst", eps]
        - found["plain", "robust_accuracy", "worst", eps]
    )
    assert gain >= 0.3
    assert found["plain", "clean_accuracy", None, None] >= 0.97
    assert found["private", "clean_accuracy", None, None] >= 0.85
    spent = found["private", "epsilon", None, None]
    assert 0 < spent < 10
    assert found["plain", "epsilon", None, None] == "Infinity"
    verdicts = {
        (v["model"], v["name"]): v["level"]
        for section in report["sections"]
        for v in section["verdicts"]
    }
    for model in report["models"]:
        assert verdicts[model, "masking"] == "ok"
    assert {model: verdicts[model, "robustness"] for model in report["models"]} == {
        "plain": "warning",
        "adversarial": "ok",
        "private": "warning",
    }
    assert verdicts["private", "privacy"] == "ok"
    check_page(folder / "report.html")

    # The same seed gives the same figures, to the last bit.
    again = spax(tmp_path, "--out", "again", "--quiet", "--json")
    assert again.returncode == 0
    other = json.loads(again.stdout)
    assert report.pop("timings") != other.pop("timings")
    assert report == other
