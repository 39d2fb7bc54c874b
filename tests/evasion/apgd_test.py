import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import apgd, apgd_targeted, pgd
from spax.evasion.adaptive_ascent import _sparse_sign, _windows, checkpoints
from spax.gradients import eot
from spax.losses import cross_entropy, dlr, margin, misclassified
from spax.norms import norm as norm_of
from spax.typing import Stochastic
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)

run = jax.jit(
    lambda w, x, y, key, **kw: apgd(lambda x: (x - 0.5) @ w, x, y, key=key, **kw),
    static_argnames=("steps", "restarts", "norm", "loss", "targeted"),
    compiler_options=QUICK,
)


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (100, (22, 41, 57, 70, 80, 87, 93, 99)),
        (50, (11, 21, 30, 38, 45)),
        (10, (2, 3, 4, 5, 6, 7, 8, 9, 10)),
        (1, (1,)),
    ],
)
def test_checkpoints_are_those_of_the_paper(steps, wanted):
    assert checkpoints(steps) == wanted


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_windows_add_up_to_the_budget_and_end_in_the_ball_itself(steps, norm):
    windows = _windows(steps, norm)
    assert windows.length.sum() - windows.opens.sum() == steps
    assert windows.factor[-1] == 1
    assert windows.opens[0]
    if norm == "l1" and steps == 100:
        moved = windows.length - windows.opens
        assert [int(moved[windows.factor == f].sum()) for f in (3, 2, 1)] == [30, 30, 40]
        assert moved.max() == 4


def test_step_sizes_follow_the_two_conditions():
    """A function with one kink, climbed in one dimension: eta is checked by hand.

    f(z) = -|z - 0.3|, from z = 0 with radius 1 and eta = 2: the steps go over the kink and back.
    """
    seen = []

    def f(x):
        jax.debug.callback(lambda z: seen.append(float(z[0, 0])), x, ordered=True)
        return jnp.abs(x - 0.3) * jnp.array([[1.0, 0.0]])

    apgd(
        f,
        jnp.array([[0.0]]),
        jnp.array([0]),
        key=KEY,
        eps=1.0,
        steps=10,
        random_start=False,
        bounds=(-2.0, 2.0),
        loss=lambda z, y: -z[:, 0],
        criterion=lambda z, y: jnp.zeros(1, bool),
    )
    # Algorithm 1 by hand: checks after steps 2, 3, 4, ...; rho = 3/4.
    eta, z, before, best, best_value, value = 2.0, 0.0, 0.0, 0.0, -0.3, -0.3
    wanted, rises, then, halved = [0.0], 0, -np.inf, False
    for k in range(1, 11):
        u = np.clip(z + eta * np.sign(0.3 - z), -1, 1)
        alpha = 1.0 if k == 1 else 0.75
        z, before = np.clip(z + alpha * (u - z) + (1 - alpha) * (z - before), -1, 1), z
        new = -abs(z - 0.3)
        rises += new > value
        value = new
        if new > best_value:
            best, best_value = z, new
        wanted.append(z)
        if k in checkpoints(10):
            length = 2 if k == 2 else 1
            few, stuck = rises < 0.75 * length, not halved and best_value <= then
            halved = few or stuck
            if halved:
                eta, z, value = eta / 2, best, best_value
            rises, then = 0, best_value
    np.testing.assert_allclose(seen, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "eps", "loss"),
    [("linf", 0.05, margin), ("l2", 0.1, margin), ("l1", 0.2, margin), ("linf", 0.05, dlr)],
)
def test_the_optimum_of_a_linear_model_is_reached(linear, norm, eps, loss):
    apply_fn, w, x, y = linear
    x_adv = run(w, x, y, KEY, eps=eps, steps=30, norm=norm, loss=loss)
    gain = np.asarray(margin(apply_fn(w, x_adv), y))
    _, best, slope = reachable(linear, eps, {"linf": 1, "l2": 2, "l1": np.inf}[norm])
    assert (norm_of(x_adv - x, norm) <= eps + 1e-6).all()
    assert (gain <= best + 1e-4).all()
    if norm == "l1":
        # At least two entries always share the step: half of the gain is sure, the whole is not.
        assert (gain >= best - eps * slope / 2 - 1e-4).all()
    elif loss is margin:
        np.testing.assert_allclose(gain, best, rtol=0.02, atol=2e-3)
    else:
        # The ratio has its own optimum, but what can be fooled is.
        np.testing.assert_array_equal(gain > 0, best > 0)


