"""The Adversarial Robustness Toolbox on PyTorch: PGD, JSMA; NumPy arrays in and out."""

import numpy as np
from art.attacks.evasion import ProjectedGradientDescentPyTorch, SaliencyMapMethod
from art.estimators.classification import PyTorchClassifier
from torch import nn

from benchmarks import victim
from benchmarks.systems import Job, torch_victim

PACKAGES = ("adversarial-robustness-toolbox", "torch", "numpy")


def _classifier(model):
    return PyTorchClassifier(
        model,
        # Summed, as every other system here sums; a sign step does not see the difference.
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
    )


def _attacks(path, batch_size, eps, step_sizes, steps):
    model, x, y = torch_victim.load(path, batch_size)
    classifier = _classifier(model)
    attacks = [
        ProjectedGradientDescentPyTorch(
            classifier,
            norm=np.inf,
            eps=e,
            eps_step=step_size,
            max_iter=steps,
            num_random_init=1,
            batch_size=batch_size,
            verbose=False,
        )
        for e, step_size in zip(eps, step_sizes, strict=True)
    ]
    return attacks, x.numpy(), y.numpy()


def pgd_linf(path, *, batch_size, eps, step_size, steps, **_) -> Job:
    (attack,), x, y = _attacks(path, batch_size, [eps], [step_size], steps)
    return Job(lambda _: attack.generate(x, y), lambda out: {"x_adv": out.transpose(0, 2, 3, 1)})


def eps_sweep(path, *, batch_size, eps, share, steps, **_) -> Job:
    attacks, x, y = _attacks(path, batch_size, eps, [share * e for e in eps], steps)
    return Job(
        lambda _: [attack.generate(x, y) for attack in attacks],
        lambda out: {"x_adv": [one.transpose(0, 2, 3, 1) for one in out]},
    )


def saliency_map(path, *, batch_size, theta, gamma, **_) -> Job:
    model, x, y = torch_victim.load(path, batch_size)
    attack = SaliencyMapMethod(
        _classifier(model), theta=theta, gamma=gamma, batch_size=batch_size, verbose=False
    )
    x, target = x.numpy(), victim.next_class(y.numpy())
    return Job(
        lambda _: attack.generate(x, target), lambda out: {"x_adv": out.transpose(0, 2, 3, 1)}
    )
