"""Foolbox on PyTorch."""

from functools import partial

import foolbox

from benchmarks.systems import Job, foolbox_attacks, torch_victim

PACKAGES = ("foolbox", "eagerpy", "torch", "numpy")


def _on_torch(attack, path, *, batch_size, **settings) -> Job:
    model, x, y = torch_victim.load(path, batch_size)
    model = foolbox.PyTorchModel(model, bounds=(0, 1))
    return attack(model, x, y, lambda out: out, torch_victim.to_numpy, **settings)


pgd_linf = partial(_on_torch, foolbox_attacks.pgd_linf)
eps_sweep = partial(_on_torch, foolbox_attacks.eps_sweep)
carlini_wagner_l2 = partial(_on_torch, foolbox_attacks.carlini_wagner_l2)
deepfool_l2 = partial(_on_torch, foolbox_attacks.deepfool_l2)
elastic_net = partial(_on_torch, foolbox_attacks.elastic_net)
hop_skip_jump_l2 = partial(_on_torch, foolbox_attacks.hop_skip_jump_l2)
boundary_l2 = partial(_on_torch, foolbox_attacks.boundary_l2)
