import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import (
    coarse_logits,
    ensemble,
    human_transfer_attack,
    mi_fgsm,
    retinal_blur,
)
from spax.evasion.imaging import gaussian_blur
from spax.typing import Stochastic
from tests.evasion import ridge

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.slow]

KEY = jax.random.key(0)
EVEN, ODD = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)


def test_the_retina_keeps_constants_and_what_it_looks_at():
    flat = jnp.full((1, 12, 10, 2), 0.37)
    np.testing.assert_allclose(retinal_blur(flat, slope=0.3), flat, atol=1e-6)
    x = jax.random.uniform(KEY, (2, 9, 9, 3))
    seen = retinal_blur(x, slope=0.3)
    np.testing.assert_allclose(seen[:, 4, 4], x[:, 4, 4], atol=1e-6)
    np.testing.assert_array_equal(retinal_blur(x, slope=0.0), x)
    corner = retinal_blur(x, slope=0.3, fixation=(0.0, 1.0))
    np.testing.assert_allclose(corner[:, 0, -1], x[:, 0, -1], atol=1e-6)
    assert ((seen >= x.min()) & (seen <= x.max())).all()


def test_high_frequencies_fade_with_eccentricity():
    board = (jnp.indices((31, 31)).sum(0) % 2).astype(jnp.float32)[None, :, :, None]
    seen = retinal_blur(board, slope=0.12, levels=6)
    contrast = np.abs(np.asarray(seen)[0, :, :, 0] - 0.5)
    rings = [contrast[15, 15 + r] for r in range(0, 13, 2)]  # away from the edge
    assert rings[0] > 0.49
    assert (np.diff(rings) <= 1e-4).all()
    assert rings[-1] < 0.1


def test_its_width_is_that_of_the_eccentricity():
    """An impulse at distance r is spread with variance (foveal + slope r)^2, seen from there."""
    slope, size = 0.1, 41
    for r in (6, 12):
        # The response at a fixed pixel to impulses everywhere: the kernel of that pixel.
        pixel = lambda x, r=r: retinal_blur(x, slope=slope)[0, 20, 20 + r, 0]  # noqa: E731
        kernel = np.asarray(jax.grad(pixel)(jnp.zeros((1, size, size, 1))))[0, :, :, 0]
        away = np.arange(size) - 20
        variance = (kernel.sum(1) * away**2).sum()
        np.testing.assert_allclose(variance, (slope * r) ** 2, rtol=0.05)
    even = retinal_blur(jnp.eye(9)[None, :, :, None], slope=0.0, foveal_sigma=1.3)
    np.testing.assert_allclose(even, gaussian_blur(jnp.eye(9)[None, :, :, None], 1.3), atol=1e-5)


