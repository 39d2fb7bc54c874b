import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import (
    ensemble,
    fgsm,
    mean_log_probs,
    mean_logits,
    mean_probs,
    mi_fgsm,
    pgd,
    transfer_matrix,
)
from spax.losses import misclassified
from spax.typing import Stochastic
from tests.evasion import ridge

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
OUTPUTS = jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32)
WEIGHTS = jnp.array([0.5, 0.3, 0.2])


def test_each_way_of_combining_is_its_mean():
    z, w = np.asarray(OUTPUTS, np.float64), np.asarray(WEIGHTS, np.float64)[:, None, None]
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(mean_logits(OUTPUTS, WEIGHTS), (w * z).sum(0))
    close(mean_log_probs(OUTPUTS, WEIGHTS), (w * np.log(p)).sum(0))
    close(mean_probs(OUTPUTS, WEIGHTS), np.log((w * p).sum(0)))


def test_the_geometric_mean_of_probabilities_is_the_softmax_of_mean_logits():
    np.testing.assert_allclose(
        jax.nn.softmax(mean_log_probs(OUTPUTS, WEIGHTS)),
        jax.nn.softmax(mean_logits(OUTPUTS, WEIGHTS)),
        rtol=1e-5,
    )


def test_a_member_of_weight_zero_has_no_say():
    w = jnp.array([0.0, 1.0, 0.0])
    for combine in (mean_logits, mean_probs, mean_log_probs):
        mixed = combine(OUTPUTS, w)
        np.testing.assert_allclose(
            jax.nn.log_softmax(mixed), jax.nn.log_softmax(OUTPUTS[1]), atol=1e-6
        )


def models(linear, count=2):
    apply_fn, params, x, y = linear
    noise = np.random.default_rng(3)
    all_params = [
        params + jnp.asarray(noise.normal(size=params.shape), jnp.float32) * 0.7 * i
        for i in range(count)
    ]
    return [functools.partial(apply_fn, p) for p in all_params], x, y


def test_weights_are_divided_by_their_sum_and_may_be_traced(linear):
    fns, x, _ = models(linear)
    mixed = jax.jit(lambda x, w: ensemble(fns, weights=w)(x))(x, jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(mixed, 0.75 * fns[0](x) + 0.25 * fns[1](x), rtol=1e-5, atol=1e-6)


def test_an_attack_on_an_ensemble_follows_the_mean_of_its_linear_members(linear):
    """For two classes of linear models the step is the sign of the mean weight difference."""
    fns, x, y = models(linear)
    pair = [lambda x, f=f: f(x)[:, :2] for f in fns]
    x_adv = fgsm(ensemble(pair), x, y % 2, eps=0.05)
    w = np.mean([np.asarray(f.args[0])[:, 1] - np.asarray(f.args[0])[:, 0] for f in fns], axis=0)
    signs = np.sign(w)[None] * np.where(np.asarray(y) % 2 == 0, 1, -1)[:, None]
    np.testing.assert_allclose(x_adv - x, 0.05 * signs, atol=1e-6)


def test_a_stochastic_member_makes_the_ensemble_stochastic_each_with_its_own_draw():
    noisy = Stochastic(lambda x, key: jax.random.normal(key, (x.shape[0], 3)))
    both = ensemble([noisy, noisy])
    assert isinstance(both, Stochastic)
    x = jnp.zeros((2, 3))
    drawn = both(x, KEY)
    each = [noisy(x, jax.random.fold_in(KEY, i)) for i in range(2)]
    assert (each[0] != each[1]).all()
    np.testing.assert_allclose(drawn, (each[0] + each[1]) / 2, rtol=1e-6)
    with pytest.raises(ValueError, match="needs a random key"):
        fgsm(both, x, jnp.array([0, 1]), eps=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), r"one model or more \(got none\)"),
        (([lambda x: x], [1.0, 2.0]), r"one for each model \(got shape \(2,\)\)"),
        (([lambda x: x] * 2, [1.0, -1.0]), "weights must be >= 0"),
        (([lambda x: x] * 2, [0.0, 0.0]), "must not all be 0"),
    ],
)
def test_bad_ensembles_raise(arguments, message):
    fns, *weights = arguments
    with pytest.raises(ValueError, match=message):
        ensemble(fns, weights=weights[0] if weights else None)


def test_members_must_agree_on_the_classes():
    with pytest.raises(ValueError, match="logits"):
        ensemble([lambda x: x, lambda x: x[:, :1]])(jnp.zeros((2, 3)))


