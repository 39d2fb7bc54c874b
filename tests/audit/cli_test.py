import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from spax.__main__ import main, run
from spax.audit import AuditError, Model, cli
from spax.audit.probes import clean, membership, robustness
from spax.audit.render import folder
from tests.audit import linear

MODULE = """
    import jax.numpy as jnp
    import numpy as np
    from spax.typing import Stochastic
    from tests.audit.linear import W, logits_fn

    model = logits_fn

    def chatty(x):
        print("tracing")
        return logits_fn(x)

    def shifting(x):
        return logits_fn(x) - logits_fn(x).mean(0, keepdims=True)

    def unmarked(x):
        return logits_fn(x) + np.random.default_rng().normal(size=(len(x), 2))

    def in_numpy(x):
        return np.asarray(x).reshape(len(x), -1)[:, :2]

    def nan(x):
        return logits_fn(x) * jnp.nan

    def flat(x):
        return logits_fn(x)[:, 0]

    def other_shape(x):
        return x.reshape(len(x), 28 * 28)

    def interrupted():
        raise KeyboardInterrupt

    wide = lambda x: logits_fn(x / 255)
"""

USUAL = "--model mine:model --data data.npz --out report"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a user's module and data."""
    path = tmp_path_factory.mktemp("work")
    (path / "mine.py").write_text(textwrap.dedent(MODULE))
    (path / "broken.py").write_text("import a_package_that_nobody_has\n")
    data = linear.data()
    x, y = data.x_test, data.y_test
    np.savez(path / "data.npz", x=x, y=y)
    np.savez(
        path / "members.npz",
        **{k: getattr(data, k) for k in ("x_train", "y_train")},
        x_test=x,
        y_test=y,
    )
    files = {
        "no_y": {"x": x},
        "no_x": {"y": y},
        "other_names": {"images": x, "labels": y},
        "lengths": {"x": x, "y": y[1:]},
        "rank": {"x": x[:, 0, 0, 0], "y": y},
        "one_hot": {"x": x, "y": np.eye(2)[y]},
        "floats": {"x": x, "y": y / 2},
        "negative": {"x": x, "y": y - 1},
        "classes": {"x": x, "y": y + 5},
        "nan": {"x": np.where(x == x.max(), np.nan, x), "y": y},
        "pixels": {"x": np.round(255 * x / x.max()), "y": y},
        "outside": {"x": x - 2, "y": y},
        "pickled": {"x": np.array([None] * 4), "y": y[:4]},
        "empty": {"x": x[:0], "y": y[:0]},
    }
    for name, arrays in files.items():
        np.savez(path / f"{name}.npz", **arrays)
    (path / "text.npz").write_text("x,y\n1,2\n")
    (path / "cut.npz").write_bytes((path / "data.npz").read_bytes()[:300])
    np.save(path / "bare.npy", x)
    return path


@pytest.fixture
def spax_audit(workplace, monkeypatch, capsys):
    """Runs ``spax audit`` there, with few probes and a small budget: code, out, err."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "BUDGETS", {"quick": linear.TINY, "standard": linear.TINY})
    monkeypatch.setattr(cli, "STANDARD", (clean, robustness))

    def call(arguments):
        code = run(["audit", *arguments.split()])
        return code, *capsys.readouterr()

    yield call
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


NUMBERS = itertools.count()


def fresh():
    """The name of a folder that no other test writes to."""
    return f"report-{next(NUMBERS)}"


def refused(result, *said):
    """Exit code 2 and one line on standard error, which says why."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert re.fullmatch(r"spax audit: error: [^\n]+\n", err), err
    for words in said:
        assert words in err


