import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import norms
from spax.evasion import bim, fgsm, least_likely, mi_fgsm, pgd
from spax.gradients import bpda, eot, spsa
from spax.losses import cross_entropy, kl_divergence, margin, misclassified
from spax.typing import Stochastic, lift

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


def two_classes(w, b):
    """Logits whose margin is w.x + b."""
    return lambda x: jnp.stack([jnp.zeros(x.shape[0], x.dtype), x @ w + b], axis=1)


@pytest.fixture(scope="module")
def wide_model():
    """A linear two-class model on an interior batch, far from the box."""
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(size=20), jnp.float32)
    x = jnp.asarray(rng.uniform(0.4, 0.6, size=(5, 20)), jnp.float32)
    f = two_classes(w, 0.1)
    return f, w, x, jnp.argmax(f(x), axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_one_step_gains_eps_times_the_dual_norm_on_a_linear_model(wide_model, norm):
    f, w, x, y = wide_model
    x_adv = fgsm(f, x, y, eps=0.05, norm=norm, loss=margin)
    gain = margin(f(x_adv), y) - margin(f(x), y)
    wanted = 0.05 * norms.norm(w[None], DUAL[norm])[0]
    np.testing.assert_allclose(gain, np.full(5, wanted), rtol=1e-3)


@pytest.mark.parametrize(
    "attack", [bim, functools.partial(pgd, random_start=False, norm="l2"), mi_fgsm]
)
def test_many_steps_reach_the_same_optimum_of_a_linear_model(wide_model, attack):
    f, w, x, y = wide_model
    norm = "l2" if attack not in (bim, mi_fgsm) else "linf"
    # No criterion is met, so that the highest loss is returned.
    never = lambda outputs, y: jnp.zeros(y.shape, bool)  # noqa: E731
    x_adv = attack(f, x, y, eps=0.05, steps=10, loss=margin, criterion=never)
    gain = margin(f(x_adv), y) - margin(f(x), y)
    wanted = 0.05 * norms.norm(w[None], DUAL[norm])[0]
    np.testing.assert_allclose(gain, np.full(5, wanted), rtol=1e-3)


def test_the_l1_attack_of_a_linear_model_moves_the_heaviest_entry(wide_model):
    f, w, x, y = wide_model
    never = lambda outputs, y: jnp.zeros(y.shape, bool)  # noqa: E731
    x_adv = pgd(
        f, x, y, eps=0.2, steps=10, norm="l1", random_start=False, loss=margin, criterion=never
    )
    gain = margin(f(x_adv), y) - margin(f(x), y)
    np.testing.assert_allclose(gain, np.full(5, 0.2 * jnp.abs(w).max()), rtol=1e-3)


def test_the_l1_attack_uses_other_entries_once_the_box_stops_the_heaviest():
    w = jnp.array([10.0, 5.0, 1.0])
    x = jnp.full((1, 3), 0.9)
    never = lambda outputs, y: jnp.zeros(y.shape, bool)  # noqa: E731
    x_adv = pgd(
        two_classes(w, 0.0),
        x,
        jnp.array([0]),
        eps=0.3,
        steps=60,
        step_size=0.02,
        norm="l1",
        random_start=False,
        loss=margin,
        criterion=never,
    )
    # 0.1 each in order of weight: 0.1 * (10 + 5 + 1)
    np.testing.assert_allclose((x_adv - x)[0], [0.1, 0.1, 0.1], atol=5e-3)


@pytest.mark.parametrize("targeted", [False, True])
def test_targets_are_approached_and_labels_left(linear, targeted):
    apply_fn, params, x, y = linear
    f = functools.partial(apply_fn, params)
    wanted = (y + 1) % 4 if targeted else y
    before = cross_entropy(f(x), wanted)
    for attack in (fgsm, bim, mi_fgsm):
        after = cross_entropy(f(attack(f, x, wanted, eps=0.1, targeted=targeted)), wanted)
        assert (after < before).all() if targeted else (after > before).all()


def test_momentum_without_decay_is_bim(linear):
    apply_fn, params, x, y = linear
    f = functools.partial(apply_fn, params)
    np.testing.assert_array_equal(
        mi_fgsm(f, x, y, eps=0.2, decay=0.0, steps=7), bim(f, x, y, eps=0.2, steps=7)
    )


def test_momentum_accumulates_normalised_gradients():
    # Algorithm 1 by hand, in float64, on a model whose gradient turns.
    def f(x):
        z = jnp.sin(5 * x[:, 0]) + jnp.cos(4 * x[:, 1]) * x[:, 0]
        return jnp.stack([jnp.zeros_like(z), z], axis=1)

    def grad(v):
        return np.array([5 * np.cos(5 * v[0]) + np.cos(4 * v[1]), -4 * np.sin(4 * v[1]) * v[0]])

    x = np.array([0.5, 0.5])
    z, g, decay, alpha, eps = x.copy(), np.zeros(2), 0.7, 0.05, 0.2
    for _ in range(8):
        d = grad(z)
        g = decay * g + d / np.abs(d).sum()
        z = np.clip(z + alpha * np.sign(g), x - eps, x + eps)
    ours = mi_fgsm(
        f,
        jnp.float32(x)[None],
        jnp.array([0]),
        eps=eps,
        step_size=alpha,
        decay=decay,
        steps=8,
        loss=margin,
        return_last=True,
    )
    np.testing.assert_allclose(ours[0], z, atol=1e-5)


def test_the_best_point_is_returned_not_the_last():
    # The loss peaks at 0.7: large steps overshoot and oscillate around it.
    def f(x):
        z = -jnp.square(x[:, 0] - 0.7) * 10 - 1
        return jnp.stack([jnp.zeros_like(z), z], axis=1)

    x = jnp.array([[0.5]])
    best = pgd(f, x, jnp.array([0]), eps=0.4, step_size=0.15, steps=9, random_start=False)
    np.testing.assert_allclose(best, [[0.65]], atol=1e-5)  # of 0.5, 0.65, 0.8, 0.65, ...


def test_a_fooling_point_beats_a_higher_loss():
    # Fooled only in a band on the way; the loss keeps rising after it.
    def f(x):
        v = x[:, 0]
        band = jnp.where((v > 0.55) & (v < 0.65), 2.0, 0.0)
        return jnp.stack([jnp.full_like(v, 1.0), band, v * 0.5], axis=1)

    loss = lambda logits, y: logits[:, 2] * 10  # noqa: E731
    x_adv = pgd(
        f,
        jnp.array([[0.5]]),
        jnp.array([0]),
        eps=0.4,
        step_size=0.1,
        steps=4,
        random_start=False,
        loss=loss,
    )
    assert misclassified(f(x_adv), jnp.array([0])).all()


@pytest.mark.slow
def test_restarts_only_help():
    # Two basins: from x the gradient leads to the wrong one.
    def f(x):
        v = x[:, 0]
        z = jnp.where(v > 0.45, v - 1.0, 3 * (0.45 - v) - 1.0)
        return jnp.stack([jnp.zeros_like(z), z], axis=1)

    x, y = jnp.full((40, 1), 0.5), jnp.zeros(40, int)
    attack = functools.partial(pgd, f, x, y, key=KEY, eps=0.45, steps=10)
    fooled = [misclassified(f(attack(restarts=r)), y).mean() for r in (1, 16)]
    assert fooled[0] < 0.8 < 0.98 < fooled[1]


def test_start_is_projected_and_replaces_the_random_one(linear):
    apply_fn, params, x, y = linear
    f = functools.partial(apply_fn, params)
    out = pgd(f, x, y, eps=0.1, steps=1, step_size=0.0, start=x + 5.0)
    assert (jnp.abs(out - x) <= 0.1).all()
    with pytest.raises(ValueError, match="start must have the shape of x"):
        pgd(f, x, y, eps=0.1, start=x[:1])


def test_the_hooks_take_any_labels(linear):
    apply_fn, params, x, _ = linear
    f = functools.partial(apply_fn, params)
    log_p = jax.nn.log_softmax(f(x))
    never = lambda outputs, y: jnp.zeros(outputs.shape[0], bool)  # noqa: E731
    start = x + 0.001 * jax.random.normal(KEY, x.shape)
    out = pgd(f, x, log_p, eps=0.1, steps=5, start=start, loss=kl_divergence, criterion=never)
    assert (kl_divergence(f(out), log_p) > kl_divergence(f(start), log_p)).all()


def test_saturated_models_are_still_attacked():
    f = two_classes(jnp.array([1e4, -1e4]), 0.0)
    x = jnp.array([[0.45, 0.55]])
    assert misclassified(f(pgd(f, x, jnp.array([0]), key=KEY, eps=0.1)), jnp.array([0])).all()


def test_nan_logits_never_win():
    def f(x):
        z = jnp.stack([x[:, 0], 1 - x[:, 0]], axis=1)
        return jnp.where(x[:, :1] < 0.55, jnp.nan, z)

    x = jnp.array([[0.6]])
    x_adv = pgd(f, x, jnp.array([0]), eps=0.3, steps=5, random_start=False)
    assert jnp.isfinite(f(x_adv)).all()


def test_a_stochastic_model_is_attacked_through_eot():
    w = jnp.array([1.0, -2.0, 0.5])

    def noisy(x, key):
        flips = jax.random.rademacher(key, (), x.dtype) * 3 + 1  # mean gradient w, single ones not
        z = x @ (w * flips) - 0.2
        return jnp.stack([jnp.zeros_like(z), z], axis=1)

    x, y = jnp.full((2, 3), 0.5), jnp.array([0, 0])
    never = lambda outputs, y: jnp.zeros(y.shape, bool)  # noqa: E731
    out = pgd(
        Stochastic(noisy),
        x,
        y,
        key=KEY,
        eps=0.1,
        steps=1,
        step_size=0.1,
        loss=margin,
        random_start=False,
        gradient=eot(400),
        criterion=never,
    )
    np.testing.assert_allclose(out - x, jnp.broadcast_to(0.1 * jnp.sign(w), (2, 3)), atol=1e-5)


def test_gradient_free_and_bpda_attacks_pass_a_quantiser():
    w = jnp.array([3.0, -2.0])
    x, y = jnp.array([[0.52, 0.62]]), jnp.array([0])
    quantise = lambda x: jnp.round(x * 8) / 8  # noqa: E731
    model = two_classes(w, -0.4)
    hard = lift(quantise, model)
    plain = pgd(hard, x, y, eps=0.15, random_start=False, loss=margin)
    assert not misclassified(hard(plain), y).any()
    through = pgd(lift(bpda(quantise), model), x, y, eps=0.15, random_start=False, loss=margin)
    assert misclassified(hard(through), y).all()
    free = pgd(
        hard,
        x,
        y,
        key=KEY,
        eps=0.15,
        random_start=False,
        loss=margin,
        steps=20,
        gradient=spsa(64, 0.1),
    )
    assert misclassified(hard(free), y).all()


def test_least_likely_is_the_smallest_logit():
    logits = jnp.array([[0.1, -2.0, 3.0], [5.0, 4.0, 3.0]])
    assert least_likely(lambda x: x, logits).tolist() == [1, 2]


ATTACKS = [
    functools.partial(fgsm, eps=0.1),
    functools.partial(bim, eps=0.1),
    functools.partial(mi_fgsm, eps=0.1),
    functools.partial(pgd, eps=0.1, key=KEY, steps=3),
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.full((8, 6), np.nan)}, "finite"),
        ({"x": jnp.full((8, 6), 255.0)}, "within bounds"),
        ({"x": jnp.zeros((8, 6), int)}, "floating point"),
        ({"y": jnp.full(8, 4)}, r"labels must lie in \[0, 4\)"),
        ({"y": jnp.zeros(8)}, "integers"),
        ({"y": jnp.zeros(3, int)}, "leading dimension 8"),
        ({"eps": -0.1}, r"eps must be >= 0 \(got eps=-0.1\)"),
        ({"eps": float("nan")}, "got eps=nan"),
        ({"eps": jnp.ones(3)}, "one per example"),
        ({"bounds": (1.0, 0.0)}, "low < high"),
    ],
)
def test_bad_input_raises(linear, attack, change, message):
    apply_fn, params, x, y = linear
    arguments = {"x": x, "y": y} | change
    x, y = arguments.pop("x"), arguments.pop("y")
    with pytest.raises(ValueError, match=message):
        attack(functools.partial(apply_fn, params), x, y, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l7", "key": KEY}, "norm must be one of"),
        ({"steps": 0, "key": KEY}, r"steps must be >= 1 \(got steps=0\)"),
        ({"restarts": 0, "key": KEY}, "restarts must be >= 1"),
        ({}, "random_start=True needs a random key"),
        ({"random_start": False, "restarts": 2, "key": KEY}, "restarts need random_start=True"),
        ({"random_start": False, "gradient": eot(2)}, "gradient=eot needs a random key"),
        ({"step_size": -1.0, "key": KEY}, "step_size must be >= 0"),
        ({"loss": lambda z, y: z.sum(), "key": KEY}, "one entry per example"),
    ],
)
def test_bad_settings_raise(linear, arguments, message):
    apply_fn, params, x, y = linear
    with pytest.raises(ValueError, match=message):
        pgd(functools.partial(apply_fn, params), x, y, eps=0.1, **arguments)


