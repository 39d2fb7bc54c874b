import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import boundary, hop_skip_jump
from spax.losses import misclassified
from spax.norms import norm as norm_of

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.slow]

KEY = jax.random.key(0)
BOUNDS = (-1.0, 2.0)  # far from the digits, so that distances have a closed form


@pytest.fixture(scope="module")
def problem(digits):
    """A linear classifier of digits by least squares, and some that it gets right."""
    x = digits.x_train.reshape(len(digits.x_train), -1)
    w = np.linalg.lstsq(np.c_[x, np.ones(len(x))], np.eye(10)[digits.y_train], rcond=None)[0]
    x, y = digits.x_test.reshape(len(digits.x_test), -1), digits.y_test
    right = (np.c_[x, np.ones(len(x))] @ w).argmax(axis=1) == y
    assert right.mean() > 0.9
    rows = np.flatnonzero(right)[:12]
    params = jnp.asarray(w[:-1], jnp.float32), jnp.asarray(w[-1], jnp.float32)
    return params, jnp.asarray(x[rows]), jnp.asarray(y[rows])


def logits(params, x):
    w, b = params
    return x @ w + b[None, :]


def nearest(params, x, y, dual):
    """The distance to the nearest hyperplane at which another class takes over."""
    w, z = np.asarray(params[0], np.float64), np.asarray(logits(params, x), np.float64)
    found = []
    for row, label in zip(z, np.asarray(y), strict=True):
        others = [k for k in range(10) if k != label]
        sizes = [np.linalg.norm(w[:, label] - w[:, k], dual) for k in others]
        found.append(min((row[label] - row[k]) / s for k, s in zip(others, sizes, strict=True)))
    return np.array(found)


@functools.cache
def compiled(attack, **settings):
    @jax.jit
    def run(params, x, y, key, most, x_init=None):
        return attack(
            # A decision and nothing more: there is no gradient to be had, and no score.
            lambda x: jax.nn.one_hot(jnp.argmax(logits(params, x), axis=1), 10),
            x,
            y,
            key=key,
            max_queries=most,
            x_init=x_init,
            bounds=BOUNDS,
            return_info=True,
            **settings,
        )

    return run


HOPS = {ball: functools.partial(compiled, hop_skip_jump, norm=ball) for ball in ("l2", "linf")}
WALK = functools.partial(compiled, boundary)


@pytest.mark.parametrize(("ball", "dual"), [("l2", 2), ("linf", 1)])
def test_hop_skip_jump_comes_near_the_least_distance_of_a_linear_model(problem, ball, dual):
    params, x, y = problem
    x_adv, info = HOPS[ball]()(params, x, y, KEY, 4000)
    distance, wanted = norm_of(x_adv - x, ball), nearest(params, x, y, dual)
    assert misclassified(logits(params, x_adv), y).all()
    assert (distance >= wanted * (1 - 1e-3)).all()
    assert np.median(distance / wanted) < (1.1 if ball == "l2" else 1.3)
    assert ((info.queries > 3000) & (info.queries <= 4000)).all()


def test_the_boundary_attack_never_moves_away_and_hop_skip_jump_is_nearer(problem):
    params, x, y = problem
    runs = [WALK()(params, x, y, KEY, most) for most in (20, 200, 1000, 2000)]
    distances = np.stack([norm_of(x_adv - x, "l2") for x_adv, _ in runs])
    assert (np.diff(distances, axis=0) <= 0).all()
    assert (distances[-1] < distances[0]).all()
    for (x_adv, info), most in zip(runs, (20, 200, 1000, 2000), strict=True):
        assert misclassified(logits(params, x_adv), y).all()
        assert (info.queries <= most).all()
    assert (distances[-1] >= nearest(params, x, y, 2) * (1 - 1e-3)).all()
    hops, _ = HOPS["l2"]()(params, x, y, KEY, 2000)
    assert np.median(norm_of(hops - x, "l2")) < np.median(distances[-1])


@pytest.mark.parametrize("run", [HOPS["l2"], WALK], ids=["hop_skip_jump", "boundary"])
def test_failures_and_needless_attacks_return_the_input(problem, run):
    params, x, y = problem
    steadfast = jnp.zeros_like(params[0]), jax.nn.one_hot(3, 10)
    x_adv, info = run()(steadfast, x, jnp.full_like(y, 3), KEY, 4000)
    np.testing.assert_array_equal(x_adv, x)
    np.testing.assert_array_equal(info.queries, 101)  # itself, and 100 draws of noise
    x_adv, info = run()(params, x, (y + 1) % 10, KEY, 4000)
    np.testing.assert_array_equal(x_adv, x)
    np.testing.assert_array_equal(info.queries, 1)


@pytest.mark.parametrize("attack", [hop_skip_jump, boundary])
def test_targets_are_hit_from_examples_of_the_wanted_class(problem, attack):
    params, x, y = problem
    start = jnp.roll(x, 1, axis=0)
    wanted = jnp.roll(y, 1).at[0].set((y[-1] + 1) % 10)  # the first start is of another class
    differ = (wanted != y) & (jnp.arange(12) > 0)
    run = compiled(attack, targeted=True, steps=5 if attack is hop_skip_jump else 300)
    x_adv, info = run(params, x, wanted, KEY, 1500, start)
    hit = jnp.argmax(logits(params, x_adv), axis=1) == wanted
    assert hit[1:].all()
    assert differ.sum() > 6
    nearer = norm_of(x_adv - x, "l2") < norm_of(start - x, "l2")
    assert nearer[differ].all()
    np.testing.assert_array_equal(x_adv[0], x[0])
    assert int(info.queries[0]) == 2


@pytest.mark.parametrize("attack", [hop_skip_jump, boundary])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": None}, "needs a random key"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"max_queries": -1}, "max_queries must be >= 0"),
        ({"max_queries": jnp.ones(3)}, r"shape \(12,\)"),
        ({"x_init": jnp.ones((1, 64))}, "x_init must have the shape of x"),
        ({"x_init": jnp.full((12, 64), 9.0)}, "must lie within bounds"),
        ({"x": jnp.full((12, 64), jnp.nan)}, "must be finite"),
        ({"x": jnp.ones((12, 64), int)}, "floating"),
        ({"y": jnp.zeros(3, int)}, "one entry per example"),
        ({"y": jnp.full(12, 10)}, r"labels must lie in \[0, 10\)"),
    ],
)
def test_bad_settings_raise(problem, attack, arguments, message):
    params, x, y = problem
    settings = {"key": KEY, "bounds": BOUNDS, **arguments}
    x, y = settings.pop("x", x), settings.pop("y", y)
    with pytest.raises(ValueError, match=message):
        attack(functools.partial(logits, params), x, y, **settings)


def test_settings_of_one_attack_alone_raise(problem):
    params, x, y = problem
    f = functools.partial(logits, params)
    for attack, arguments, message in (
        (hop_skip_jump, {"norm": "l1"}, r"norm must be one of \['l2', 'linf'\]"),
        (hop_skip_jump, {"init_evals": 0}, "init_evals must be >= 1"),
        (hop_skip_jump, {"max_evals": 0}, "max_evals must be >= 1"),
        (boundary, {"spherical_step": 0.0}, "spherical_step must be > 0"),
        (boundary, {"source_step": 0.0}, "source_step must be > 0"),
        (boundary, {"adaptation": 0.5}, "adaptation must be >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(f, x, y, key=KEY, bounds=BOUNDS, **arguments)