def reachable(linear, eps, dual):
    """The margins of the linear model: at x, the largest in the ball, and the slope there."""
    apply_fn, w, x, y = linear
    z, w, y = np.asarray(apply_fn(w, x)), np.asarray(w), np.asarray(y)
    slopes = np.linalg.norm(w[:, None, :] - w[:, y][..., None], dual, axis=0)  # [B, K]
    gap = np.where(np.arange(4) == y[:, None], -np.inf, z - z[np.arange(8), y][:, None])
    at = np.argmax(gap + eps * slopes, axis=1)
    return gap.max(axis=1), (gap + eps * slopes).max(axis=1), slopes[np.arange(8), at]


def test_targets_are_hit_through_restarts(linear):
    apply_fn, w, x, y = linear
    wanted = (y + 1) % 4
    x_adv = run(w, x, wanted, KEY, eps=0.3, steps=8, restarts=2, targeted=True)
    assert (jnp.argmax(apply_fn(w, x_adv), axis=1) == wanted).mean() > 0.5


def test_dlr_rescues_where_a_plain_cross_entropy_has_no_gradient(linear):
    """In float32 the softmax of far larger logits is 0 and 1."""
    _, w, x, y = linear
    w = 1e5 * w

    def plain(logits, y):
        p = jax.nn.softmax(logits, axis=1)
        return -jnp.log(jnp.take_along_axis(p, y[:, None], axis=1)[:, 0])

    def left(loss):
        f = jax.jit(
            lambda w, x: apgd(
                lambda x: (x - 0.5) @ w, x, y, eps=0.2, steps=10, loss=loss, random_start=False
            )
        )
        return 1 - float(misclassified((f(w, x) - 0.5) @ w, y).mean())

    assert left(plain) == 1
    assert left(dlr) < 0.5


def test_the_sparse_step_takes_the_largest_share_and_has_norm_one():
    grad = jnp.array([[1.0, -5.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0], [jnp.nan, 1.0, 2.0, 3.0]])
    signs = _sparse_sign(grad, jnp.array([0.5, 0.5, 1.0]))
    np.testing.assert_allclose(signs[0], [0, -0.5, 0.5, 0])
    np.testing.assert_array_equal(signs[1], jnp.zeros(4))
    np.testing.assert_allclose(signs[2], [0, 1 / 3, 1 / 3, 1 / 3])


target_by_target = jax.jit(
    lambda w, x, y, key, **kw: apgd_targeted(lambda x: (x - 0.5) @ w, x, y, key=key, **kw),
    static_argnames=("steps", "n_targets"),
    compiler_options=QUICK,
)


def test_target_by_target_fools_what_the_margin_allows(linear):
    apply_fn, w, x, y = linear
    x_adv = target_by_target(w, x, y, KEY, eps=0.06, steps=20)
    _, best, _ = reachable(linear, 0.06, 1)
    assert 0 < np.mean(best > 0) < 1
    np.testing.assert_array_equal(misclassified(apply_fn(w, x_adv), y), best > 0)


def test_neighbours_do_not_matter_to_when_an_example_ends(linear):
    _, w, x, y = linear
    together = target_by_target(w, x, y, KEY, eps=0.08, steps=20)
    alone = target_by_target(w, x[:1], y[:1], KEY, eps=0.08, steps=20)
    np.testing.assert_allclose(together[:1], alone, atol=1e-6)


def test_eps_zero_returns_x(linear):
    _, w, x, y = linear
    np.testing.assert_array_equal(run(w, x, y, KEY, eps=0.0, steps=30, norm="linf", loss=margin), x)
    np.testing.assert_array_equal(target_by_target(w, x, y, KEY, eps=0.0, steps=20), x)


