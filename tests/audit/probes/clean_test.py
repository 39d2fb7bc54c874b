"""Clean accuracy, and the list of the probes."""

import numpy as np
import pytest
from scipy import stats

from spax.audit.probes import (
    STANDARD,
    clean,
    distance,
    masking,
    membership,
    privacy,
    robustness,
    strongest,
)
from tests.audit import linear
from tests.audit.probes.reading import LINEAR, figure, figures, probe


def test_the_standard_probes_are_all_of_them():
    every = (clean, robustness, strongest, distance, masking, membership, privacy)
    assert every == STANDARD


def test_clean_accuracy_has_the_exact_interval():
    data = linear.data()
    section = probe(clean, LINEAR, data)
    share = figure(section, "clean_accuracy")
    right = np.mean((linear.scores(data.x_test) > 0) == data.y_test)
    assert share.value == pytest.approx(right)
    exact = stats.binomtest(round(40 * right), 40).proportion_ci(method="exact")
    assert (share.low, share.high) == pytest.approx(tuple(exact), abs=1e-9)
    assert figure(section, "training_accuracy").settings["examples"] == 50  # max_scored
    assert not figures(probe(clean, LINEAR, linear.data(members=False)), "training_accuracy")
