import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from spax.evasion import square
from spax.evasion.square import _dipole, _Grid, _sums, _tiles, shares
from spax.losses import margin, misclassified
from spax.norms import norm as norm_of
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
SHAPE = (8, 8, 2)


def model(w, x):
    """A linear model of images that nobody can differentiate."""
    return lax.stop_gradient(x.reshape(x.shape[0], -1) - 0.5) @ w


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(size=(128, 3)), jnp.float32)
    x = jnp.asarray(rng.uniform(size=(6, *SHAPE)), jnp.float32)
    return w, x, jnp.argmax(model(w, x), axis=1).astype(jnp.int32)


run = jax.jit(
    lambda w, x, y, key, eps, p=0.8, **kw: square(
        functools.partial(model, w), x, y, key=key, eps=eps, p_init=p, return_info=True, **kw
    ),
    static_argnames=("norm", "steps", "criterion"),
    compiler_options=QUICK,
)


def never(logits, y):
    return jnp.zeros(y.shape, bool)


@pytest.mark.parametrize("reschedule", [False, True])
def test_the_schedule_is_that_of_the_paper(reschedule):
    """p is halved after 10, 50, 200, ... of 10,000; rescaled, after so much of the budget."""
    found = np.log2(1 / shares(5000, reschedule))
    at = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for halvings, last in enumerate(at):
        if reschedule:
            last //= 2
        if last < 5000:
            assert found[last] == halvings
            assert found[min(last + 1, 4999)] == halvings + (last + 1 < 5000)
    assert found[-1] == (9 if reschedule else 7)


def test_queries_are_counted_up_to_the_first_success(images):
    w, x, y = images
    seen = []

    def criterion(logits, y):
        wrong = misclassified(logits, y)
        jax.debug.callback(lambda wrong: seen.append(np.asarray(wrong)), wrong, ordered=True)
        return wrong

    x_adv, info = square(
        functools.partial(model, w), x, y, key=KEY, eps=0.1, steps=40, criterion=criterion,
        return_info=True,
    )  # fmt: skip
    jax.effects_barrier()
    seen = np.asarray(seen)
    first = np.where(seen.any(axis=0), seen.argmax(axis=0) + 1, 40)
    np.testing.assert_array_equal(info.queries, first)
    assert info.queries.min() < info.queries.max()
    assert len(seen) == info.queries.max()
    np.testing.assert_array_equal(misclassified(model(w, x_adv), y), seen.any(axis=0))


def test_without_gradients_the_optimum_of_a_linear_model_comes_near(images):
    """Every pixel ends at plus or minus eps, or at the bounds; the margin never falls."""
    w, x, y = images
    gains = [
        margin(model(w, run(w, x, y, KEY, 0.05, steps=200, criterion=never)[0]), y)
        - margin(model(w, x), y)
    ]
    slope = jnp.sort(model(w, x), axis=1)[:, -2:]
    assert (slope[:, 1] >= slope[:, 0]).all()
    y_np, z = np.asarray(y), np.asarray(model(w, x))
    best = np.full(6, -np.inf)
    for i in range(6):
        for k in set(range(3)) - {int(y_np[i])}:
            move = np.where(np.asarray(w[:, k] - w[:, y_np[i]]) > 0, 1, -1) * 0.05
            flat = np.asarray(x[i]).ravel()
            reached = np.clip(flat + move, 0, 1) - flat
            best[i] = max(
                best[i],
                z[i, k] - z[i, y_np[i]] + reached @ np.asarray(w[:, k] - w[:, y_np[i]]),
            )
    reachable = best - np.asarray(margin(model(w, x), y))
    assert (np.asarray(gains[0]) <= reachable + 1e-4).all()
    assert (np.asarray(gains[0]) > 0.4 * reachable).all()


def test_places_and_signs_are_drawn_for_each_example_on_its_own(images):
    w, x, y = images
    same = jnp.broadcast_to(x[:1], x.shape), jnp.broadcast_to(y[:1], y.shape)
    x_adv, _ = run(w, *same, KEY, 0.05, steps=200, criterion=never)
    apart = np.abs(np.asarray(x_adv[:1] - x_adv[1:])).reshape(5, -1).max(axis=1)
    assert (apart > 0.01).all()
    alone, _ = run(w, x[:1], y[:1], KEY, 0.05, steps=200, criterion=never)
    np.testing.assert_allclose(alone[0], x_adv[0], atol=1e-6)


