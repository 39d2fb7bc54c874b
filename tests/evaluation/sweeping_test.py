from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import evaluation
from spax.evasion import fgsm, pgd
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")

EPS = np.array([0.0, 0.02, 0.05, 0.1, 0.2])


@pytest.fixture(scope="module")
def binary():
    rng = np.random.default_rng(1)
    params = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.35, 0.65, size=(11, 5)), jnp.float32)
    y = jnp.argmax(x @ params, axis=1).astype(jnp.int32)
    y = y.at[4].set(1 - y[4])  # one is wrong as it is
    w = np.asarray(params[:, 1] - params[:, 0], np.float64)
    distance = np.abs(np.asarray(x, np.float64) @ w) / np.abs(w).sum()
    distance[4] = 0
    return (lambda params, x: x @ params), params, x, y, distance


@pytest.fixture(scope="module")
def swept(binary):
    apply_fn = binary[0]

    def run(params, x, y, **kwargs):
        return evaluation.sweep(fgsm, lambda x: apply_fn(params, x), x, y, norm="linf", **kwargs)

    return run


def test_a_sweep_of_a_linear_model_is_its_closed_form(binary, swept):
    _, params, x, y, distance = binary
    got = jax.jit(partial(swept, eps=EPS))(params, x, y)
    # FGSM is exact on a linear model: it fools at eps exactly where the distance is below it.
    fooled = (distance[None, :] < EPS[:, None]) | (distance[None, :] == 0)
    np.testing.assert_array_equal(got.success, fooled)
    np.testing.assert_allclose(got.accuracy, 1 - fooled.mean(1), rtol=1e-6)
    assert got.invalid.tolist() == [0] * 5
    curve = evaluation.radius_curve(got.distance, got.eps)
    np.testing.assert_allclose(curve.accuracy, got.accuracy, rtol=1e-6)


def test_neither_batches_nor_parallel_radii_change_the_result(binary, swept):
    _, params, x, y, _ = binary
    wanted = jax.jit(swept)(params, x, y, eps=jnp.asarray(EPS, jnp.float32))
    for batch_size, parallel in [(1, 1), (4, 2), (1000, 5)]:
        run = jax.jit(partial(swept, batch_size=batch_size, parallel=parallel))
        got = run(params, x, y, eps=jnp.asarray(EPS, jnp.float32))
        np.testing.assert_array_equal(got.success, wanted.success)
        np.testing.assert_allclose(got.distance, wanted.distance, rtol=1e-6)
        np.testing.assert_array_equal(got.invalid, wanted.invalid)


def test_a_sweep_is_the_attack_at_each_radius(linear):
    apply_fn, params, x, y = linear
    attack = partial(pgd, steps=3, random_start=False, norm="l2")

    @jax.jit
    def run(params, x, y, eps):
        f = lambda x: apply_fn(params, x)  # noqa: E731
        return evaluation.sweep(attack, f, x, y, eps=eps, norm="l2")

    @jax.jit
    def alone(params, x, y, eps):
        f = lambda x: apply_fn(params, x)  # noqa: E731
        return evaluation.judge(f, x, attack(f, x, y, eps=eps), y, norm="l2", eps=eps)

    grid = jnp.array([0.05, 0.2, 0.4])
    got = run(params, x, y, grid)
    wanted = [alone(params, x, y, eps) for eps in grid]
    np.testing.assert_array_equal(got.success, [w.success for w in wanted])
    np.testing.assert_allclose(
        got.distance, np.min([w.distance for w in wanted], axis=0), rtol=1e-5
    )


