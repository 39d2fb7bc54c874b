"""Carlini and Wagner's l2 attack, 9 x 200 steps: the cost of its gradients, and its distances.

python -m benchmarks.carlini_wagner_l2
"""

import numpy as np

from benchmarks import victim
from benchmarks.harness import Claim, Worker, arguments

TASK = "carlini_wagner_l2"
PEERS = ("foolbox-jax", "foolbox-torch")  # the others' have no like search for the constant


def main(argv=None):
    options = arguments(__doc__, argv)
    path = victim.prepare(options.quick)
    size = {"batch_size": 8 if options.quick else 100}
    settings = {
        "search_steps": 2 if options.quick else 9,
        "steps": 20 if options.quick else 200,
        "step_size": 1e-2,
        "confidence": 0.0,
        "initial_const": 10.0 if options.quick else 1e-3,
    }
    claim = Claim(
        TASK,
        options,
        title="Carlini-Wagner, l2, 9 x 200 steps, 100 images",
        about="The limit is as many jitted gradients of the summed margin as the attack takes "
        "steps, plain or by `spax.gradients.canonical_convolutions`, whichever is faster. With "
        "early stop Foolbox ends a round for the whole batch at once, spax for each example. Where "
        "Foolbox fails it returns a black image, which counts as no success here.",
        settings=settings | size | {"victim": path.stem},
    )

    def attack(name, **more):
        return Worker(name, "spax_attacks", TASK, path, **size, **settings, **more)

    with attack("counting", abort_early=True, count_gradients=True) as counter:
        executed = int(counter.read()["gradients"])
    total = settings["search_steps"] * settings["steps"]
    claim.fact(f"gradients with early stop, of {total}", executed)

    for label, abort_early, count in (("", False, total), (", early stop", True, executed)):
        with attack(f"spax{label}", abort_early=abort_early) as ours:
            for way in ("plain", "rewritten"):
                with Worker(
                    f"{count} {way} gradients{label}",
                    "limit",
                    TASK,
                    path,
                    gradients=count,
                    rewritten=way == "rewritten",
                    **size,
                ) as limit:
                    claim.compare(ours, limit, at_most=1.15)
            found = _distances(path, ours)
            claim.fact(f"share fooled by spax{label}", float(np.isfinite(found).mean()))
            claim.fact(f"mean l2 of spax{label}", float(found[np.isfinite(found)].mean()))
            for peer, worker in claim.peers(
                PEERS,
                ours,
                TASK,
                path,
                label=label,
                abort_early=abort_early,
                **size,
                **settings,
            ):
                theirs = _distances(path, worker)
                claim.fact(f"share fooled by {peer}{label}", float(np.isfinite(theirs).mean()))
                both = np.isfinite(found) & np.isfinite(theirs)
                claim.fact(
                    f"mean l2 of spax / mean l2 of {peer}, where both succeed{label}",
                    float(found[both].mean() / theirs[both].mean()),
                    at_most=1.02,
                )
    return claim.write()


def _distances(path, worker):
    """The distance of every image, infinite where the attack failed."""
    x_adv = worker.read()["x_adv"]
    success, distance = victim.judged(path, x_adv, norm="l2")
    # Foolbox returns a black image where it fails, which any network takes for some other class.
    black = ~x_adv.reshape(len(x_adv), -1).any(axis=1)
    return np.where(success & ~black, distance, np.inf)


if __name__ == "__main__":
    main()
