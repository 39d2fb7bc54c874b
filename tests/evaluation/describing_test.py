import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import evaluation
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")

# Two classes, the larger entry wins: the distance to the boundary is half the gap (linf).
X = jnp.array([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [0.2, 0.4], [0.5, 0.3]])
Y = jnp.array([0, 0, 0, 0, 0])  # the fourth is wrong as it is


def logits_fn(x):
    return x


def test_what_was_wrong_from_the_start_is_counted_apart():
    step = jnp.array([0.11, 0.21, 0.3, 0.0, 0.11])[:, None] * jnp.array([[-1.0, 1.0]])
    got = evaluation.describe(logits_fn, X, X + step, Y, norm="linf", eps=0.25)
    assert (got.n, got.initially_wrong, got.fooled) == (5, 1, 3)
    assert got.share == 3 / 4
    assert (got.low, got.high) == evaluation.binomial_interval(3, 4)
    assert got.median_distance == pytest.approx(0.11, rel=1e-5)
    assert got.mean_distance == pytest.approx(0.43 / 3, rel=1e-5)
    assert got.max_distance == pytest.approx(0.21, rel=1e-5)
    assert got.out_of_ball == 1
    text = str(got)
    assert text.startswith("3 of 4 fooled (75.0 %, 95 % interval 19.4 to 99.4), median distance")
    assert text.endswith("; 1 wrong from the start; 1 beyond eps")


def test_each_refusal_has_its_reason():
    def model(x):
        return jnp.where(x[:, :1] == 0.25, jnp.nan, x)

    points = jnp.array([[jnp.nan, 0.4], [-0.1, 0.3], [0.9, 1.0], [0.2, 0.4], [0.25, 0.3]])
    got = evaluation.describe(model, X, points, Y, norm="linf", eps=0.85)._asdict()
    reasons = ("not_finite", "out_of_bounds", "out_of_ball", "no_prediction")
    assert [got[reason] for reason in reasons] == [1, 1, 1, 1]
    assert got["fooled"] == 0
    assert np.isnan(got["median_distance"])


def test_a_description_of_nothing_right_says_so():
    got = evaluation.describe(logits_fn, X[3:4], X[3:4], Y[3:4], norm="l2")
    assert got.initially_wrong == 1
    assert np.isnan(got.share)
    assert (got.low, got.high) == (0, 1)


def test_a_description_is_for_concrete_values_and_stochastic_models_need_a_key():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: evaluation.describe(logits_fn, x, x, Y, norm="l2"))(X)
    noisy = Stochastic(lambda x, key: x + jax.random.normal(key, x.shape))
    with pytest.raises(ValueError, match="key"):
        evaluation.describe(noisy, X, X, Y, norm="l2")
    with pytest.raises(ValueError, match="must have the shape of x"):
        evaluation.describe(logits_fn, X, X[:2], Y, norm="l2")