def test_the_accuracy_never_rises_though_the_attack_misses():
    def fickle(f, x, y, *, key=None, eps):
        """Finds the point at 0.1 only when asked for 0.3."""
        return jnp.where(jnp.abs(eps - 0.3) < 1e-3, x - 0.1, x)

    x, y = jnp.full((3, 2), 0.5), jnp.zeros(3, jnp.int32)
    logits = lambda x: jnp.stack([x[:, 0], 0 * x[:, 0] + 0.45], 1)  # noqa: E731
    got = evaluation.sweep(fickle, logits, x, y, eps=[0.05, 0.2, 0.3, 0.4], norm="linf")
    assert got.success.any(axis=1).tolist() == [False, False, True, False]
    # The point found for 0.3 lies at 0.1: it refutes 0.2 too.
    assert got.accuracy.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("point", "invalid"),
    [
        (lambda x, eps: x - 2 * eps, 2),  # beyond the radius
        (lambda x, eps: x * jnp.nan, 3),
        (lambda x, eps: x - 0.6, 3),  # out of bounds
    ],
)
def test_an_attack_that_breaks_the_rules_proves_nothing_and_is_counted(point, invalid):
    x, y = jnp.full((1, 2), 0.5), jnp.zeros(1, jnp.int32)
    logits = lambda x: jnp.stack([x[:, 0], 0 * x[:, 0] + 0.45], 1)  # noqa: E731
    attack = lambda f, x, y, *, key, eps: point(x, eps)  # noqa: E731
    got = evaluation.sweep(attack, logits, x, y, eps=[0.0, 0.1, 0.2], norm="linf")
    # From the smallest radius with an invalid point on, nothing is known: that is not robust.
    assert got.accuracy.tolist() == [1] * (3 - invalid) + [0] * invalid
    assert not got.success.any()
    assert got.invalid.sum() == invalid
    curve = evaluation.radius_curve(got.distance, got.eps)
    assert curve.accuracy.tolist() == got.accuracy.tolist()


def test_where_the_model_has_no_prediction_it_is_not_robust():
    x, y = jnp.array([[0.5, 0.2], [0.9, 0.2]]), jnp.zeros(2, jnp.int32)
    logits = lambda x: jnp.where(x[:, :1] > 0.8, jnp.nan, x)  # noqa: E731
    attack = lambda f, x, y, *, key, eps: jnp.clip(x + eps, 0, 1)  # noqa: E731
    got = evaluation.sweep(attack, logits, x, y, eps=[0.0, 0.1, 0.4], norm="linf")
    assert not got.success.any()
    assert got.accuracy.tolist() == [0.5, 0.5, 0]


def test_labels_may_be_any_pytree_and_the_success_targeted(linear):
    apply_fn, params, x, y = linear
    wanted = {"target": (y + 1) % 4, "unused": jnp.zeros((8, 2))}
    hits = lambda o, y: o.argmax(1) == y["target"]  # noqa: E731
    attack = lambda f, x, y, *, key, eps: fgsm(f, x, y["target"], eps=eps, targeted=True)  # noqa: E731

    @jax.jit
    def run(params, x, wanted):
        f = lambda x: apply_fn(params, x)  # noqa: E731
        swept = evaluation.sweep(
            attack, f, x, wanted,
            eps=[0.0, 0.5], norm="linf", batch_size=3, targeted=True, criterion=hits,
        )  # fmt: skip
        return swept.success, hits(f(attack(f, x, wanted, key=None, eps=0.5)), wanted)

    success, alone = run(params, x, wanted)
    assert not success[0].any()
    assert success[1].any()
    np.testing.assert_array_equal(success[1], alone)


def test_random_attacks_need_a_key_and_repeat_with_it(binary):
    apply_fn, params, x, y, _ = binary
    noisy = Stochastic(lambda x, key: apply_fn(params, x) + jax.random.normal(key, (1, 2)))

    @jax.jit
    def run(key):
        return evaluation.sweep(
            partial(pgd, steps=1), noisy, x, y, key=key, eps=[0.1] * 20, norm="linf", batch_size=4
        )

    with pytest.raises(ValueError, match="key"):
        run(None)
    a, b = run(jax.random.key(0)), run(jax.random.key(0))
    np.testing.assert_array_equal(a.distance, b.distance)
    draws = np.asarray(a.success)
    assert len({row.tobytes() for row in draws}) > 5  # each radius draws for itself,
    assert len({column.tobytes() for column in draws.T[[0, 4, 8]]}) == 3  # and each batch
    with pytest.raises(ValueError, match="key"):
        evaluation.sweep(pgd, lambda x: x, x, y, eps=EPS, norm="linf")


