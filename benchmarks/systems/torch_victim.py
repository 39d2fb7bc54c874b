"""The victim's weights in a PyTorch module, which every PyTorch peer attacks."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn


class Victim(NamedTuple):
    model: nn.Module
    x: torch.Tensor  # [B, C, H, W]
    y: torch.Tensor  # int64 [B]


def _tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def load(path, batch_size):
    """The module, checked against the logits that JAX found, and the images to attack."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    layers = {}
    for name in ("conv1", "conv2", "dense1", "dense2"):
        kernel = arrays[f"{name}/kernel"]
        if name.startswith("conv"):
            kernel = kernel.transpose(3, 2, 0, 1)  # HWIO -> OIHW
            layer = nn.Conv2d(kernel.shape[1], len(kernel), 3, stride=2, padding=1)
        else:
            if name == "dense1":
                # Its inputs are flattened in the order C, H, W here, and H, W, C in JAX.
                channels = arrays["conv2/bias"].size
                side = math.isqrt(len(kernel) // channels)
                kernel = kernel.reshape(side, side, channels, -1).transpose(2, 0, 1, 3)
                kernel = kernel.reshape(channels * side * side, -1)
            kernel = kernel.T
            layer = nn.Linear(kernel.shape[1], len(kernel))
        layers[name] = layer
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
    """[B, C, H, W] -> the NumPy array [B, H, W, C]."""
    return x.detach().numpy().transpose(0, 2, 3, 1)
