import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import evaluation
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")

W = jnp.array([[2.0, -1.0, 0.5]])


def binary(x):
    """A linear model of two classes: class 1 where 2 a - b + c / 2 > 0.75."""
    score = x @ W[0] - 0.75
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


def nearest(x, norm, factor):
    """The foot of the perpendicular in the norm, times a factor: closed form of a linear model."""
    score = x @ W[0] - 0.75
    if norm == "linf":
        direction, size = jnp.sign(W), jnp.abs(W).sum()
    elif norm == "l2":
        direction, size = W / jnp.linalg.norm(W), jnp.linalg.norm(W)
    else:
        direction, size = jnp.array([[1.0, 0.0, 0.0]]), jnp.abs(W).max()
    return x - factor * (score / size)[:, None] * direction, jnp.abs(score) / size


X = jnp.array([[0.6, 0.4, 0.5], [0.4, 0.5, 0.5], [0.5, 0.6, 0.3], [0.55, 0.5, 0.6]])
Y = jnp.argmax(binary(X), axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_distance_of_a_linear_model_is_its_closed_form(norm):
    beyond, distance = nearest(X, norm, 1.001)
    got = evaluation.judge(binary, X, beyond, Y, norm=norm)
    assert got.success.all()
    np.testing.assert_allclose(got.distance, distance, rtol=2e-3)
    short, _ = nearest(X, norm, 0.999)
    success, distance = evaluation.judge(binary, X, short, Y, norm=norm)
    assert not success.any()
    assert jnp.isinf(distance).all()


def test_l0_counts_changed_entries():
    x_adv = X.at[:, 0].set(1 - jnp.round(X[:, 0]))
    got = evaluation.judge(binary, X, x_adv, 1 - binary(x_adv).argmax(1), norm="l0", eps=1)
    assert got.distance.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("x_adv", "why"),
    [
        ([jnp.nan, 0.0, 0.0], "not_finite"),
        ([-jnp.inf, 0.0, 0.0], "not_finite"),
        ([-0.1, 0.4, 0.5], "out_of_bounds"),
        ([0.0, 1.1, 0.5], "out_of_bounds"),
        ([0.0, 0.4, 0.5], "out_of_ball"),
    ],
)
def test_points_that_break_the_rules_are_no_success_and_are_counted(x_adv, why):
    x, y, z = X[:1], Y[:1], jnp.array([x_adv])
    everything = lambda outputs, y: y == y  # noqa: E731
    for criterion in (None, everything):
        got = evaluation.judge(binary, x, z, y, norm="linf", eps=0.5, criterion=criterion)
        assert got.success.tolist() == [False]
        assert got.distance.tolist() == [jnp.inf]
    counts = evaluation.describe(binary, x, z, y, norm="linf", eps=0.5)._asdict()
    assert counts[why] == 1
    assert counts["fooled"] == 0


def test_rounding_at_the_radius_and_the_bounds_is_no_offence():
    z = nearest(X[:1], "linf", 1.2)[0]
    size = float(jnp.abs(z - X[:1]).max())
    judge = lambda eps: evaluation.judge(binary, X[:1], z, Y[:1], norm="linf", eps=eps)  # noqa: E731
    assert judge(size - 5e-7).success.all()
    assert not judge(size - 5e-6).success.any()
    edge = jnp.array([[-5e-7, 0.4, 0.5]])
    assert evaluation.judge(binary, X[:1], edge, Y[:1], norm="linf").success.all()
    beyond = jnp.array([[-5e-6, 0.4, 0.5]])
    assert not evaluation.judge(binary, X[:1], beyond, Y[:1], norm="linf").success.any()


def test_bounds_may_differ_by_channel_and_eps_by_example():
    z = X - 0.3 * jnp.sign(W) * (2 * Y - 1).astype(X.dtype)[:, None]
    low = jnp.array([0.0, 0.0, 0.45])
    got = evaluation.judge(binary, X, z, Y, norm="linf", bounds=(low - 1, low + 2))
    assert got.success.all()
    eps = jnp.array([0.29, 0.31, 0.29, 0.31])
    got = evaluation.judge(binary, X, z, Y, norm="linf", eps=eps, bounds=(low - 1, low + 2))
    assert got.success.tolist() == [False, True, False, True]


