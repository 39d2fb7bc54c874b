"""JSMA, theta 1, gamma 0.145: success and entries changed, against ART's variant of it.

python -m benchmarks.saliency_map
"""

from benchmarks import victim
from benchmarks.harness import Claim, Worker, arguments

TASK = "saliency_map"
PEERS = ("art",)


def main(argv=None):
    options = arguments(__doc__, argv)
    path = victim.prepare(options.quick)
    size = {"batch_size": 4 if options.quick else 100}
    settings = {"theta": 1.0, "gamma": 0.02 if options.quick else 0.145}
    claim = Claim(
        TASK,
        options,
        title="JSMA, towards the next class, 100 images",
        about="ART scores entries one by one, by the target's derivative alone, and changes the "
        "best two; spax looks at all pairs, as in the paper. Distances are compared where both "
        "succeed.",
        settings=settings | size | {"victim": path.stem},
    )
    with Worker("spax", "spax_sparse_attacks", TASK, path, **size, **settings) as ours:
        hit, few = _judged(path, ours)
        claim.fact("share that spax brings to the target", float(hit.mean()))
        claim.fact("mean entries changed by spax", float(few[hit].mean()))
        for peer, worker in claim.peers(PEERS, ours, TASK, path, **size, **settings):
            theirs, many = _judged(path, worker)
            claim.fact(f"share that {peer} brings to the target", float(theirs.mean()))
            claim.fact(
                f"share that {peer} brings there less spax's",
                float(theirs.mean() - hit.mean()),
                at_most=0.0,
            )
            both = hit & theirs
            claim.fact(
                f"mean entries changed, spax / {peer}",
                float(few[both].mean() / many[both].mean()),
                at_most=1.0,
            )
    return claim.write()


def _judged(path, worker):
    """Success and number of entries changed, towards the next class."""
    x_adv = worker.read()["x_adv"]
    _, _, y = victim.load(path, len(x_adv))
    return victim.judged(path, x_adv, norm="l0", target=victim.next_class(y))


if __name__ == "__main__":
    main()
