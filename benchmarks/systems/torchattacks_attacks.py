"""torchattacks' attacks. Its CW has no search for the constant: nothing to compare."""

import torchattacks

from benchmarks.systems import Job, torch_victim

PACKAGES = ("torchattacks", "torch", "numpy")


def pgd_linf(path, *, batch_size, eps, step_size, steps, **_) -> Job:
    model, x, y = torch_victim.load(path, batch_size)
    attack = torchattacks.PGD(model, eps=eps, alpha=step_size, steps=steps, random_start=True)
    return Job(lambda _: attack(x, y), lambda out: {"x_adv": torch_victim.to_numpy(out)})


def eps_sweep(path, *, batch_size, eps, share, steps, **_) -> Job:
    model, x, y = torch_victim.load(path, batch_size)
    attacks = [torchattacks.PGD(model, eps=e, alpha=share * e, steps=steps) for e in eps]
    return Job(
        lambda _: [attack(x, y) for attack in attacks],
        lambda out: {"x_adv": [torch_victim.to_numpy(one) for one in out]},
    )


def fab_linf(path, *, batch_size, eps, steps, targets, **_) -> Job:
    """A run for every radius: it goes on with the images that are not fooled within it."""
    model, x, y = torch_victim.load(path, batch_size)
    attacks = [
        torchattacks.FAB(
            model, norm="Linf", eps=e, steps=steps, multi_targeted=True, n_classes=targets + 1
        )
        for e in eps
    ]
    return Job(
        lambda _: [attack(x, y) for attack in attacks],
        lambda out: {"x_adv": [torch_victim.to_numpy(one) for one in out]},
    )


def _job(attack, x, y) -> Job:
    return Job(lambda _: attack(x, y), lambda out: {"x_adv": torch_victim.to_numpy(out)})


def apgd_ce(path, *, batch_size, eps, steps, **_) -> Job:
    model, x, y = torch_victim.load(path, batch_size)
    return _job(torchattacks.APGD(model, eps=eps, steps=steps), x, y)


def apgd_t(path, *, batch_size, eps, steps, **_) -> Job:
    model, x, y = torch_victim.load(path, batch_size)
    return _job(torchattacks.APGDT(model, eps=eps, steps=steps, n_classes=10), x, y)


def square(path, *, batch_size, eps, queries, reschedule, **_) -> Job:
    model, x, y = torch_victim.load(path, batch_size)
    attack = torchattacks.Square(model, eps=eps, n_queries=queries, resc_schedule=reschedule)
    return _job(attack, x, y)


def autoattack(path, *, batch_size, eps, steps, queries, **_) -> Job:
    """The published recipe. (Its class of this name takes 10 steps and rescales Square.)"""
    model, x, y = torch_victim.load(path, batch_size)
    members = [
        torchattacks.APGD(model, eps=eps, steps=steps),
        torchattacks.APGDT(model, eps=eps, steps=steps, n_classes=10),
        torchattacks.FAB(model, eps=eps, steps=steps, multi_targeted=True, n_classes=10),
        torchattacks.Square(model, eps=eps, n_queries=queries, resc_schedule=False),
    ]
    return _job(torchattacks.MultiAttack(members), x, y)