def test_eps_zero_returns_x_and_no_radius_is_exceeded(images):
    w, x, y = images
    radii = jnp.array([0.0, 0.01, 0.05, 0.1, 0.3, 1.0])
    x_adv, _ = run(w, x, y, KEY, radii, steps=200, criterion=never)
    np.testing.assert_array_equal(x_adv[0], x[0])
    assert (norm_of(x_adv - x, "linf") <= radii + 1e-6).all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()


@pytest.mark.parametrize("side", [3, 5, 9])
def test_bumps_are_nested_squares_of_opposite_signs_and_norm_one(side):
    """Eq 2 of the paper, summed here in plain loops."""

    def bump(high, across):
        out = np.zeros((high, across))
        for k in range(1, max(high // 2, across // 2) + 2):
            top, left = high // 2 - k + 1, across // 2 - k + 1
            rows = slice(max(top, 0), max(top + 2 * k - 1, 0))
            out[rows, max(left, 0) : left + 2 * k - 1] += 1 / k**2
        return out / np.linalg.norm(out)

    wanted = np.concatenate([bump(side // 2, side), -bump(side - side // 2, side)])
    at = jnp.arange(12, dtype=jnp.int32)
    found = _dipole(
        *jnp.broadcast_arrays(at[:, None] - 1, at[None, :] - 2), jnp.int32(side), _sums(13)
    )
    np.testing.assert_allclose(
        found[1 : side + 1, 2 : side + 2], wanted / np.linalg.norm(wanted), atol=1e-6
    )
    np.testing.assert_allclose(jnp.sum(found**2), 1, rtol=1e-5)


def test_the_start_of_l2_is_a_grid_of_norm_one():
    delta = _tiles(KEY, _Grid((28, 28), 3), jnp.float32)
    np.testing.assert_allclose(jnp.sum(delta**2), 1, rtol=1e-5)
    assert (delta[1:26, 1:26] != 0).mean() > 0.9
    assert (delta[26:] == 0).all()
    assert (delta[:1] == 0).all()


def test_l2_keeps_to_the_ball_and_fills_it(images):
    w, x, y = images
    x_adv, info = run(w, x, y, KEY, 0.5, norm="l2", steps=100, criterion=never)
    distance = norm_of(x_adv - x, "l2")
    assert (distance <= 0.5 + 1e-6).all()
    assert (distance > 0.3).all()
    assert (info.queries == 100).all()
    assert (margin(model(w, x_adv), y) > margin(model(w, x), y)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "norm must be one of"),
        ({"eps": -1.0}, "eps must be >= 0"),
        ({"p_init": 0.0}, "p_init must be > 0 and <= 1"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"key": None}, "square needs a random key"),
        ({"bounds": (0.4, 0.6)}, "x must lie within bounds"),
    ],
)
def test_bad_arguments_are_refused(images, arguments, message):
    w, x, y = images
    with pytest.raises(ValueError, match=message):
        square(functools.partial(model, w), x, y, **{"eps": 0.1, "key": KEY} | arguments)


def test_bad_inputs_are_refused(images):
    w, x, y = images
    f = functools.partial(model, w)
    with pytest.raises(ValueError, match=r"needs images \[B, H, W, C\]"):
        square(f, x.reshape(6, -1), y, key=KEY, eps=0.1, norm="l2")
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\)"):
        square(f, x, y + 3, key=KEY, eps=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("reschedule", [False, True])
def test_on_mnist_a_thousand_queries_break_a_plain_network(spax_data, reschedule):
    from benchmarks import victim

    params, x, y = victim.load(victim.prepare(quick=False), 200)
    x, y = jnp.asarray(x), jnp.asarray(y, jnp.int32)

    @jax.jit
    def left(params, x, y):
        f = functools.partial(victim.apply_fn, params)
        x_adv = square(f, x, y, key=KEY, eps=0.3, steps=1000, reschedule=reschedule)
        return 1 - misclassified(f(x_adv), y).mean(dtype=jnp.float32)

    assert left(params, x, y) <= 0.05
