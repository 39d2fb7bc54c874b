"""AutoAttack, standard version: its accuracy and that of its members against a peer, and its time.

python -m benchmarks.autoattack
"""

import sys

from benchmarks import harness, victim
from benchmarks.harness import Claim, Worker, arguments

PEERS = ("torchattacks",)


def main(argv=None):
    options = arguments(__doc__, argv, images=200)
    mnist = victim.prepare(options.quick, robust=True)
    cifar = None if options.quick else victim.prepare_cifar()
    settings = {
        "batch_size": 16 if options.quick else options.images,
        "steps": 4 if options.quick else 100,
        "queries": 20 if options.quick else 5000,
    }
    claim = Claim(
        "autoattack",
        options,
        title="AutoAttack, standard version, linf",
        about="APGD with cross-entropy and towards 9 targets, FAB towards 9 targets, Square with "
        "5,000 queries; each on what is left. The peer is composed of its own attacks by that "
        "recipe: its class of this name takes 10 steps, and rescales the schedule of Square. "
        "Accuracies are in points, of images that the networks classify correctly. The networks "
        "are trained by PGD, on MNIST in linf 0.3, on 15,000 images of CIFAR-10 in 8/255. One pair "
        "where it takes minutes; the seconds of spax include compilation.",
        settings=settings | {"victims": [path.stem for path in (mnist, cifar) if path]},
    )
    # Written after each, since all of them take an hour.
    for path, eps in ((mnist, 0.3), (cifar, 8 / 255), (mnist, 0.2), (mnist, 0.1)):
        if path is not None:
            _ensemble(claim, path, eps, settings)
            claim.write()
    _members(claim, options, mnist, 0.3, settings)
    return claim.write()


def _at(path, eps):
    return f"{path.stem.removeprefix('victim-')}, eps {eps:.3g}"


def _members(claim, options, path, eps, settings):
    """Each attack alone."""
    settings = settings | {"eps": eps}
    at = _at(path, eps)
    for label, task, more in (
        ("APGD-CE", "apgd_ce", {}),
        ("APGD-T", "apgd_t", {}),
        ("Square, rescaled", "square", {"reschedule": True}),
        ("Square", "square", {"reschedule": False}),
    ):
        ours = _accuracy_of("spax_autoattack", task, path, **settings, **more)
        claim.fact(f"accuracy under {label}, {at}", ours)
        for peer in (name for name in PEERS if name in options.peers):
            system = harness.PEERS[peer]
            try:
                theirs = _accuracy_of(system, task, path, python=options.python, **settings, **more)
            except harness.Missing as missing:
                print(f"left out: {missing}", file=sys.stderr)
                continue
            claim.fact(f"{label}: accuracy, spax above {peer}, {at}", ours - theirs, at_most=1.0)


def _ensemble(claim, path, eps, settings):
    """All of them, timed."""
    at = _at(path, eps)
    settings = settings | {"eps": eps}
    with Worker(
        f"spax, {at}", "spax_autoattack", "autoattack", path, warm_up=0, **settings
    ) as ours:
        for peer, worker in claim.peers(
            PEERS, ours, "autoattack", path, label=f", {at}", at_most=0.5, warm_up=0, **settings
        ):
            found, theirs = _accuracy(path, ours, eps), _accuracy(path, worker, eps)
            claim.fact(f"accuracy under AutoAttack, {at}", found)
            claim.fact(
                f"AutoAttack: accuracy, spax above {peer}, {at}", found - theirs, at_most=0.5
            )


def _accuracy(path, worker, eps):
    """What is left, in points."""
    reached = victim.success(path, worker.read()["x_adv"], norm="linf", eps=eps)
    return round(100 * (1 - reached), 2)


def _accuracy_of(system, task, path, *, eps, **settings):
    with Worker(system, system, task, path, warm_up=1, eps=eps, **settings) as worker:
        return _accuracy(path, worker, eps)


if __name__ == "__main__":
    main()
