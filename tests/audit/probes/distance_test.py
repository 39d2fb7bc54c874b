"""Distances to the nearest error, on a model whose distances are known."""

import dataclasses
import math

import numpy as np
import pytest

from spax.audit import Model
from spax.audit.probes import distance
from spax.datasets import Dataset
from tests.audit import linear
from tests.audit.probes.reading import BUDGET, LINEAR, figure, probe
from tests.audit.probes.robustness_test import without_prediction_on_some


def test_distances_of_a_linear_model_are_those_to_its_plane():
    data = linear.data()
    section = probe(distance, LINEAR, data, dataclasses.replace(BUDGET, distance_steps=150))
    s = linear.scores(data.x_test)
    right = (s > 0) == (data.y_test == 1)
    exact = np.sort(np.abs(s[right]) / np.linalg.norm(linear.W))
    for name, level in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75)):
        found = figure(section, f"distance_{name}")
        at = exact[math.ceil(level * len(exact)) - 1]
        assert at * (1 - 1e-4) <= found.value <= at * 1.05
        assert found.low <= found.value <= found.high
    (grid,) = section.images
    assert grid.row_labels == ("clean", "m")
    assert (grid.pixels.min(), grid.pixels.max()) >= (0, 0)
    assert grid.pixels.max() <= 1


def test_a_model_that_is_never_right_has_no_distance():
    wrong = Model(lambda x: -linear.logits_fn(x))
    data = linear.data()
    right = (linear.scores(data.x_test) > 0) == (data.y_test == 1)
    data = Dataset(None, None, data.x_test[right], data.y_test[right], "right")
    section = probe(distance, wrong, data)
    assert figure(section, "distance_median").value is None
    assert not section.images


def test_distances_scale_with_the_bounds():
    data = linear.data()
    wide = Dataset(None, None, 255 * data.x_test, data.y_test, "wide", (0.0, 255.0))
    budget = dataclasses.replace(BUDGET, distance_steps=20, distance_rounds=4)
    here = probe(distance, LINEAR, data, budget)
    there = probe(distance, Model(lambda x: linear.logits_fn(x / 255)), wide, budget)
    for one, other in zip(here.measurements, there.measurements, strict=True):
        assert other.value == pytest.approx(255 * one.value, rel=1e-3)
        assert other.settings["initial_const"] == 255**2 * one.settings["initial_const"]


def test_distances_are_those_of_examples_that_are_classified_correctly():
    """An example without a prediction is not right, wherever argmax finds its NaN."""
    data = linear.data()
    budget = dataclasses.replace(BUDGET, distance_steps=5, distance_rounds=2)
    section = probe(distance, Model(without_prediction_on_some), data, budget)
    right = (linear.scores(data.x_test) > 0) == (data.y_test == 1)
    counted = right & (data.x_test[:, 0, 0, 0] <= 0.5)
    assert figure(section, "distance_median").settings["examples"] == counted.sum()
    (curve,) = section.plots[0].series
    assert curve.y[0] == pytest.approx(counted.mean())
