import collections
import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.audit import AuditReport
from spax.audit.render import to_json
from spax.audit.sections import SCHEMA_VERSION
from tests.audit.render import reports


def strictly(text):
    """What a parser reads that knows JSON alone, and no key twice."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    def once(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


def with_settings(**settings):
    return AuditReport("Audit", (), {}, settings, {}, ())


def test_every_figure_is_there_with_all_that_belongs_to_it():
    report = reports.report()
    document = strictly(to_json(report))
    assert document["schema"] == "spax.audit.report"
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["versions"] == report.versions
    assert document["settings"]["seed"] == 0
    found = document["sections"][0]["measurements"]
    for m, read in zip(report.sections[0].measurements, found, strict=True):
        wanted = dataclasses.asdict(m)
        if m.value == math.inf:
            wanted["value"] = "Infinity"
        assert read == wanted
        assert read["definition"]


def test_curves_and_verdicts_are_there_and_of_images_the_labels():
    report = reports.report()
    (section,), (read,) = report.sections, strictly(to_json(report))["sections"]
    assert [v["text"] for v in read["verdicts"]] == [v.text for v in section.verdicts]
    assert read["plots"][0]["series"][0]["low"] == [0.8, 0.4]
    assert read["images"][0]["row_labels"] == list(section.images[0].row_labels)
    assert read["images"][0]["pixels"] == {"shape": [3, 2, 4, 4, 1]}


def test_names_come_back_as_they_were():
    document = strictly(to_json(reports.hostile()))
    assert tuple(document["models"]) == reports.HOSTILE
    to_json(reports.hostile()).encode("utf-8")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (math.nan, "NaN"),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ({1: True}, {"1": True}),
        ({3, 1, 2}, [1, 2, 3]),
        (np.float32(0.5), 0.5),
        (np.float32("nan"), "NaN"),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, np.inf]]), [[1.0, "Infinity"]]),
        (jnp.asarray([0.5, 2.0], jnp.bfloat16), [0.5, 2.0]),
        (pathlib.PurePosixPath("data/mine.npz"), "data/mine.npz"),
        (collections.Counter, "collections.Counter"),
        (jax.nn.relu, None),
        (object(), "builtins.object"),
        (lambda x: x, "tests.audit.render.json_test.<lambda>"),
    ],
)
def test_what_json_does_not_know_is_written_all_the_same(value, written):
    text = to_json(with_settings(value=value))
    read = strictly(text)["settings"]["value"]
    assert " at 0x" not in text  # an address would differ from run to run
    if written is not None:
        assert read == written
        assert type(read) is type(written)


def test_the_same_report_gives_the_same_bytes_but_for_the_last_block():
    first, again = (to_json(reports.report(seconds=s)) for s in (1.5, 1.5))
    assert first == again
    other = to_json(reports.report(seconds=2.5))
    assert first.partition('\n "timings": ')[0] == other.partition('\n "timings": ')[0]
    assert list(strictly(first))[-1] == "timings"
    assert strictly(other)["timings"]["seconds"] == {"all": 2.5}
