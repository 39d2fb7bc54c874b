"""The benchmarks run, and their tables are those of the stored results."""

import json

import pytest

from benchmarks import eps_sweep, harness, import_time, pgd_linf, render


def _seconds(*values):
    """A run that takes each of these seconds in turn."""
    return lambda i: {"wall": values[i], "cpu": 2 * values[i]}


def _options(tmp_path, *more):
    return harness.arguments("A test.", ["--quick", "--peers", "--out", str(tmp_path), *more])


def test_ratios_are_taken_within_pairs(tmp_path):
    # The machine slows down tenfold; ours takes half of theirs throughout, but for one outlier.
    options = _options(tmp_path)
    options.repetitions, options.seconds = 4, 1e3
    figures = harness.alternate(_seconds(1, 1, 10, 90), _seconds(2, 2, 20, 20), options)
    assert figures["pairs"] == 4
    assert figures["wall_ratio"] == 0.5
    assert figures["cpu_ratio"] == 0.5
    assert figures["ours_wall_s"] == 5.5
    assert figures["ours_cpu_s"] == 11


def test_both_get_their_seconds_and_three_pairs(tmp_path):
    options = _options(tmp_path)
    options.repetitions, options.seconds = 30, 10.0
    once = [1.0] * 30
    assert harness.alternate(_seconds(*once), _seconds(*once), options)["pairs"] == 10
    some, long, minutes = ([seconds] * 30 for seconds in (9.0, 60.0, 200.0))
    assert harness.alternate(_seconds(*some), _seconds(*once), options)["pairs"] == 10
    # The slower of the two is not repeated for ever.
    assert harness.alternate(_seconds(*long), _seconds(*once), options)["pairs"] == 3
    assert harness.alternate(_seconds(*long), _seconds(*long), options)["pairs"] == 3
    assert harness.alternate(_seconds(*minutes), _seconds(*minutes), options)["pairs"] == 1


def test_who_goes_first_changes(tmp_path):
    options = _options(tmp_path)
    order = []

    def run(name):
        return lambda i: order.append(name) or {"wall": 1.0, "cpu": 1.0}

    harness.alternate(run("ours"), run("theirs"), options)
    assert order == ["ours", "theirs", "theirs", "ours"]


def test_a_claim_is_kept_under_plain_keys(tmp_path):
    claim = harness.Claim(
        "some", _options(tmp_path), title="Some", about="What.", settings={"eps": [0.1, 0.2]}
    )
    figures = harness.alternate(_seconds(3, 3), _seconds(2, 2), claim.options)
    claim.record("spax", "40 gradients, batch 256", figures, at_most=1.05)
    claim.fact("mean l2 / theirs, at eps 0.1", 1.01, at_most=1.02)
    stored = json.loads(claim.write().read_text())
    assert stored["comparisons"]["40-gradients-batch-256"]["holds"] is False
    assert stored["facts"]["mean-l2-theirs-at-eps-0-1"]["holds"] is True

    text = render.rendered(
        f"Head\n{render.START}\nBefore.\n{render.END}\nTail\n", {"s.json": stored}
    )
    assert text.startswith("Head\n")
    assert text.endswith("Tail\n")
    assert "Before." not in text
    assert "| **1.500** (1.500 to 1.500) | 1.500 | at most 1.05: missed |" in text
    assert "| mean l2 / theirs, at eps 0.1 | 1.01 | at most 1.02: holds |" in text
    assert render.rendered(text, {"s.json": stored}) == text


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="must contain"):
        render.rendered("Head\n", {})


def test_the_check_fails_where_the_readme_is_stale(tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"{render.START}\n\nold\n\n{render.END}\n")
    monkeypatch.setattr(render, "README", readme)
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    assert render.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert "old" in readme.read_text()
    assert render.main([]) == 0
    assert render.main(["--check"]) == 0
    assert "Nothing has been measured yet." in readme.read_text()


def test_the_committed_tables_are_those_of_the_results():
    assert render.main(["--check"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("script", [pgd_linf, eps_sweep, import_time])
def test_a_script_runs_without_peers(script, tmp_path):
    path = script.main(["--quick", "--peers", "--out", str(tmp_path)])
    stored = json.loads(path.read_text())
    assert stored["quick"] is True
    for figures in stored["comparisons"].values():
        assert figures["ours_wall_s"] > 0
        assert figures["ours_cpu_s"] > 0


@pytest.mark.slow
def test_a_missing_peer_is_left_out(tmp_path, capsys):
    claim = harness.Claim("some", _options(tmp_path), title="", about="", settings={})
    claim.options.peers = ["torchattacks"]
    found = [peer for peer, _ in claim.peers(["torchattacks"], None, "absent_task", "absent")]
    assert found == []
    assert "left out" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_in_a_worker_says_where(tmp_path):
    absent = tmp_path / "absent.npz"
    settings = {"batch_size": 1, "eps": 0.1, "step_size": 0.01, "steps": 1}
    with pytest.raises(RuntimeError, match="FileNotFoundError"):
        harness.Worker("spax", "spax_attacks", pgd_linf.TASK, absent, **settings)
