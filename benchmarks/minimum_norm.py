"""DeepFool and FAB: their time, and the distances and accuracies that they find.

python -m benchmarks.minimum_norm
"""

import numpy as np

from benchmarks import victim
from benchmarks.harness import Claim, Worker, arguments

DEEPFOOL, FAB = "deepfool_l2", "fab_linf"


def main(argv=None):
    options = arguments(__doc__, argv)
    path = victim.prepare(options.quick)
    size = {"batch_size": 8 if options.quick else 100}
    deepfool = {"steps": 5 if options.quick else 50, "candidates": 10, "overshoot": 0.02}
    fab = {"steps": 2 if options.quick else 20, "targets": 9}
    radii = [0.1, 0.2]
    claim = Claim(
        "minimum_norm",
        options,
        title="DeepFool, l2, 50 steps; FAB, linf, 9 targets, 20 steps; 100 images",
        about="Foolbox's DeepFool, like the authors' program, linearises the model at the point "
        "with its overshoot: `overshoot_each_step=True`. The paper does at the point without it, "
        "the default. FAB goes for a class at a time, as in AutoAttack, from which the code of "
        "torchattacks comes. That goes on with the images not yet fooled within eps, and so runs "
        "once for each eps; spax runs once for both.",
        settings={"deepfool": deepfool, "fab": fab | {"eps": radii}} | size | {"victim": path.stem},
    )

    with Worker("spax", "spax_minimum_norm", DEEPFOOL, path, **size, **deepfool) as ours:
        claim.fact("median l2 of DeepFool as in the paper", _median(path, ours))
    with Worker(
        "spax, DeepFool",
        "spax_minimum_norm",
        DEEPFOOL,
        path,
        overshoot_each_step=True,
        **size,
        **deepfool,
    ) as ours:
        median = _median(path, ours)
        claim.fact("median l2 of DeepFool from the point with overshoot", median)
        for peer, worker in claim.peers(
            ("foolbox-torch", "foolbox-jax"),
            ours,
            DEEPFOOL,
            path,
            label=", DeepFool",
            at_most=1.0,
            **size,
            **deepfool,
        ):
            theirs = _median(path, worker)
            claim.fact(f"median l2 of {peer}, DeepFool", theirs)
            claim.fact(
                f"median l2, relative difference of spax and {peer}",
                abs(median - theirs) / theirs,
                at_most=1e-3,
            )

    with Worker("spax, FAB", "spax_minimum_norm", FAB, path, **size, **fab) as ours:
        nearest = _distances(path, ours, "linf")
        for peer, worker in claim.peers(
            ("torchattacks",), ours, FAB, path, label=", FAB", eps=radii, **size, **fab
        ):
            found = worker.read()["x_adv"]
            for eps, x_adv in zip(radii, found, strict=True):
                theirs = 1 - victim.success(path, x_adv, norm="linf", eps=eps)
                robust = float(np.mean(~(nearest <= eps)))
                claim.fact(f"accuracy under FAB of spax at eps {eps}", robust)
                claim.fact(f"accuracy under FAB of {peer} at eps {eps}", theirs)
                claim.fact(
                    f"accuracy under FAB of spax less that of {peer} at eps {eps}",
                    robust - theirs,
                    at_most=0.01,
                )
    return claim.write()


def _distances(path, worker, norm):
    return victim.judged(path, worker.read()["x_adv"], norm=norm)[1]


def _median(path, worker):
    return float(np.median(_distances(path, worker, "l2")))


if __name__ == "__main__":
    main()
