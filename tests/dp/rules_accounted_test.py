"""What a training by any rule of sampling is charged, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import dp
from spax.dp.accounting import rdp

N, SIGMA = 12, 3.0
RULES = {
    "poisson": dp.Poisson(0.5, N, N),
    "users": dp.Users(0.5, N, N),
    "fixed size": dp.FixedSize(4, N),
    "shuffled": dp.Shuffled(4, N),
    "balls in bins": dp.BallsInBins(3, N, N),
}


def train(sampling, steps, noises=(SIGMA,)):
    """The receipt after so many steps, whose noise multipliers take turns."""
    gradients = [
        dp.private_grad(
            lambda w, x, key: ((w - x) ** 2, None),
            l2_clip_norm=1.0,
            noise_multiplier=noise,
            sampling=sampling,
        )
        for noise in noises
    ]
    privacy, key = dp.init_privacy(sampling), jax.random.key(0)
    for i in range(steps):
        batch = dp.sample(key, jnp.linspace(0, 1, N), sampling, step=i)
        step = gradients[i % len(noises)]
        _, privacy = step(jnp.float32(0), batch, privacy, key=jax.random.key(i + 1))
    return privacy


def divergence(privacy):
    return np.asarray(privacy.spent.total, np.float64) + np.asarray(privacy.spent.carry)


def gaussian(sensitivity, noise=SIGMA):
    return rdp.ORDERS * sensitivity**2 / (2 * noise**2)


@pytest.mark.parametrize("name", RULES)
def test_the_receipt_names_the_rule_and_its_adjacency(name):
    sampling = RULES[name]
    privacy = train(sampling, 1)
    assert privacy.spent.adjacency == sampling.adjacency
    assert privacy.spent.unit == sampling.unit
    assert int(privacy.steps) == 1
    assert SIGMA * (1 - 1e-6) < float(privacy.least_noise) < SIGMA
    assert 0 < float(dp.epsilon(privacy, 1e-5)) < np.inf


@pytest.mark.parametrize(("name", "sensitivity"), [("shuffled", 2), ("balls in bins", 1)])
@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_an_epoch_costs_one_release_of_all_records(name, sensitivity, steps, epochs):
    spent = divergence(train(RULES[name], steps))
    np.testing.assert_allclose(spent, epochs * gaussian(sensitivity), rtol=1e-5)
    assert (spent >= epochs * gaussian(sensitivity)).all()


def test_less_noise_in_the_middle_of_an_epoch_is_charged_too():
    """Records of that batch are protected by its noise alone, whatever came before."""
    twice = train(RULES["balls in bins"], 6, noises=(4.0, 2.0))
    # Epochs of three: 4 2 4 and 2 4 2; each has a batch of noise 2.
    assert (divergence(twice) >= 2 * gaussian(1, 2.0)).all()
    assert float(twice.least_noise) == pytest.approx(2.0)


def test_a_poisson_bound_is_none_for_shuffled_batches():
    poisson = dp.Poisson(4 / N, N, N)
    step = dp.private_grad(
        lambda w, x, key: ((w - x) ** 2, None),
        l2_clip_norm=1.0,
        noise_multiplier=SIGMA,
        sampling=poisson,
    )
    batch = dp.sample(jax.random.key(0), jnp.zeros(N), poisson)
    with pytest.raises(ValueError, match="another sampling"):
        step(jnp.float32(0), batch, dp.init_privacy(RULES["shuffled"]), key=jax.random.key(1))
    with pytest.raises(ValueError, match="bounds for sampler"):
        rdp.init(sampler="shuffled")
    with pytest.raises(TypeError, match=r"one of spax\.dp's rules"):
        dp.init_privacy("poisson")


def test_fixed_size_batches_are_charged_for_a_replaced_record():
    spent = divergence(train(RULES["fixed size"], 2))
    once = rdp.fixed_size_gaussian(noise_multiplier=SIGMA, sampling_rate=4 / N)
    np.testing.assert_allclose(spent, 2 * (np.float64(once.high) + once.low), rtol=1e-5)


@pytest.mark.slow
def test_a_delta_below_float32_is_no_larger_one_under_jit():
    privacy = train(RULES["poisson"], 1)
    assert float(jax.jit(dp.epsilon)(privacy, 1e-39)) >= float(dp.epsilon(privacy, 1e-39))