def test_a_sweep_keeps_bfloat16_inside_its_radii(binary, swept):
    _, params, x, y, _ = binary
    run = jax.jit(partial(swept, eps=EPS))
    got = run(params.astype(jnp.bfloat16), x.astype(jnp.bfloat16), y)
    assert got.invalid.sum() == 0
    assert got.accuracy.dtype == jnp.float32


def test_a_sweep_is_traced_once(binary):
    apply_fn, params, x, y, _ = binary
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(params, x, y, eps):
        return evaluation.sweep(
            fgsm, lambda x: apply_fn(params, x), x, y, eps=eps, norm="linf", batch_size=4
        )

    first = run(params, x, y, jnp.array([0.1, 0.2]))
    again = run(params * 2, x, y, jnp.array([0.2, 0.1]))
    np.testing.assert_array_equal(first.success, again.success[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": []}, r"eps must have shape \[E\], E >= 1 \(got eps.shape=\(0,\)\)"),
        ({"eps": 0.1}, "eps must have shape"),
        ({"eps": [0.1, -0.1]}, r"eps must be >= 0 \(got eps=-0.1\)"),
        ({"eps": [float("nan")]}, "got eps=nan"),
        ({"norm": "l7"}, "norm must be one of"),
        ({"batch_size": 0}, r"batch_size must be >= 1 \(got batch_size=0\)"),
        ({"parallel": 0}, "parallel must be >= 1"),
        ({"x": jnp.zeros((0, 5)), "y": jnp.zeros(0, jnp.int32)}, "at least one example"),
        ({"x": jnp.full((11, 5), 2.0)}, "within bounds"),
        ({"y": jnp.full(11, 2)}, r"labels must lie in \[0, 2\)"),
        ({"attack": lambda f, x, y, *, key, eps: x[:, :1]}, "must have the shape of x"),
    ],
)
def test_a_sweep_refuses_bad_input(binary, change, message):
    _, params, x, y, _ = binary
    given = {"attack": fgsm, "x": x, "y": y, "eps": EPS, "norm": "linf"} | change
    attack, x, y = (given.pop(name) for name in ("attack", "x", "y"))
    with pytest.raises(ValueError, match=message):
        evaluation.sweep(attack, lambda x: x @ params, x, y, **given)


def shift(by):
    return lambda f, x, y, *, key=None, eps=1.0: x + jnp.asarray(by, x.dtype)[None, :]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_worst_fools_where_one_of_the_attacks_does(order):
    logits = lambda x: jnp.stack([x[:, 0], x[:, 1]], 1)  # noqa: E731
    x = jnp.array([[0.5, 0.45], [0.5, 0.35], [0.9, 0.1]])
    y = jnp.zeros(3, jnp.int32)
    attacks = [shift([-0.1, 0.0]), shift([-0.1, 0.1]), shift([0.1, 0.0])]
    worst = evaluation.worst_of([attacks[i] for i in order])(logits, x, y)
    # Row 0: both fool, the second with the higher loss; row 2: none does, the second is worst.
    np.testing.assert_array_equal(worst, x + jnp.array([[-0.1, 0.1]]))
    success = evaluation.judge(logits, x, worst, y, norm="linf").success
    each = [evaluation.judge(logits, x, a(logits, x, y), y, norm="linf").success for a in attacks]
    np.testing.assert_array_equal(success, np.any(each, axis=0))


