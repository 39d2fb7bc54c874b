"""Noise for a budget: RDP in 50 ms, PLD in a second, and faster than dp-accounting.

python -m benchmarks.accounting
"""

import sys

import numpy as np

from benchmarks.harness import Claim, Missing, Worker, arguments

NAME = "accounting"
PEER = "dp-accounting"
# Seconds that one calibration may take once compiled.
LIMITS = {"rdp": 0.05, "pld": 1.0}


def main(argv=None):
    options = arguments(__doc__, argv)
    settings = {
        "epsilons": [3.0] if options.quick else [1.0, 3.0, 8.0],
        "delta": 1e-5,
        "sampling_rate": 256 / 60_000,
        "steps": 4680,
    }
    claim = Claim(
        NAME,
        options,
        title="Calibration: the noise for a budget",
        about="One repetition finds the noise for each epsilon. spax is compiled, and tries the "
        "noise that it returns; dp-accounting searches to 1e-4.",
        settings=settings,
    )
    for accountant, limit in LIMITS.items():
        task = f"calibrate_{accountant}"
        with Worker(f"spax, {accountant}", "spax_accounting", task, "", **settings) as ours:
            noise = ours.read()["noise"]
            times = [ours.run(i)["wall"] / len(settings["epsilons"]) for i in range(5)]
            claim.fact(
                f"seconds of one {accountant} calibration", float(np.median(times)), at_most=limit
            )
            try:
                peer = Worker(
                    f"{PEER}, {accountant}",
                    "dp_accounting_calibration",
                    task,
                    "",
                    python=options.python,
                    **settings,
                )
            except Missing as missing:
                print(f"left out: {missing}", file=sys.stderr)
                continue
            with peer:
                theirs = peer.read()["noise"]
                claim.compare(ours, peer, at_most=1.0)
            claim.fact(
                f"largest excess of spax's noise over {PEER}'s, relative, {accountant}",
                float(np.max(noise / theirs - 1)),
                at_most=1e-3,
            )
    return claim.write()


if __name__ == "__main__":
    main()
