"""dp-accounting: the noise for a budget, to a relative 1e-4."""

from functools import partial

import dp_accounting
import numpy as np

from benchmarks.systems import Job

PACKAGES = ("dp-accounting",)


def _calibrate(make, _, *, epsilons, delta, sampling_rate, steps):
    def event(sigma):
        sampled = dp_accounting.PoissonSampledDpEvent(
            sampling_rate, dp_accounting.GaussianDpEvent(sigma)
        )
        return dp_accounting.SelfComposedDpEvent(sampled, steps)

    def run(_):
        return [
            dp_accounting.calibrate_dp_mechanism(
                make,
                event,
                epsilon,
                delta,
                dp_accounting.ExplicitBracketInterval(0.2, 20.0),
                tol=1e-4,
            )
            for epsilon in epsilons
        ]

    return Job(run, lambda noises: {"noise": np.asarray(noises)})


calibrate_rdp = partial(_calibrate, dp_accounting.rdp.RdpAccountant)
calibrate_pld = partial(_calibrate, dp_accounting.pld.PLDAccountant)
