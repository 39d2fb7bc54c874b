"""AutoAttack, standard version: its accuracy and that of its members against a peer, and its time.

python -m benchmarks.autoattack
"""

import sys

from benchmarks import harness, victim
from benchmarks.harness import Claim, Worker, arguments

PEERS = ("torchattacks",)


def main(argv=None):
    options = arguments(__doc__, argv)
    plain = victim.prepare(options.quick)
    robust = victim.prepare(options.quick, robust=True)
    settings = {
        "batch_size": 16 if options.quick else 200,
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
        "Accuracies are in points. The robust network is the same, trained by PGD in linf 0.3.",
        settings=settings | {"victims": (plain.stem, robust.stem)},
    )
    for path, eps in ((plain, 0.1), (plain, 0.2), (robust, 0.3)):
        at = f"{path.stem}, eps {eps:g}"
        ball = {"eps": eps}
        for label, task, more in (
            ("APGD-CE", "apgd_ce", {}),
            ("APGD-T", "apgd_t", {}),
            ("Square, rescaled", "square", {"reschedule": True}),
            ("Square", "square", {"reschedule": False}),
        ):
            ours = _accuracy_of("spax_autoattack", task, path, **ball, **settings, **more)
            claim.fact(f"accuracy under {label}, {at}", ours)
            for peer in (name for name in PEERS if name in options.peers):
                system = harness.PEERS[peer]
                try:
                    theirs = _accuracy_of(
                        system, task, path, python=options.python, **ball, **settings, **more
                    )
                except harness.Missing as missing:
                    print(f"left out: {missing}", file=sys.stderr)
                    continue
                claim.fact(
                    f"{label}: accuracy, spax above {peer}, {at}", ours - theirs, at_most=1.0
                )
        with Worker(
            f"spax, {at}", "spax_autoattack", "autoattack", path, **ball, **settings
        ) as ours:
            found = _accuracy(path, ours, eps)
            claim.fact(f"accuracy under AutoAttack, {at}", found)
            for peer, worker in claim.peers(
                PEERS, ours, "autoattack", path, label=f", {at}", at_most=0.5, **ball, **settings
            ):
                theirs = _accuracy(path, worker, eps)
                claim.fact(
                    f"AutoAttack: accuracy, spax above {peer}, {at}", found - theirs, at_most=0.5
                )
    return claim.write()


def _accuracy(path, worker, eps):
    """What is left, in points."""
    reached = victim.success(path, worker.read()["x_adv"], norm="linf", eps=eps)
    return round(100 * (1 - reached), 2)


def _accuracy_of(system, task, path, *, eps, **settings):
    with Worker(system, system, task, path, eps=eps, **settings) as worker:
        return _accuracy(path, worker, eps)


if __name__ == "__main__":
    main()
