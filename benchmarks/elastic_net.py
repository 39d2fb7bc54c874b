"""EAD, 9 x 100 steps, both decision rules: its l1 distances, and the cost against Foolbox's.

python -m benchmarks.elastic_net
"""

import numpy as np

from benchmarks import victim
from benchmarks.harness import Claim, Worker, arguments

TASK = "elastic_net"
PEERS = ("foolbox-torch",)  # on JAX, where the same code runs, it takes minutes


def main(argv=None):
    options = arguments(__doc__, argv)
    path = victim.prepare(options.quick)
    size = {"batch_size": 8 if options.quick else 100}
    settings = {
        "search_steps": 2 if options.quick else 9,
        "steps": 20 if options.quick else 100,
        "step_size": 1e-2,
        "beta": 1e-3,
        "confidence": 0.0,
        "initial_const": 10.0 if options.quick else 1e-3,
    }
    claim = Claim(
        TASK,
        options,
        title="EAD, 9 x 100 steps, 100 images",
        about="Without early stop, which Foolbox decides for the whole batch at once. Where it "
        "fails Foolbox returns black images: those count as failures, and distances are compared "
        "where both succeed.",
        settings=settings | size | {"victim": path.stem},
    )
    for rule in ("EN", "L1"):
        more = settings | {"l1_rule": rule == "L1", "abort_early": False}
        label = f", {rule} rule"
        with Worker(f"spax{label}", "spax_sparse_attacks", TASK, path, **size, **more) as ours:
            fooled, near = _judged(path, ours)
            claim.fact(f"share fooled by spax{label}", float(fooled.mean()))
            claim.fact(f"mean l1 of spax{label}", float(near[fooled].mean()))
            for peer, worker in claim.peers(PEERS, ours, TASK, path, label=label, **size, **more):
                theirs, far = _judged(path, worker)
                claim.fact(f"share fooled by {peer}{label}", float(theirs.mean()))
                claim.fact(
                    f"share fooled by {peer} and not by spax{label}",
                    float((theirs & ~fooled).mean()),
                    at_most=0.01,
                )
                both = fooled & theirs
                claim.fact(
                    f"mean l1 of spax / mean l1 of {peer}{label}",
                    float(near[both].mean() / far[both].mean()),
                    at_most=1.02,
                )
    return claim.write()


def _judged(path, worker):
    """Success and l1 distance; a black image that happens to fool is no success."""
    x_adv = worker.read()["x_adv"]
    success, distance = victim.judged(path, x_adv, norm="l1")
    return success & np.any(x_adv != 0, axis=(1, 2, 3)), distance


if __name__ == "__main__":
    main()