def test_a_traced_negative_radius_means_zero(linear):
    apply_fn, params, x, y = linear
    attack = jax.jit(lambda x, eps: fgsm(functools.partial(apply_fn, params), x, y, eps=eps))
    np.testing.assert_array_equal(attack(x, -1.0), x)


@pytest.mark.slow
def test_mnist_accuracies_are_ordered_as_published(spax_data):
    """FGSM leaves more than BIM, BIM more than PGD-40, and that nothing at eps 0.3 (Madry)."""
    from benchmarks import victim

    with np.load(victim.prepare(quick=False)) as stored:
        params = {name: value for name, value in stored.items() if "/" in name}
        x, y = stored["x"][:300], stored["y"][:300]

    def accuracy(attack, **arguments):
        run = jax.jit(lambda p, x, y: attack(lambda x: victim.apply_fn(p, x), x, y, **arguments))
        return 1 - misclassified(victim.apply_fn(params, run(params, x, y)), y).mean()

    for eps in (0.1, 0.15):
        measured = (
            accuracy(fgsm, eps=eps),
            accuracy(bim, eps=eps, steps=10),
            accuracy(pgd, eps=eps, steps=40, step_size=0.01, key=KEY),
        )
        assert measured[0] > measured[1] >= measured[2]
    assert accuracy(pgd, eps=0.3, steps=40, step_size=0.01, key=KEY) == 0


def test_a_start_that_is_not_finite_is_refused():
    x = jnp.full((1, 2), 0.5)
    with pytest.raises(ValueError, match="start must be finite"):
        pgd(lambda x: x, x, jnp.array([0]), eps=0.1, start=x * jnp.nan)
