"""torchattacks: PGD. Its CW has no search for the constant, so there is nothing to compare."""

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