def test_the_diagonal_is_the_white_box_rate_exactly(linear):
    fns, x, y = models(linear)
    attack = functools.partial(pgd, eps=0.2, steps=4)
    matrix = transfer_matrix(fns, fns, x, y, key=KEY, attack=attack)
    assert matrix.shape == (2, 2)
    for i, f in enumerate(fns):
        right = ~misclassified(f(x), y)
        x_adv = attack(f, x, y, key=jax.random.fold_in(KEY, i))
        rate = (misclassified(f(x_adv), y) & right).sum() / right.sum()
        assert float(matrix[i, i]) == float(rate)


def test_victims_errors_on_clean_inputs_are_no_transfer():
    x, y = jnp.full((4, 2), 0.5), jnp.array([0, 0, 1, 1])
    stay = lambda f, x, y, *, key=None: x  # noqa: E731
    always_first = lambda x: jnp.zeros(x.shape[0], jnp.int32)  # noqa: E731
    np.testing.assert_array_equal(
        transfer_matrix([lambda x: x], [always_first], x, y, attack=stay), [[0.0]]
    )
    never = lambda x: jnp.full(x.shape[0], 7)  # noqa: E731
    assert jnp.isnan(transfer_matrix([lambda x: x], [never], x, y, attack=stay)).all()


def test_bad_matrices_raise(linear):
    fns, x, y = models(linear)
    attack = functools.partial(fgsm, eps=0.1)
    matrix = functools.partial(transfer_matrix, attack=attack)
    with pytest.raises(ValueError, match="one source and one victim"):
        matrix([], fns, x, y)
    with pytest.raises(ValueError, match="labels must be integers"):
        matrix(fns, fns, x, y.astype(jnp.float32))
    with pytest.raises(ValueError, match="one entry per example"):
        matrix(fns, fns, x, y[:2])
    with pytest.raises(ValueError, match="needs a random key"):
        matrix([Stochastic(lambda x, key: x)], fns, x, y)
    with pytest.raises(ValueError, match="logits \\[B, K\\] or integer labels"):
        matrix(fns, [lambda x: x[:, 0]], x, y)


def test_digits_transfer_between_linear_models_as_published(digits):
    """Papernot et al.: logistic regressions fool each other more often than not."""
    half = len(digits.x_train) // 2
    parts = [
        (digits.x_train[:half], digits.y_train[:half]),
        (digits.x_train[half:], digits.y_train[half:]),
    ]
    weights = [ridge.fit(*part) for part in parts]
    x, y = jnp.asarray(digits.x_test[:300]), jnp.asarray(digits.y_test[:300])

    @jax.jit
    def run(weights, x, y):
        fns = [functools.partial(ridge.logits, w) for w in weights]
        attack = functools.partial(fgsm, eps=0.25)
        labels_only = [lambda x, f=f: jnp.argmax(f(x), 1) for f in fns]
        pair = ensemble(fns)
        return transfer_matrix([*fns, pair], [*fns, *labels_only], x, y, attack=attack)

    matrix = np.asarray(run(weights, x, y))
    np.testing.assert_array_equal(matrix[:, :2], matrix[:, 2:])  # labels are all a victim needs
    assert (matrix[:2] >= 0.8).all()
    assert (np.diag(matrix[:2, :2]) >= matrix[:2, :2].T[[0, 1], [1, 0]] - 0.02).all()


@pytest.mark.slow
def test_an_ensemble_transfers_better_than_its_members(spax_data):
    """With momentum, two MNIST networks together fool more often than either alone."""
    from benchmarks import victim
    from benchmarks.figures.universal import mnist_networks

    with np.load(victim.prepare(quick=False)) as stored:
        params = {name: jnp.asarray(value) for name, value in stored.items() if "/" in name}
        x, y = jnp.asarray(stored["x"][:300]), jnp.asarray(stored["y"][:300].astype(np.int32))
    with jax.numpy_dtype_promotion("standard"):  # it is trained by optax's Adam
        others = mnist_networks()

    @jax.jit
    def run(params, others, x, y):
        victim_fn = functools.partial(victim.apply_fn, params)
        fns = [functools.partial(victim.apply_fn, p) for p in others]
        attack = functools.partial(mi_fgsm, eps=0.2, return_last=True)
        return transfer_matrix([*fns, ensemble(fns)], [victim_fn], x, y, attack=attack)

    first, second, both = np.asarray(run(params, others, x, y))[:, 0]
    assert both > max(first, second)