def test_a_fooling_point_wins_over_a_higher_loss():
    logits = lambda x: jnp.stack([x[:, 0], x[:, 1]], 1)  # noqa: E731
    x, y = jnp.array([[0.5, 0.45]]), jnp.zeros(1, jnp.int32)
    attacks = [shift([0.3, 0.0]), shift([-0.1, 0.0])]
    loss = lambda outputs, y: outputs[:, 0]  # noqa: E731
    worst = evaluation.worst_of(attacks, loss=loss)(logits, x, y)
    np.testing.assert_allclose(worst, [[0.4, 0.45]], rtol=1e-6)
    lowest = evaluation.worst_of(attacks, loss=loss, targeted=True)(logits, x, y)
    np.testing.assert_allclose(lowest, [[0.8, 0.45]], rtol=1e-6)


def test_an_invalid_point_never_hides_a_valid_one():
    logits = lambda x: jnp.stack([x[:, 0], x[:, 1]], 1)  # noqa: E731
    x, y = jnp.array([[0.5, 0.45]]), jnp.zeros(1, jnp.int32)
    far, out, nan = shift([-0.4, 0.0]), shift([-0.6, 0.0]), shift([jnp.nan, 0.0])
    near = shift([-0.1, 0.0])
    for attacks in ([far, near, out, nan], [nan, out, near, far]):
        worst = evaluation.worst_of(attacks, norm="linf")(logits, x, y, eps=0.2)
        np.testing.assert_allclose(worst, [[0.4, 0.45]], rtol=1e-6)


def test_where_all_points_are_invalid_the_worst_shows_it():
    logits = lambda x: jnp.stack([x[:, 0], x[:, 1]], 1)  # noqa: E731
    x, y = jnp.array([[0.5, 0.45]]), jnp.zeros(1, jnp.int32)
    away, far, nan = shift([0.4, 0.0]), shift([-0.4, 0.0]), shift([jnp.nan, 0.0])
    for attacks in ([away, far, nan], [nan, far, away]):
        worst = evaluation.worst_of(attacks)
        np.testing.assert_allclose(worst(logits, x, y, eps=0.2), [[0.1, 0.45]], rtol=1e-6)
        got = evaluation.sweep(worst, logits, x, y, eps=[0.2], norm="linf")
        assert got.invalid.tolist() == [1]


@pytest.mark.parametrize(
    ("attack", "setting", "wanted"),
    [
        (fgsm, {"norm": "l2"}, "norm='l2' .got an attack with norm='linf'"),
        (partial(fgsm, norm="l2"), {}, "norm='linf' .got an attack with norm='l2'"),
        (fgsm, {"bounds": (-1.0, 1.0)}, r"bounds=\(-1.0, 1.0\) .got an attack with bounds=\(0"),
        (partial(fgsm, bounds=(0.0, 2.0)), {}, "bounds"),
        (fgsm, {"bounds": (0.0, np.full(5, 2.0))}, "bounds"),
        (fgsm, {"targeted": True}, "targeted=True .got an attack with targeted=False"),
    ],
)
def test_an_attack_bound_to_other_rules_than_those_it_is_judged_by_is_refused(
    binary, attack, setting, wanted
):
    _, params, x, y, _ = binary
    f = lambda x: x @ params  # noqa: E731
    with pytest.raises(ValueError, match=wanted):
        evaluation.sweep(attack, f, x, y, eps=[0.1], **({"norm": "linf"} | setting))
    with pytest.raises(ValueError, match=wanted):
        evaluation.worst_of([attack], **setting)(f, x, y, eps=0.1)


def test_the_worst_of_several_tells_its_own_rules(binary):
    _, params, x, y, _ = binary
    worst = evaluation.worst_of([partial(fgsm, norm="l2")], norm="l2")
    with pytest.raises(ValueError, match=r"norm='linf' .got an attack with norm='l2'"):
        evaluation.sweep(worst, lambda x: x @ params, x, y, eps=[0.1], norm="linf")


@pytest.mark.slow
def test_rules_that_agree_or_that_nothing_tells_are_accepted(binary):
    _, params, x, y, _ = binary
    f = lambda x: x @ params  # noqa: E731
    same = partial(fgsm, bounds=(0, np.ones(5)))
    traced = jax.jit(
        lambda high: evaluation.sweep(
            partial(fgsm, bounds=(0.0, high)), f, x, y, eps=[0.1], norm="linf", bounds=(0.0, high)
        )
    )(1.0)
    for got in (evaluation.sweep(same, f, x, y, eps=[0.1], norm="linf"), traced):
        assert got.invalid.tolist() == [0]
    # Without a radius no ball is judged.
    evaluation.worst_of([partial(fgsm, norm="l2", eps=0.1)])(f, x, y)