def test_coarse_log_odds_by_hand():
    z = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    groups = [(0, 1), (2, 5), (3,)]
    got = coarse_logits(lambda x: x, groups)(jnp.asarray(z))
    wanted = [[np.log(row[list(g)].sum() / np.delete(row, g).sum()) for g in groups] for row in p]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_saturated_models_give_finite_log_odds():
    z = jnp.array([[1000.0, 0.0, -1000.0]])
    coarse = coarse_logits(lambda x: x, [(0,), (1, 2)])
    np.testing.assert_allclose(coarse(z), [[1000.0, -1000.0]])
    assert jnp.isfinite(jax.grad(lambda x: coarse(x).sum())(z)).all()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([(0, 1)], "two or more"),
        ([(0,), ()], "none of them empty"),
        ([(0,), (3,)], "some, not all, of the 3 classes"),
        ([(0, 1, 2), (1,)], "some, not all, of the 3 classes"),
    ],
)
def test_bad_groups_raise(groups, message):
    with pytest.raises(ValueError, match=message):
        coarse_logits(lambda x: x, groups)(jnp.zeros((1, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slope": -1.0}, "slope must be >= 0"),
        ({"foveal_sigma": -1.0}, "foveal_sigma must be >= 0"),
        ({"levels": 1}, "levels must be >= 2"),
        ({"fixation": (0.5, 1.5)}, "fixation must be >= 0 and <= 1"),
        ({"x": jnp.zeros((3, 3, 1))}, "images"),
    ],
)
def test_bad_retinas_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        retinal_blur(**{"x": jnp.zeros((1, 3, 3, 1)), "slope": 0.1, **arguments})


def members(linear, count=3):
    apply_fn, params, x, y = linear
    rng = np.random.default_rng(4)
    noise = [jnp.asarray(rng.normal(size=params.shape), jnp.float32) for _ in range(count)]
    return [functools.partial(apply_fn, params + 0.5 * n) for n in noise], x, y


def test_it_is_iterated_fgsm_on_the_ensemble_of_coarse_models(linear):
    """Without a retina, and with every class a group, mi_fgsm without momentum."""
    fns, x, y = members(linear)
    target, groups = (y + 1) % 4, [(k,) for k in range(4)]
    attack = functools.partial(human_transfer_attack, fns, x, target, eps=0.1, steps=5)
    coarse = ensemble([coarse_logits(f, groups) for f in fns])
    np.testing.assert_array_equal(
        attack(groups=groups),
        mi_fgsm(coarse, x, target, eps=0.1, steps=5, decay=0.0, targeted=True, return_last=True),
    )


def test_the_ensembles_odds_are_the_geometric_mean_of_its_members(linear):
    fns, x, _ = members(linear)
    groups = [(0, 1), (2, 3)]
    odds = [jnp.exp(coarse_logits(f, groups)(x)) for f in fns]
    together = jnp.exp(ensemble([coarse_logits(f, groups) for f in fns])(x))
    wanted = np.prod(np.stack(odds).astype(np.float64), axis=0) ** (1 / 3)
    np.testing.assert_allclose(together, wanted, rtol=1e-4)


def test_untargeted_leaves_the_group_and_stochastic_retinas_need_a_key(linear):
    fns, x, y = members(linear)
    groups = [(0, 1), (2, 3)]
    attack = functools.partial(human_transfer_attack, fns, x, groups=groups, steps=5)
    x_adv = attack(y // 2, eps=0.4, targeted=False)
    coarse = ensemble([coarse_logits(f, groups) for f in fns])
    assert (jnp.argmax(coarse(x_adv), 1) != y // 2).mean() > 0.5
    shaky = Stochastic(lambda x, key: x + 0.01 * jax.random.normal(key, x.shape))
    with pytest.raises(ValueError, match="needs a random key"):
        attack(y // 2, retina=shaky)
    assert attack(y // 2, retina=shaky, key=KEY).shape == x.shape


def test_digits_crafted_on_two_models_fool_a_third_and_flipped_ones_do_not(digits):
    """Odd against even digits, three linear models of different data; the third is held out."""
    thirds = [slice(i, None, 3) for i in range(3)]
    weights = [ridge.fit(digits.x_train[s], digits.y_train[s]) for s in thirds]
    x, y = jnp.asarray(digits.x_test[:300]), jnp.asarray(digits.y_test[:300] % 2)

    @jax.jit
    def run(weights, x, y):
        fns = [functools.partial(ridge.logits, w) for w in weights]
        retina = functools.partial(retinal_blur, slope=0.1, levels=3)
        x_adv = human_transfer_attack(
            fns[:2], x, 1 - y, eps=0.2, steps=8, groups=(EVEN, ODD), retina=retina
        )
        held_out = coarse_logits(fns[2], (EVEN, ODD))
        flipped = jnp.clip(x + (x_adv - x)[:, ::-1], 0, 1)
        right = jnp.argmax(held_out(x), 1) == y
        error = lambda z: (right & (jnp.argmax(held_out(z), 1) != y)).sum() / right.sum()  # noqa: E731
        return error(x_adv), error(flipped)

    fooled, control = run(weights, x, y)
    assert fooled >= 0.6
    assert control <= fooled - 0.3
