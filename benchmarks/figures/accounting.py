"""The accountants at settings with known values."""

import jax.numpy as jnp

from benchmarks.figures.common import rounded_up
from spax.dp.accounting import composition, gdp, moments, pld, rdp, zcdp


def _pld(noise_multiplier, sampling_rate, steps):
    kind = pld.gaussian(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate)
    return pld.epsilon(pld.update(pld.init([kind]), steps=steps)[1], 1e-5)


def measure():
    """Epsilon at delta 1e-5, if nothing else is said."""
    _, paper = rdp.update(rdp.init(), noise_multiplier=4.0, sampling_rate=0.01, steps=10_000)
    _, one_mu = gdp.update(gdp.init(), noise_multiplier=1.0)
    _, clt = gdp.update_clt(gdp.init(), noise_multiplier=1.0, sampling_rate=0.01, steps=1000)
    _, fixed = rdp.update(
        rdp.init(sampler="fixed_size", adjacency="replace"),
        noise_multiplier=8.0,
        sampling_rate=0.01,
        steps=1000,
    )
    epochs = jnp.full((100, 10), 6.0)
    return {
        "known": {
            "moments": rounded_up(moments.epsilon(paper, 1e-5)),
            "pld": rounded_up(_pld(4.0, 0.01, 10_000)),
            "pld_mnist": rounded_up(_pld(1.1, 256 / 60_000, 14_062)),
            "zcdp": rounded_up(zcdp.epsilon(zcdp.add(zcdp.init(), 0.5)[1], 1e-5)),
            "gdp": rounded_up(gdp.epsilon(one_mu, 1e-5)),
            "clt": round(float(gdp.epsilon(clt, 1e-5).estimate), 2),
            "clt_true": rounded_up(_pld(1.0, 0.01, 1000)),
            "optimal": rounded_up(composition.optimal(0.1, 0.0, 100, 1e-5)),
            "shuffle": round(float(composition.shuffle_epsilon(1.0, n=10**6, delta=1e-8)), 4),
            "fixed_size": rounded_up(rdp.epsilon(fixed, 1e-5)),
            "reshuffled": rounded_up(zcdp.reshuffled_rho(epochs, adjacency="zero_out")),
        }
    }
