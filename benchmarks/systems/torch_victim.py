"""The victim's weights in a PyTorch module, which every PyTorch peer attacks."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn


class Victim(NamedTuple):
    model: nn.Module
    x: torch.Tensor  # [B, 1, 28, 28]
    y: torch.Tensor  # int64 [B]


def _tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def load(path, batch_size):
    """The module, checked against the logits that JAX found, and the images to attack."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    layers = {
        "conv1": nn.Conv2d(1, 16, 3, stride=2, padding=1),
        "conv2": nn.Conv2d(16, 32, 3, stride=2, padding=1),
        "dense1": nn.Linear(7 * 7 * 32, 128),
        "dense2": nn.Linear(128, 10),
    }
    for name, layer in layers.items():
        kernel = arrays[f"{name}/kernel"]
        if name.startswith("conv"):
            kernel = kernel.transpose(3, 2, 0, 1)  # HWIO -> OIHW
        elif name == "dense1":
            # Its inputs are flattened in the order C, H, W here, and H, W, C in JAX.
            kernel = kernel.reshape(7, 7, 32, -1).transpose(3, 2, 0, 1).reshape(128, -1)
        else:
            kernel = kernel.T
        with torch.no_grad():
            layer.weight.copy_(_tensor(kernel))
            layer.bias.copy_(_tensor(arrays[f"{name}/bias"]))
    relu = nn.ReLU()
    model = nn.Sequential(
        layers["conv1"], relu, layers["conv2"], relu, nn.Flatten(), layers["dense1"], relu,
        layers["dense2"],
    )  # fmt: skip
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # nobody should pay for gradients that nobody uses

    x = _tensor(arrays["x"][:batch_size].transpose(0, 3, 1, 2))
    y = _tensor(arrays["y"][:batch_size].astype(np.int64))
    with torch.no_grad():
        apart = np.abs(model(x).numpy() - arrays["logits"][:batch_size]).max()
    if apart > 1e-4:
        raise AssertionError(f"the PyTorch logits differ from JAX's by {apart:.2g}")
    return Victim(model, x, y)


def to_numpy(x):
    """[B, 1, 28, 28] -> the NumPy array [B, 28, 28, 1]."""
    return x.detach().numpy().transpose(0, 2, 3, 1)
