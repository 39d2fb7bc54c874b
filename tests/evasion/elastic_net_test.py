import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from spax import norms
from spax.evasion import ead
from spax.losses import hits, margin, misclassified
from spax.typing import Stochastic
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.usefixtures("strict")

run = jax.jit(
    lambda params, x, y, **kw: ead(lambda x: (x - 0.5) @ params, x, y, return_info=True, **kw),
    static_argnames=("steps", "search_steps", "l1_rule", "scale_threshold", "targeted"),
    compiler_options=QUICK,
)
SETTINGS = {"steps": 200, "search_steps": 8, "initial_const": 1e-2}


@pytest.fixture(scope="module")
def binary(linear):
    """Two classes of the linear model, and the normals that point out of each example's class."""
    _, params, x, _ = linear
    params = params[:, :2]
    y = jnp.argmax((x - 0.5) @ params, axis=1)
    normal = np.asarray(params[:, 1] - params[:, 0], np.float64)[None, :]
    return params, x, y, normal * np.where(np.asarray(y) == 0, 1, -1)[:, None]


def _least(x, normal, beta):
    """The least ``beta |d|_1 + |d|_2^2`` of the half-space and the box, by SciPy.

    With d = up - down, both >= 0, the objective is smooth.
    """
    n = len(x)

    def objective(parts):
        d = parts[:n] - parts[n:]
        return beta * parts.sum() + d @ d, np.concatenate([beta + 2 * d, beta - 2 * d])

    result = scipy.optimize.minimize(
        objective,
        np.full(2 * n, 0.01),
        jac=True,
        bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x],
        constraints={
            "type": "ineq",
            "fun": lambda parts: normal @ (x + parts[:n] - parts[n:] - 0.5),
            "jac": lambda parts: np.concatenate([normal, -normal]),
        },
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-10},
    )
    assert result.success
    return result.fun


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_the_scaled_threshold_finds_the_elastic_net_optimum_of_a_linear_model(binary, beta):
    params, x, y, normal = binary
    x_adv, info = run(params, x, y, beta=jnp.float32(beta), scale_threshold=True, **SETTINGS)
    assert misclassified((x_adv - 0.5) @ params, y).all()
    delta = np.asarray(x_adv - x, np.float64)
    value = beta * np.abs(delta).sum(1) + (delta**2).sum(1)
    wanted = np.array(
        [_least(p, n, beta) for p, n in zip(np.asarray(x, np.float64), normal, strict=True)]
    )
    assert (value >= wanted * (1 - 1e-3)).all()
    np.testing.assert_allclose(value, wanted, rtol=0.05, atol=1e-4)
    assert (jnp.isfinite(info.const) & (info.steps <= 8 * 200)).all()


def test_without_a_threshold_it_is_the_nearest_point_in_l2(binary):
    params, x, y, normal = binary
    x_adv, _ = run(params, x, y, beta=jnp.float32(0), scale_threshold=True, **SETTINGS)
    wanted = np.array(
        [_least(p, n, 0.0) for p, n in zip(np.asarray(x, np.float64), normal, strict=True)]
    )
    distance = norms.norm(x_adv - x, "l2")
    np.testing.assert_allclose(distance, np.sqrt(wanted), rtol=0.03, atol=1e-3)


def test_each_rule_is_least_in_its_own_measure(binary):
    params, x, y, _ = binary
    beta = jnp.float32(0.01)
    by_l1, by_en = (
        run(params, x, y, beta=beta, l1_rule=rule, **SETTINGS)[0] - x for rule in (True, False)
    )

    def elastic(delta):
        return 0.01 * norms.norm(delta, "l1") + norms.norm(delta, "l2") ** 2

    # Both have seen the first success of the same rounds; later c differ at most by bisection.
    assert (norms.norm(by_l1, "l1") <= norms.norm(by_en, "l1") * (1 + 1e-5)).all()
    assert (elastic(by_en) <= elastic(by_l1) * (1 + 1e-5)).all()