def test_a_model_without_a_prediction_is_not_fooled():
    def broken(x):
        return jnp.where(x[:, :1] > 0.5, jnp.nan, binary(x))

    z = jnp.array([[0.9, 0.1, 0.9]])
    everything = lambda outputs, y: y == y  # noqa: E731
    for criterion in (None, everything):
        got = evaluation.judge(broken, X[1:2], z, Y[1:2], norm="linf", criterion=criterion)
        assert not got.success.any()
    assert evaluation.describe(broken, X[1:2], z, Y[1:2], norm="linf").no_prediction == 1


def test_targeted_success_is_the_wanted_label():
    logits = lambda x: x  # noqa: E731
    x = jnp.array([[0.8, 0.5, 0.2]] * 3)
    x_adv = jnp.array([[0.5, 0.8, 0.2], [0.5, 0.2, 0.8], [0.8, 0.5, 0.2]])
    wanted = jnp.array([2, 2, 0])
    got = evaluation.judge(logits, x, x_adv, wanted, norm="l2", targeted=True)
    assert got.success.tolist() == [False, True, True]
    assert got.distance[2] == 0


def test_the_judge_is_the_same_under_jit_and_per_example():
    z, _ = nearest(X, "l2", jnp.array([[0.5], [1.5], [0.9], [1.1]]))
    wanted = evaluation.judge(binary, X, z, Y, norm="l2", eps=0.2)
    jitted = jax.jit(lambda x, z, y, eps: evaluation.judge(binary, x, z, y, norm="l2", eps=eps))
    rows = jax.vmap(
        lambda x, z, y: evaluation.judge(binary, x[None], z[None], y[None], norm="l2", eps=0.2)
    )(X, z, Y)
    for got in (jitted(X, z, Y, 0.2), jax.tree.map(lambda v: v[:, 0], rows)):
        np.testing.assert_array_equal(got.success, wanted.success)
        np.testing.assert_allclose(got.distance, wanted.distance, rtol=1e-5)


def test_bfloat16_points_are_measured_in_float32():
    x = jnp.full((1, 1000), 0.5, jnp.bfloat16)
    x_adv = x.at[:, :999].set(0.50390625)  # one step of bfloat16 up
    logits = lambda x: jnp.stack([x[:, 999], x[:, 0]], axis=1)  # noqa: E731
    got = evaluation.judge(logits, x, x_adv, jnp.array([0]), norm="l1")
    assert got.distance.dtype == jnp.float32
    assert got.distance.tolist() == [999 * 0.00390625]


def test_a_stochastic_model_is_judged_on_one_draw_of_the_key():
    noisy = Stochastic(lambda x, key: binary(x) + jax.random.normal(key, (1, 2)))
    with pytest.raises(ValueError, match="key"):
        evaluation.judge(noisy, X, X, Y, norm="l2")
    key = jax.random.key(3)
    got = evaluation.judge(noisy, X, X, Y, key=key, norm="l2")
    np.testing.assert_array_equal(got.success, noisy(X, key).argmax(1) != Y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_adv": X[:, :2]}, r"x_adv must have the shape of x, \(4, 3\) \(got \(4, 2\)\)"),
        ({"norm": "l3"}, "norm must be one of"),
        ({"eps": -0.1}, r"eps must be >= 0 \(got eps=-0.1\)"),
        ({"eps": jnp.ones(3)}, r"one per example, of shape \(4,\) \(got shape \(3,\)\)"),
        ({"bounds": (1.0, 0.0)}, "low < high"),
        ({"x": X + 1}, "within bounds"),
        ({"y": Y + 2}, r"labels must lie in \[0, 2\)"),
        ({"y": Y[:2]}, "one entry per example"),
    ],
)
def test_the_judge_refuses_bad_input(change, message):
    given = {"x": X, "x_adv": X, "y": Y, "norm": "l2"} | change
    x, x_adv, y = (given.pop(name) for name in ("x", "x_adv", "y"))
    with pytest.raises(ValueError, match=message):
        evaluation.judge(binary, x, x_adv, y, **given)
