"""The bound follows the quantile, and the account is that of gradient and count together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import dp
from spax.dp.accounting import rdp

SAMPLING = dp.Poisson(rate=1.0, capacity=400, num_records=400)


@pytest.mark.parametrize(("sigma", "stddev"), [(1.1, 12.8), (0.5, 0.3), (4.0, 1000.0)])
def test_the_pair_costs_what_one_release_costs(sigma, stddev):
    """Renyi divergences of Gaussians add up: a z^-2 / 2 + a (2 s)^-2 / 2."""
    z = float(dp.split_noise_multiplier(sigma, stddev))
    assert z**-2 + (2 * stddev) ** -2 == pytest.approx(sigma**-2, rel=1e-5)
    assert z**-2 + (2 * stddev) ** -2 <= sigma**-2


def test_the_papers_example():
    assert float(dp.split_noise_multiplier(1.1, 256 / 20)) == pytest.approx(1.101017, abs=1e-6)


def test_the_bound_finds_the_quantile_and_every_step_is_paid_for():
    lengths = np.random.default_rng(0).uniform(1, 3, 400)
    batch = dp.Batch(jnp.asarray(lengths, jnp.float32), jnp.ones(400, bool))
    init, step = dp.adaptive_private_grad(
        lambda w, x, key: (w * x, None),
        l2_clip_norm=50.0, noise_multiplier=2.0, sampling=SAMPLING, quantile=0.75,
    )  # fmt: skip

    @jax.jit
    def run(key):
        def one(carry, key):
            clip, privacy = carry
            out, clip, privacy = step(jnp.float32(0), batch, clip, privacy, key=key)
            return (clip, privacy), out.grads

        start = init(), dp.init_privacy(SAMPLING)
        return jax.lax.scan(one, start, jax.random.split(key, 60))[0]

    clip, privacy = run(jax.random.key(0))
    assert float(clip.l2_clip_norm) == pytest.approx(np.quantile(lengths, 0.75), rel=0.15)
    exact = rdp.update(rdp.init(), noise_multiplier=2.0, sampling_rate=1.0, steps=60)[1]
    np.testing.assert_allclose(privacy.spent.total, exact.total, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dp.split_noise_multiplier(2.0, 1.0), ValueError, "count_stddev"),
        (lambda: dp.split_noise_multiplier(0.0, 1.0), ValueError, "noise_multiplier"),
        (
            lambda: dp.adaptive_private_grad(
                None, l2_clip_norm=1.0, noise_multiplier=1.0, sampling=SAMPLING, quantile=1.5
            ),
            ValueError,
            "quantile",
        ),
        (
            lambda: dp.adaptive_private_grad(
                None, l2_clip_norm=1.0, noise_multiplier=1.0, sampling=0.5
            ),
            TypeError,
            "Poisson",
        ),
    ],
)
def test_misuse_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
