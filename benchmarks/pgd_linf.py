"""PGD, 40 steps in the linf ball: no slower than its 40 gradients, faster than its peers.

python -m benchmarks.pgd_linf
"""

from benchmarks import victim
from benchmarks.harness import PEERS, Claim, Worker, arguments

TASK = "pgd_linf"


def main(argv=None):
    options = arguments(__doc__, argv)
    path = victim.prepare(options.quick)
    settings = {"eps": 0.1, "steps": 4 if options.quick else 40, "step_size": 0.01}
    batch_sizes = (16,) if options.quick else (256, 1000)
    claim = Claim(
        TASK,
        options,
        title="PGD, linf, 40 steps",
        about="The limit is 40 jitted gradients of the summed loss with respect to the images, "
        "plain or by `spax.gradients.canonical_convolutions`, whichever is faster. The claim to "
        f"be faster than a peer is made for batches of {batch_sizes[0]}.",
        settings=settings | {"batch_sizes": batch_sizes, "victim": path.stem},
    )

    def success(worker):
        return victim.success(path, worker.read()["x_adv"], norm="linf", eps=settings["eps"])

    for batch_size in batch_sizes:
        label = f", batch {batch_size}"
        size = {"batch_size": batch_size}
        with Worker(f"spax{label}", "spax_attacks", TASK, path, **size, **settings) as ours:
            reached = success(ours)
            claim.fact(f"share fooled by spax{label}", reached)
            for way in ("plain", "rewritten"):
                with Worker(
                    f"{settings['steps']} {way} gradients{label}",
                    "limit",
                    TASK,
                    path,
                    gradients=settings["steps"],
                    rewritten=way == "rewritten",
                    **size,
                ) as limit:
                    claim.compare(ours, limit, at_most=1.05)
            for peer, worker in claim.peers(
                PEERS,
                ours,
                TASK,
                path,
                label=label,
                at_most=1.0 if batch_size == batch_sizes[0] else None,
                **size,
                **settings,
            ):
                apart = abs(success(worker) - reached)
                claim.fact(
                    f"difference in the share fooled, spax and {peer}{label}", apart, at_most=0.01
                )
    return claim.write()


if __name__ == "__main__":
    main()