# What is asked for


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--model mine:model", "give --data FILE.npz too"),
        ("--data data.npz", "give --model MODULE:NAME too"),
        ("--bounds 0 1", "--bounds belongs to --data"),
        (f"{USUAL} --bounds 1 0", "low < high"),
        (f"{USUAL} --bounds 0 nan", "bounds must be finite"),
        (f"{USUAL} --bounds 0", "--bounds"),
        (f"{USUAL} --seed -1", "--seed must be in [0, 2**32) (got -1)"),
        (f"{USUAL} --seed half", "--seed"),
        (f"{USUAL} --eps 0", "eps must be a number > 0 (got [0.0])"),
        (f"{USUAL} --eps -0.1", "(got [-0.1])"),
        (f"{USUAL} --eps nan", "(got 'nan')"),
        (f"{USUAL} --eps 0.1,inf", "(got 'inf')"),
        (f"{USUAL} --eps 1/0", "(got '1/0')"),
        (f"{USUAL} --eps some", "0.1 or 8/255 (got 'some')"),
        (f"{USUAL} --eps ,", "--eps names no radius"),
        (f"{USUAL} --eps", "--eps"),
        (f"{USUAL} --norm l3", "l3"),
        (f"{USUAL} --budget huge", "huge"),
        (f"{USUAL} --max-examples 0", "max_examples must be a whole number >= 1 (got 0)"),
        (f"{USUAL} --batch-size 1.5", "1.5"),
        (f"{USUAL} --fail-under robust=0.5", "robust needs a radius"),
        (f"{USUAL} --fail-under clean=half", "'half' is not a number"),
        (f"{USUAL} --fail-under other:clean=0.5", "there is no model 'other'"),
        ("--fail-under other:clean=0.5", "the models are plain, adversarial, private"),
        (f"{USUAL} --speed 9", "--speed"),
        (f"{USUAL} --mod x", "--mod"),
    ],
)
def test_bad_options_are_said_on_one_line(spax_audit, arguments, said):
    refused(spax_audit(arguments), said)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nowhere.npz", "no such file"),
        (".", "is not a file"),
        ("text.npz", "is not an npz file"),
        ("cut.npz", "damaged or truncated"),
        ("bare.npy", "one bare array"),
        ("no_y.npz", "lacks the array y"),
        ("no_x.npz", "lacks the array x"),
        ("other_names.npz", "found 'images', 'labels'"),
        ("lengths.npz", "40 examples but y has 39 labels"),
        ("rank.npz", "must have shape [N, ...]"),
        ("one_hot.npz", "np.argmax(y, axis=1)"),
        ("floats.npz", "labels must be integers"),
        ("negative.npz", "number the classes"),
        ("nan.npz", "NaN"),
        ("pixels.npz", "divide by 255"),
        ("outside.npz", "--bounds LOW HIGH"),
        ("pickled.npz", "never loaded"),
        ("empty.npz", "is empty"),
    ],
)
def test_bad_data_are_said_on_one_line(spax_audit, file, said):
    refused(spax_audit(f"--model mine:model --data {file} --out {fresh()}"), said, repr(file))


