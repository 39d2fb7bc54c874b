"""A sweep of 16 radii: one compilation, at the cost of 16 calls of a compiled attack.

python -m benchmarks.eps_sweep
"""

import numpy as np

from benchmarks import victim
from benchmarks.harness import PEERS, Claim, Worker, arguments

TASK = "eps_sweep"


def main(argv=None):
    options = arguments(__doc__, argv)
    path = victim.prepare(options.quick)
    radii = 3 if options.quick else 16
    steps = 4 if options.quick else 40
    settings = {
        "batch_size": 16 if options.quick else 256,
        "eps": [round(float(e), 4) for e in np.linspace(0.0, 0.3, radii + 1)[1:]],
        "steps": steps,
        "share": 2.5 / steps,  # of eps, in a step
    }
    claim = Claim(
        TASK,
        options,
        title="PGD, linf, 40 steps, at 16 radii",
        about="`spax.evaluation.sweep`, which judges every point too, against a call for each "
        "radius of one function compiled with eps as an argument, and against the peers' attacks "
        "for each radius.",
        settings=settings | {"victim": path.stem},
    )

    with Worker("spax", "spax_attacks", TASK, path, **settings) as ours:
        seen = ours.read()
        claim.fact(f"compilations for {radii} radii", int(seen["compilations"]), at_most=1)

        def compare_success(name, worker):
            points = zip(worker.read()["x_adv"], settings["eps"], strict=True)
            theirs = [victim.success(path, x, norm="linf", eps=eps) for x, eps in points]
            apart = float(np.abs(seen["success"] - theirs).max())
            claim.fact(f"largest difference in the share fooled, spax and {name}", apart)

        name = f"{radii} compiled calls"
        with Worker(name, "spax_attacks", "eps_calls", path, **settings) as calls:
            claim.compare(ours, calls, at_most=1.1)
            compare_success(name, calls)
        for peer, worker in claim.peers(PEERS, ours, TASK, path, **settings):
            compare_success(peer, worker)
    return claim.write()


if __name__ == "__main__":
    main()
