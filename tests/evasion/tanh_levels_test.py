"""The l0 and linf attacks of Carlini and Wagner."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import norms
from spax.evasion import carlini_wagner
from spax.losses import hits, margin, misclassified
from spax.typing import Stochastic
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.usefixtures("strict")

NORMS = ("l0", "linf")


@functools.partial(jax.jit, compiler_options=QUICK)
def _of_every_norm(params, x, y, confidence):
    return {
        norm: carlini_wagner(
            lambda x: (x - 0.5) @ params,
            x,
            y,
            norm=norm,
            confidence=confidence,
            step_size=0.03,
            steps=300,
            initial_const=0.1,
            search_steps=4,
            return_info=True,
        )
        for norm in NORMS
    }


@pytest.fixture(scope="module")
def run(linear):
    """Attacks of a linear model of two classes, in both norms, by one compiled function."""
    _, params, _, _ = linear
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(8, 6)).astype(np.float32)
    # The box is no exception: a third of the entries starts at its ends.
    x = jnp.asarray(np.where(rng.uniform(size=x.shape) < 1 / 3, np.round(x), x))
    params = params[:, :2]
    y = jnp.argmax((x - 0.5) @ params, axis=1)

    def attack(x=x, y=y, params=params, confidence=0.0):
        return _of_every_norm(params, x, y, jnp.float32(confidence))

    return attack, params, x, y


def _gains(params, x, y):
    """What each entry can add to the margin, at most, and its derivative; and the margin."""
    w = np.asarray(params[:, 1] - params[:, 0], np.float64)[None, :]
    w = w * np.where(np.asarray(y) == 0, 1, -1)[:, None]
    x = np.asarray(x, np.float64)
    room = np.where(w > 0, 1 - x, x)
    return np.abs(w), room, -np.sum(w * (x - 0.5), axis=1)


def _least_linf(params, x, y):
    """The radius at which the best point of ball and box is at the boundary, by bisection."""
    size, room, needed = _gains(params, x, y)
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(50):
        middle = (low + high) / 2
        enough = (size * np.minimum(room, middle[:, None])).sum(1) >= needed
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def _least_l0(params, x, y):
    """The fewest entries that reach the boundary: those of the largest gain."""
    size, room, needed = _gains(params, x, y)
    reached = np.cumsum(-np.sort(-size * room, axis=1), axis=1) >= needed[:, None]
    return 1 + np.argmax(reached, axis=1)


def test_linf_distances_of_a_linear_model_are_the_least_possible(run):
    attack, params, x, y = run
    x_adv, info = attack()["linf"]
    assert misclassified((x_adv - 0.5) @ params, y).all()
    distance, wanted = norms.norm(x_adv - x, "linf"), _least_linf(params, x, y)
    assert (distance >= wanted * (1 - 1e-4)).all()
    np.testing.assert_allclose(distance, wanted, rtol=0.05, atol=2e-3)
    assert (jnp.isfinite(info.const) & (info.const > 0) & (info.steps > 0)).all()


def test_l0_finds_the_fewest_entries_of_a_linear_model(run):
    attack, params, x, y = run
    x_adv, info = attack()["l0"]
    assert misclassified((x_adv - 0.5) @ params, y).all()
    count, wanted = np.asarray(norms.norm(x_adv - x, "l0")), _least_l0(params, x, y)
    assert (count >= wanted).all()
    assert (count == wanted).mean() >= 0.75
    assert (count <= wanted + 1).all()
    assert (jnp.isfinite(info.const) & (info.const > 0) & (info.steps > 0)).all()


def test_entries_at_the_ends_of_the_box_move(run):
    # Under the variables of the l2 attack they start where tanh is flat.
    attack, params, x, _ = run
    corners = jnp.round(x)
    y = jnp.argmax((corners - 0.5) @ params, axis=1)
    for norm, (x_adv, _) in attack(corners, y).items():
        assert misclassified((x_adv - 0.5) @ params, y).all(), norm
        least = {"l0": _least_l0, "linf": _least_linf}[norm](params, corners, y)
        assert (norms.norm(x_adv - corners, norm) <= 1.2 * least + 1e-3).all(), norm


def test_confidence_is_reached_and_costs_distance(run):
    attack, params, x, y = run
    near, far = attack(), attack(confidence=0.3)
    for norm in NORMS:
        reached = margin((far[norm][0] - 0.5) @ params, y)
        assert ((reached >= 0.3) | (far[norm][0] == x).all(axis=1)).all()
        assert (reached >= 0.3).mean() > 0.5
    found = jnp.isfinite(far["linf"][1].const)
    distance = {k: norms.norm(v["linf"][0] - x, "linf") for k, v in {"n": near, "f": far}.items()}
    assert (distance["f"] > distance["n"])[found].all()


def test_an_example_does_not_see_its_neighbours(run):
    attack, _, x, y = run
    # The others change, and with them how many rounds there are; the shape does not.
    others = jnp.concatenate([x[:1], 1 - x[1:]]), jnp.concatenate([y[:1], y[1:]])
    for norm in NORMS:
        (together, info), (alone, info_alone) = attack()[norm], attack(*others)[norm]
        np.testing.assert_array_equal(together[0], alone[0])
        assert info.steps[0] == info_alone.steps[0]


def test_failures_and_needless_attacks_return_the_input(run):
    attack, params, x, y = run
    for norm, (already, info) in attack(y=1 - y).items():
        np.testing.assert_array_equal(already, x, err_msg=norm)
        assert (info.const == 0).all()
        assert (info.steps == 0).all()
    # Only points outside the box would fool.
    steadfast = jnp.stack([jnp.full(6, 1e-3), jnp.zeros(6)], axis=1)
    ahead = jnp.argmax((jnp.ones((8, 6)) - 0.5) @ steadfast, axis=1)
    for norm, (failed, info) in attack(jnp.ones((8, 6)), ahead, 0 * params).items():
        np.testing.assert_array_equal(failed, 1, err_msg=norm)
        assert jnp.isinf(info.const).all()


@pytest.mark.parametrize("norm", NORMS)
def test_targets_of_a_stochastic_model_are_hit(linear, norm):
    apply_fn, params, x, y = linear
    noisy = Stochastic(
        lambda x, key: apply_fn(params, x) + 0.01 * jax.random.normal(key, (x.shape[0], 4))
    )
    wanted = (y + 1) % 4
    settings = {"norm": norm, "steps": 40, "search_steps": 2, "initial_const": 1.0}
    with pytest.raises(ValueError, match="needs a random key"):
        carlini_wagner(noisy, x, wanted, targeted=True, **settings)
    attack = jax.jit(
        lambda x, key: carlini_wagner(
            noisy, x, wanted, key=key, targeted=True, confidence=0.1, **settings
        ),
        compiler_options=QUICK,
    )
    x_adv = attack(x, jax.random.key(0))
    hit = hits(apply_fn(params, x_adv), wanted)
    np.testing.assert_array_equal(hit, (x_adv != x).any(axis=1))
    assert hit.mean() >= 0.5