@pytest.mark.parametrize(
    ("model", "file", "said"),
    [
        ("mine", "data", "package.module:name"),
        ("mine.py:model", "data", "without .py"),
        ("nowhere:model", "data", "no module 'nowhere'"),
        ("broken:model", "data", "No module named 'a_package_that_nobody_has'"),
        ("mine:nix", "data", "has no 'nix'"),
        ("mine:W", "data", "neither a function"),
        ("mine:unmarked", "data", "spax.typing.Stochastic(fn)"),
        ("mine:shifting", "data", "batch-dependent"),
        ("mine:in_numpy", "data", "cannot be traced by JAX"),
        ("mine:nan", "data", "NaN"),
        ("mine:flat", "data", "logits [B, K]"),
        ("mine:other_shape", "data", "(8, 4, 4, 1)"),
        ("mine:model", "classes", "go up to 6"),
    ],
)
def test_a_bad_model_is_said_on_one_line(spax_audit, model, file, said):
    out = fresh()
    refused(spax_audit(f"--model {model} --data {file}.npz --out {out} --quiet"), said)
    assert not os.path.exists(out)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("mine.py", "is not a folder"),
        ("mine.py/report", "name another folder"),
        ("foreign", "is not an audit's report (it holds 'thesis.txt')"),
        (".", "cannot be replaced while it is in use"),
        ("/", "cannot be replaced while it is in use"),
        ("a" * 300, "File name too long"),
        pytest.param(
            "/proc/report",
            "cannot write a report to /proc/report",
            marks=pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc"),
        ),
    ],
)
def test_a_folder_that_is_not_ours_is_left_alone(spax_audit, workplace, out, said):
    (workplace / "foreign").mkdir(exist_ok=True)
    (workplace / "foreign" / "thesis.txt").write_text("years of work")
    before = sorted(workplace.iterdir())
    refused(spax_audit(f"--model mine:model --data data.npz --out {out}"), said)
    assert sorted(workplace.iterdir()) == before
    assert (workplace / "foreign" / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_parent_is_said_on_one_line(spax_audit, workplace):
    parent = workplace / "read-only"
    parent.mkdir(mode=0o500)
    refused(spax_audit(f"{USUAL} --out {parent}/report"), "Permission denied")


# What comes out


def test_an_audit_writes_its_folder_and_prints_a_table(spax_audit, workplace, monkeypatch):
    monkeypatch.setattr(cli, "STANDARD", (clean,))
    out = fresh()
    code, table, progress = spax_audit(f"--model mine:chatty --data data.npz --out {out}")
    assert code == 0
    assert sorted(path.name for path in (workplace / out).iterdir()) == list(folder.FILES)
    assert "90.0\u00a0%" in table
    assert str(workplace / out / "report.html") in table.replace("\n", "")
    assert "tracing" not in table
    assert "tracing" in progress
    assert "left: loading mine:chatty" in progress
    assert "100 %, 0 s left: writing the report" in progress
    # again, over the earlier report
    assert spax_audit(f"--model mine:model --data data.npz --out {out} --quiet")[:2] == (0, "")


def test_json_is_all_there_is_on_standard_output(spax_audit, workplace):
    out = fresh()
    data = linear.data()
    code, text, _ = spax_audit(
        f"--model mine:model --data data.npz --out {out} --json --quiet --seed 5 --norm linf "
        "--eps 0.02,0.05 51/510 --max-examples 30 --batch-size 7"
    )
    assert code == 0
    assert text == (workplace / out / "report.json").read_text()
    document = json.loads(text)
    assert document["settings"]["seed"] == 5
    assert document["settings"]["model"] == "mine:model"
    assert document["settings"]["budget"]["eps"] == [0.02, 0.05, 0.1]
    assert document["settings"]["budget"]["max_examples"] == 30
    assert document["settings"]["budget"]["batch_size"] == 7
    assert document["models"] == ["model"]
    assert document["data"]["test_examples"] == len(data.x_test)
    assert document["data"]["train_examples"] is None


def test_members_in_the_file_are_measured(spax_audit, monkeypatch):
    monkeypatch.setattr(cli, "STANDARD", (membership,))
    code, text, _ = spax_audit(
        f"--model mine:model --data members.npz --out {fresh()} --json --quiet"
    )
    assert code == 0
    (section,) = json.loads(text)["sections"]
    (area,) = (m for m in section["measurements"] if m["name"] == "membership_auc")
    # The labels of both parts are drawn in the same way, and nothing was trained.
    assert area["low"] <= 0.5 <= area["high"]
    assert area["settings"]["members"] == 50  # TINY.max_scored


def test_pixels_pass_with_their_bounds_and_the_default_grid_grows_with_them(
    spax_audit, monkeypatch
):
    tiny = dataclasses.replace(linear.TINY, eps=())
    monkeypatch.setattr(cli, "BUDGETS", {"quick": tiny})
    monkeypatch.setattr(cli, "STANDARD", (clean,))
    code, text, _ = spax_audit(
        f"--model mine:wide --data pixels.npz --out {fresh()} --json --quiet --bounds 0 255"
    )
    assert code == 0
    eps = json.loads(text)["settings"]["budget"]["eps"]
    assert eps == pytest.approx([255 * e for e in (0.05, 0.1, 0.15, 0.2)])


def test_gates_decide_the_exit_code(spax_audit):
    data = linear.data()
    truth = linear.robust_accuracy(data.x_test, data.y_test, 0.03)
    assert 0.3 < truth < 0.9
    passing = f"--fail-under robust@0.03={truth - 0.01} --fail-under model:clean=90%"
    usual = f"--model mine:model --data data.npz --out {fresh()} --quiet"
    assert spax_audit(f"{usual} {passing}")[:2] == (0, "")
    code, out, err = spax_audit(
        f"{usual} {passing} --fail-under model:robust@0.03={truth + 0.05} --json"
    )
    assert code == 1
    (line,) = (line for line in err.splitlines() if "fail-under" in line)
    assert f"model:robust@0.03={truth + 0.05}" in line
    assert "0.05 less" in line
    # The radius has joined the grid, and the report is there all the same.
    grid = json.loads(out)["settings"]["budget"]["eps"]
    assert grid == sorted({*linear.TINY.eps, 0.03})


# The network's three trainings are replaced: what is tested is what surrounds them.


def test_without_arguments_three_networks_are_trained_and_audited(
    spax_audit, monkeypatch, workplace
):
    seen = {}

    def train(data, *, key, progress):
        seen["examples"] = data.x_train.shape
        models = {}
        for scale, (name, units) in enumerate(cli.TRAINING_UNITS.items()):
            models[name] = Model(
                None, lambda w, x: x.reshape(len(x), -1)[:, :10] * w, np.float32(scale)
            )
            progress.advance(units, f"training {name}")
        return models

    monkeypatch.setattr(cli, "train", train)
    monkeypatch.setattr(cli, "STANDARD", (clean,))
    code, text, progress = spax_audit(f"--out {fresh()} --json")
    assert code == 0
    assert json.loads(text)["models"] == ["plain", "adversarial", "private"]
    assert seen["examples"] == (1257, 8, 8, 1)
    shares = [int(share) for share in re.findall(r"^ *(\d+) %", progress, re.MULTILINE)]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    # Training and audit share one bar.
    whole = sum(cli.TRAINING_UNITS.values()) + cli.expected_units((clean,))
    trained = sum(cli.TRAINING_UNITS.values()) / whole
    line = next(line for line in progress.splitlines() if "training private" in line)
    assert line.startswith(f"{100 * trained:3.0f} %")


# Ends before the end


def test_an_interrupt_leaves_no_report(spax_audit):
    out = fresh()
    code, text, err = spax_audit(f"--model mine:interrupted --data data.npz --out {out} --quiet")
    assert (code, text) == (130, "")
    assert "interrupted" in err
    assert not os.path.exists(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_writing_leaves_the_earlier_report(
    spax_audit, workplace, monkeypatch, number
):
    out = fresh()
    call = f"--model mine:model --data data.npz --out {out} --quiet"
    monkeypatch.setattr(cli, "STANDARD", (clean,))
    assert spax_audit(call)[0] == 0
    before = {path.name: path.read_bytes() for path in (workplace / out).iterdir()}
    around = sorted(workplace.iterdir())

    def move(made, path, aside):
        assert (made / "report.html").exists()
        os.kill(os.getpid(), number)
        time.sleep(1)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr(folder, "_move", move)
    handler = signal.getsignal(signal.SIGTERM)
    if number == signal.SIGINT:
        assert spax_audit(call)[0] == 130
    else:
        with pytest.raises(SystemExit) as stop:
            spax_audit(call)
        assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
    assert {path.name: path.read_bytes() for path in (workplace / out).iterdir()} == before
    assert sorted(workplace.iterdir()) == around


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_leaves_nothing(workplace, tmp_path, number):
    # The model waits forever on the device: the signal must be heard while XLA runs.
    (tmp_path / "endless.py").write_text(
        "import jax\n"
        "from tests.audit.linear import logits_fn\n"
        "def model(x):\n"
        "    x = jax.lax.while_loop(lambda x: (x < 2).all(), lambda x: 1 - x, x)\n"
        "    return logits_fn(x)\n"
    )
    data = workplace / "data.npz"
    process = subprocess.Popen(
        [sys.executable, "-m", "spax", "audit", "--model", "endless:model", "--data", data],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("looking at the models" in line for line in process.stderr)
        time.sleep(1.5)  # to compile it
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert out == ""
    assert "Traceback" not in err
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert [path.name for path in tmp_path.iterdir()] == ["endless.py"]


def test_help_and_version_do_not_wait_for_jax():
    code = (
        "import sys; from spax.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: print(stop.code, 'jax' in sys.modules, 'numpy' in sys.modules)"
    )
    for arguments in (["audit", "--help"], ["--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "0 False False"


def test_help_warns_that_the_model_is_run(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "RUNS YOUR CODE" in text
    for option in ("--data", "--bounds", "--eps", "--norm", "--budget", "--max-examples"):
        assert option in text
    for option in ("--batch-size", "--seed", "--out", "--json", "--quiet", "--fail-under"):
        assert option in text


@pytest.mark.parametrize("arguments", [[], ["attack"], ["--no-such"]])
def test_a_command_is_needed(arguments, capsys):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"spax: error: [^\n]+ \(see spax --help\)\n", err)


def test_a_bug_keeps_its_traceback(spax_audit, monkeypatch):
    def probe(models, data, budget, key):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli, "STANDARD", (probe,))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        spax_audit(f"--model mine:model --data data.npz --out {fresh()} --quiet")


def test_an_error_is_one_line_whatever_is_in_it(spax_audit, monkeypatch):
    def probe(models, data, budget, key):
        raise AuditError("two\nlines")

    monkeypatch.setattr(cli, "STANDARD", (probe,))
    refused(spax_audit(f"{USUAL} --quiet"), "two lines")
