"""HopSkipJump and Boundary, l2, from the same starts at as many queries: the distances.

python -m benchmarks.decision
"""

import sys

import numpy as np

from benchmarks import victim
from benchmarks.harness import PEERS, Claim, Missing, Worker, arguments

PEER = "foolbox-torch"
# Foolbox's HopSkipJump divides its gradient by the norm over the whole batch, so that its steps
# shrink as the batch grows; image by image it is at its best.
RUNS = (
    ("HopSkipJump", "hop_skip_jump_l2", 8, False),
    ("HopSkipJump, image by image", "hop_skip_jump_l2", 8, True),
    ("Boundary", "boundary_l2", 1500, False),
)


def main(argv=None):
    options = arguments(__doc__, argv)
    path = victim.prepare(options.quick)
    size = {"batch_size": 4 if options.quick else 50}
    claim = Claim(
        "decision",
        options,
        title="Attacks on decisions, l2, 50 images",
        about="Both start from the first image of another class. Foolbox runs its steps (8 of "
        "HopSkipJump, 1,500 of Boundary), its queries are counted, and spax gets as many, its own "
        "check of the input included. Foolbox's HopSkipJump divides its gradient by a norm over "
        "the whole batch; image by image its steps are as long as they should be.",
        settings=size | {"victim": path.stem},
    )
    for label, task, steps, one_by_one in RUNS if PEER in options.peers else ():
        if options.quick:
            steps = min(steps, 20) // 4
        name = f"{PEER}, {label}"
        try:
            worker = Worker(
                name, PEERS[PEER], task, path, python=options.python, steps=steps,
                one_by_one=one_by_one, **size,
            )  # fmt: skip
        except Missing as missing:
            print(f"left out: {missing}", file=sys.stderr)
            break
        with worker:
            queries = int(worker.read()["queries"])
            with Worker(
                f"spax, {label}", "spax_decision", task, path, max_queries=queries, **size
            ) as ours:
                claim.compare(ours, worker)
                found = ours.read()
                success, near = victim.judged(path, found["x_adv"], norm="l2")
            _, far = victim.judged(path, worker.read()["x_adv"], norm="l2")
        claim.fact(f"queries an image of {name}", queries)
        claim.fact(
            f"queries an image of spax, {label}, at most",
            int(found["queries"].max()),
            at_most=queries,
        )
        claim.fact(f"share fooled by spax, {label}", float(success.mean()))
        claim.fact(f"median l2 of spax, {label}", float(np.median(near)))
        claim.fact(
            f"median l2 of spax / median l2 of {name}",
            float(np.median(near) / np.median(far)),
            at_most=1.0,
        )
    return claim.write()


if __name__ == "__main__":
    main()
