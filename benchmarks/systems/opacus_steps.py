"""Opacus, by hooks and by ghost clipping."""

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn

from benchmarks.systems import Job

PACKAGES = ("opacus", "torch")
NETWORKS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    ),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 8, 2),
        nn.Tanh(),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    ),
}


def private_step(name, *, way, steps, batch_size=256, **_):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(batch_size, 1, 28, 28)), dtype=torch.float32)
    y = torch.tensor(rng.integers(0, 10, batch_size))
    net = NETWORKS[name]()
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    shared = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": batch_size}
    if way == "hooks":
        model, optimizer = GradSampleModule(net), DPOptimizer(sgd, **shared)
        loss_fn = nn.CrossEntropyLoss()
    else:
        model = GradSampleModuleFastGradientClipping(
            net, max_grad_norm=1.0, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(sgd, **shared)
        loss_fn = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss())

    def run(_):
        for _ in range(steps):
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
        return y

    return Job(run, lambda _: {})