def test_gradients_may_be_averaged_over_draws(linear):
    _, w, x, y = linear
    noisy = Stochastic(lambda x, key: (x - 0.5) @ w + 0.01 * jax.random.normal(key, (8, 4)))
    attack = jax.jit(
        lambda x, key: apgd(noisy, x, y, key=key, eps=0.3, steps=3, loss=dlr, gradient=eot(4)),
        compiler_options=QUICK,
    )
    assert misclassified((attack(x, KEY) - 0.5) @ w, y).mean() > 0.5
    with pytest.raises(ValueError, match="needs a random key"):
        apgd(noisy, x, y, eps=0.1, random_start=False)


@pytest.mark.parametrize(
    ("attack", "arguments", "message"),
    [
        (apgd, {"norm": "l0"}, "norm must be one of"),
        (apgd, {"eps": -0.1}, "eps must be >= 0"),
        (apgd, {"rho": 1.5}, "rho must be >= 0 and <= 1"),
        (apgd, {"steps": 0}, "steps must be >= 1"),
        (apgd, {"restarts": 0}, "restarts must be >= 1"),
        (apgd, {"key": None}, "random_start=True needs a random key"),
        (apgd, {"restarts": 2, "random_start": False}, "restarts need random_start=True"),
        (apgd, {"bounds": (0.4, 0.6)}, "x must lie within bounds"),
        (apgd_targeted, {"norm": "l0"}, "norm must be one of"),
        (apgd_targeted, {"n_targets": 0}, "n_targets must be >= 1"),
        (apgd_targeted, {"key": None}, "a random start needs a random key"),
    ],
)
def test_bad_arguments_are_refused(linear, attack, arguments, message):
    apply_fn, w, x, y = linear
    with pytest.raises(ValueError, match=message):
        attack(functools.partial(apply_fn, w), x, y, **{"eps": 0.1, "key": KEY} | arguments)


@pytest.mark.parametrize(
    ("attack", "classes", "message"),
    [
        (functools.partial(apgd, loss=dlr), 2, "K >= 3"),
        (apgd_targeted, 3, "K >= 4"),
        (apgd_targeted, 1, "K >= 2"),
    ],
)
def test_too_few_classes_for_the_ratio_are_refused(linear, attack, classes, message):
    _, w, x, y = linear
    with pytest.raises(ValueError, match=message):
        attack(lambda x: x @ w[:, :classes], x, jnp.zeros_like(y), key=KEY, eps=0.1)


def test_labels_outside_the_classes_and_bad_inputs_are_refused(linear):
    apply_fn, w, x, y = linear
    f = functools.partial(apply_fn, w)
    for attack in (apgd, apgd_targeted):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
            attack(f, x, y + 4, key=KEY, eps=0.1)
        with pytest.raises(ValueError, match="x must be finite"):
            attack(f, x.at[0, 0].set(jnp.nan), y, key=KEY, eps=0.1)
        with pytest.raises(ValueError, match="one entry per example"):
            attack(f, x, y[:3], key=KEY, eps=0.1)


@pytest.mark.slow
def test_on_mnist_auto_pgd_is_no_weaker_than_pgd(spax_data):
    from benchmarks import victim

    params, x, y = victim.load(victim.prepare(quick=False), 300)
    x, y = jnp.asarray(x), jnp.asarray(y, jnp.int32)

    @functools.partial(jax.jit, static_argnums=0)
    def left(attack, params, x, y):
        x_adv = attack(lambda x: victim.apply_fn(params, x), x, y, key=KEY)
        wrong = misclassified(victim.apply_fn(params, x_adv), y)
        return 100 * (1 - wrong.mean(dtype=jnp.float32))

    for eps in (0.1, 0.15):
        usual = left(functools.partial(pgd, eps=eps, step_size=0.01, steps=40), params, x, y)
        # The DLR loss alone is the weaker of the two on a network that nobody made robust.
        for loss, slack in ((cross_entropy, 0.5), (dlr, 3.0)):
            ours = left(functools.partial(apgd, eps=eps, steps=40, loss=loss), params, x, y)
            assert ours <= usual + slack
