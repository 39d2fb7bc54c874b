"""spax's accountants: the noise for a budget, compiled beforehand."""

from functools import partial

import jax

from benchmarks.systems import Job
from spax.dp.accounting import pld, rdp

PACKAGES = ("spax", "jax", "jaxlib")


def _calibrate(accountant, _, *, epsilons, delta, sampling_rate, steps):
    def run(i):
        # Another budget each time; a repetition goes through all of them.
        noises = []
        for epsilon in epsilons:
            noises.append(
                accountant.calibrate(
                    epsilon=epsilon, delta=delta, sampling_rate=sampling_rate, steps=steps
                )[0].block_until_ready()
            )
        return jax.device_get(noises)

    return Job(run, lambda noises: {"noise": noises})


calibrate_rdp = partial(_calibrate, rdp)
calibrate_pld = partial(_calibrate, pld)
