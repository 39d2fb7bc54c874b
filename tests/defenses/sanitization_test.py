"""Relabelling by neighbours: the votes of scikit-learn, the rule by hand, and what it saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.defenses import relabel_knn
from spax.poisoning import flip_labels

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(203, 5)).astype(np.float32)
    y = ((x[:, 0] > 0) + rng.integers(0, 2, 203)).astype(np.int32)
    return x, y


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.8])
def test_the_votes_are_scikit_learns(cloud, eta, strict):
    from sklearn.neighbors import NearestNeighbors

    x, y = cloud
    neighbours = NearestNeighbors(n_neighbors=7).fit(x).kneighbors(return_distance=False)  # no self
    votes = np.stack([(y[neighbours] == c).sum(axis=1) for c in range(3)], axis=1)
    most = votes.max(axis=1)
    sure = ((votes == most[:, None]).sum(axis=1) == 1) & (most / 7 >= eta)
    wanted = np.where(sure, votes.argmax(axis=1), y)
    got_x, got = relabel_knn(jnp.asarray(x), jnp.asarray(y), num_classes=3, k=7, eta=eta)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(got_x, x)
    assert got.dtype == y.dtype


def test_blocks_do_not_change_the_result(cloud):
    x, y = map(jnp.asarray, cloud)
    results = [
        jax.jit(lambda x, y, b=b: relabel_knn(x, y, num_classes=3, block_size=b)[1])(x, y)
        for b in (1, 50, 1000)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_memory_is_bounded_by_the_block():
    x, y = (
        jax.ShapeDtypeStruct((20_000, 8), jnp.float32),
        jax.ShapeDtypeStruct((20_000,), jnp.int32),
    )
    run = jax.jit(lambda x, y: relabel_knn(x, y, num_classes=3, block_size=16)[1])
    used = run.lower(x, y).compile().memory_analysis().temp_size_in_bytes
    assert used < 20_000 * 20_000  # all distances would take four times that


def test_the_threshold_ties_and_simultaneous_votes():
    # Two neighbours a point: its left and right (the ends have both on one side).
    x = jnp.arange(6, dtype=jnp.float32)[:, None] * jnp.array([[1.0, 0.0]])
    y = jnp.array([0, 1, 0, 1, 1, 1])
    _, new = relabel_knn(x, y, num_classes=2, k=2)
    # 0: votes 1 and 0, a tie, kept. 1: 0 and 0, changed. 2: 1 and 1, changed, by the labels given,
    # not by 1's new one. 3: 0 and 1, kept. 4 and 5: agree.
    assert new.tolist() == [0, 0, 1, 1, 1, 1]
    ten = jnp.concatenate([jnp.zeros((11, 1)), jnp.full((11, 1), 9.0)])
    y = jnp.array([1] + [0] * 6 + [1] * 4 + [1] * 11)  # point 0 has 6 votes of 10 for class 0
    for eta, wanted in ((0.6, 0), (0.61, 1)):
        assert int(relabel_knn(ten, y, num_classes=2, eta=eta)[1][0]) == wanted


def test_far_from_the_origin_distances_stay_exact(cloud):
    x, y = map(jnp.asarray, cloud)
    grid = jnp.round(x * 64) / 64  # sums with 4096 are exact
    near = relabel_knn(grid, y, num_classes=3)[1]
    far = relabel_knn(grid + 4096, y, num_classes=3)[1]
    assert (np.asarray(near) == np.asarray(far)).mean() > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 203}, "got k=203"),
        ({"k": 0}, "got k=0"),
        ({"eta": 1.5}, r"got eta=1\.5"),
        ({"num_classes": 2}, "got labels from 0 to 2"),
    ],
)
def test_bad_input_raises(cloud, changes, message):
    x, y = map(jnp.asarray, cloud)
    with pytest.raises(ValueError, match=message):
        relabel_knn(x, y, **({"num_classes": 3} | changes))


def test_relabelling_recovers_flipped_digits(digits):
    from sklearn.linear_model import LogisticRegression

    x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
    _, flipped = flip_labels(x, y, key=KEY, rate=0.2, num_classes=10)
    _, cleaned = jax.jit(lambda x, y: relabel_knn(x, y, num_classes=10))(x, flipped)
    wrong_before, wrong = (float((v != y).mean()) for v in (flipped, cleaned))
    assert round(wrong_before, 2) == 0.2
    assert wrong <= 0.04

    def error(labels):
        fit = LogisticRegression(max_iter=200).fit(digits.x_train.reshape(len(y), -1), labels)
        return 1 - fit.score(digits.x_test.reshape(len(digits.y_test), -1), digits.y_test)

    clean, poisoned, saved = (error(np.asarray(v)) for v in (y, flipped, cleaned))
    assert poisoned > clean + 0.03
    assert saved < clean + 0.5 * (poisoned - clean)


def test_the_honest_figure_structured_flips_get_through(digits):
    # The outlying members of each class flipped to one other class: their neighbours flip too.
    x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
    pair = (jnp.arange(10) + 1) % 10
    centres = jnp.stack([x[y == c].mean(axis=0) for c in range(10)])
    gap = jnp.sum((x - centres[pair[y]]) ** 2, axis=(1, 2, 3))  # far from what it will be called
    _, flipped = flip_labels(x, y, rate=0.2, num_classes=10, mapping=pair, scores=gap)
    _, cleaned = jax.jit(lambda x, y: relabel_knn(x, y, num_classes=10))(x, flipped)
    random = flip_labels(x, y, key=KEY, rate=0.2, num_classes=10)[1]
    saved = jax.jit(lambda x, y: relabel_knn(x, y, num_classes=10))(x, random)[1]
    assert (cleaned != y).mean() > 3 * (saved != y).mean()