def test_the_worst_passes_settings_on_and_draws_apart(binary):
    apply_fn, params, x, y, distance = binary
    keys = []

    def note(f, x, y, *, key, eps):
        keys.append(jax.random.key_data(key))
        return fgsm(f, x, y, eps=eps)

    worst = evaluation.worst_of([note, note])

    @jax.jit
    def run(params, x, y, key):
        f = lambda x: apply_fn(params, x)  # noqa: E731
        both = evaluation.worst_of([shift([0.0] * 5), fgsm])
        return (
            worst(f, x, y, key=key, eps=0.1),
            fgsm(f, x, y, eps=0.1),
            keys,
            evaluation.sweep(both, f, x, y, eps=EPS, norm="linf"),
        )

    x_adv, wanted, (first, second), got = run(params, x, y, jax.random.key(0))
    np.testing.assert_array_equal(x_adv, wanted)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(
        got.success, (distance[None, :] < EPS[:, None]) | (distance[None, :] == 0)
    )


def test_the_worst_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one attack"):
        evaluation.worst_of([])
    with pytest.raises(ValueError, match="norm must be one of"):
        evaluation.worst_of([fgsm], norm="l3")


def test_a_compiled_attack_is_the_attack_traced_once(linear):
    apply_fn, params, x, y = linear
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def attack(f, x, y, *, key):
        return pgd(f, x, y, key=key, eps=0.1, steps=3)

    run = evaluation.compile_attack(attack, apply_fn)
    wanted = jax.jit(
        lambda p, x, y, key: pgd(lambda x: apply_fn(p, x), x, y, key=key, eps=0.1, steps=3)
    )
    for scale, seed in [(1.0, 0), (2.0, 1)]:
        key = jax.random.key(seed)
        got = run(params * scale, x, y, key)
        np.testing.assert_allclose(got, wanted(params * scale, x, y, key), atol=1e-6)
    run(np.asarray(params), np.asarray(x), np.asarray(y), key)  # arrays of NumPy are the same


def test_a_compiled_attack_takes_a_stochastic_model(linear):
    _, params, x, y = linear
    noisy = Stochastic(lambda params, x, key: x @ params + jax.random.normal(key, (1, 4)))
    run = evaluation.compile_attack(partial(fgsm, eps=0.1), noisy)
    assert run(params, x, y, jax.random.key(0)).shape == x.shape
    with pytest.raises(ValueError, match="key"):
        run(params, x, y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (jnp.full((2, 6), jnp.nan), jnp.array([0, 1]), "finite"),
        (jnp.full((2, 6), 255.0), jnp.array([0, 1]), r"within bounds=\(0.0, 1.0\)"),
        (jnp.full((2, 6), 0.5), jnp.array([0, 4]), r"labels must lie in \[0, 4\)"),
        (jnp.full((2, 6), 0.5), jnp.array([0]), "one entry per example"),
        (jnp.zeros((2, 6), jnp.int32), jnp.array([0, 1]), "floating"),
    ],
)
def test_a_compiled_attack_checks_what_tracing_would_hide(linear, x, y, message):
    apply_fn, params, _, _ = linear
    run = evaluation.compile_attack(partial(fgsm, eps=0.1), apply_fn)
    with pytest.raises(ValueError, match=message):
        run(params, x, y)


def test_the_bounds_of_a_compiled_attack_are_the_users(linear):
    apply_fn, params, x, y = linear
    attack = partial(fgsm, eps=10.0, bounds=(0.0, 255.0))
    run = evaluation.compile_attack(attack, apply_fn, bounds=(0.0, 255.0))
    assert run(params, x * 255, y).max() > 1
