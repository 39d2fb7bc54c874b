"""Flax networks for audits, tests and benchmarks; the only room that imports Flax.

Nothing in the package requires them: every function takes models as plain functions,
``logits_fn = lambda x: net.apply(params, x)``.
"""

from spax.nets.convolutional import CNN, MLP
from spax.nets.generative import Autoencoder, Discriminator, Generator
from spax.nets.pixelcnn import PixelCNN
from spax.nets.recurrent import LSTM
from spax.nets.residual import ResNet

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "Autoencoder",
    "Discriminator",
    "Generator",
    "PixelCNN",
    "ResNet",
]