def test_entries_that_matter_little_stay_to_the_bit():
    # The second is worth a twentieth of the first: no l1-optimal point touches it.
    params = jnp.array([[-1.0, 1.0], [-0.05, 0.05]])
    x = jnp.array([[0.3, 0.3], [0.0, 0.4]])
    x_adv, _ = run(params, x, jnp.array([0, 0]), beta=jnp.float32(0.01), **SETTINGS)
    np.testing.assert_array_equal(x_adv[:, 1], x[:, 1])
    np.testing.assert_allclose(x_adv[:, 0], 0.5 + 0.05 * (0.5 - x[:, 1]), atol=5e-3)


def test_the_threshold_of_the_authors_code_is_beta_itself():
    # One step with c = 1: u = 0.01 * 2 = 0.02 in the first entry, less beta = 0.015.
    params = jnp.array([[-1.0, 1.0], [0.0, 0.0]])
    x, y = jnp.array([[0.499, 0.2]]), jnp.array([0])
    settings = {"steps": 1, "search_steps": 1, "initial_const": 1.0, "beta": jnp.float32(0.015)}
    x_adv, _ = run(params, x, y, **settings)
    np.testing.assert_allclose(x_adv, [[0.504, 0.2]], atol=1e-6)


def test_confidence_is_reached_and_targets_are_hit(linear):
    _, params, x, y = linear
    wanted = (y + 1) % 4
    x_adv, info = run(params, x, wanted, targeted=True, confidence=jnp.float32(0.2), **SETTINGS)
    logits = (x_adv - 0.5) @ params
    found = jnp.isfinite(info.const)
    np.testing.assert_array_equal(hits(logits, wanted) & (-margin(logits, wanted) >= 0.2), found)
    np.testing.assert_array_equal((x_adv != x).any(axis=1), found)
    assert found.mean() > 0.5


def test_an_example_does_not_see_its_neighbours(linear):
    _, params, x, y = linear
    others = jnp.concatenate([x[:1], 1 - x[1:]])
    (together, info), (alone, info_alone) = (run(params, z, y, **SETTINGS) for z in (x, others))
    np.testing.assert_array_equal(together[0], alone[0])
    assert info.steps[0] == info_alone.steps[0]
    assert len(np.unique(info.steps)) > 1


def test_failures_and_needless_attacks_return_the_input(linear):
    _, params, x, y = linear
    already, info = run(params, x, (y + 1) % 4, **SETTINGS)
    np.testing.assert_array_equal(already, x)
    assert (info.const == 0).all()
    failed, info = run(0 * params, x, jnp.zeros(8, y.dtype), **SETTINGS)
    np.testing.assert_array_equal(failed, x)
    assert jnp.isinf(info.const).all()


def test_a_stochastic_model_needs_a_key_and_is_attacked(linear):
    apply_fn, params, x, y = linear
    noisy = Stochastic(
        lambda x, key: apply_fn(params, x) + 0.01 * jax.random.normal(key, (x.shape[0], 4))
    )
    with pytest.raises(ValueError, match="needs a random key"):
        ead(noisy, x, y)
    settings = {"steps": 50, "search_steps": 3, "initial_const": 1.0, "confidence": 0.1}
    attack = jax.jit(
        lambda x, key: ead(noisy, x, y, key=key, abort_early=False, **settings),
        compiler_options=QUICK,
    )
    x_adv = attack(x, jax.random.key(0))
    assert misclassified(apply_fn(params, x_adv), y).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "beta must be >= 0"),
        ({"confidence": -1.0}, "confidence must be >= 0"),
        ({"initial_const": 0.0}, "initial_const must be > 0"),
        ({"step_size": 0.0}, "step_size must be > 0"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"search_steps": 0}, "search_steps must be >= 1"),
        ({"y": jnp.full(8, 9)}, r"labels must lie in \[0, 4\)"),
        ({"x": jnp.full((8, 6), 2.0)}, "x must lie within bounds"),
        ({"x": jnp.full((8, 6), jnp.nan)}, "x must be finite"),
        ({"x": jnp.zeros((8, 6), int)}, "x must be floating point"),
        ({"x": jnp.zeros((7, 6))}, "y must have one entry per example"),
    ],
)
def test_bad_settings_raise(linear, arguments, message):
    apply_fn, params, x, y = linear
    x, y = arguments.pop("x", x), arguments.pop("y", y)
    with pytest.raises(ValueError, match=message):
        ead(lambda x: apply_fn(params, x), x, y, **arguments)
