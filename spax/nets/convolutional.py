"""Feed-forward classifiers without batch statistics, so that examples never meet."""

import flax.linen as nn

from spax.typing import Array

__all__ = ["CNN", "MLP"]


class MLP(nn.Module):
    """A multi-layer perceptron: dense layers with ReLU between them.

    Maps ``[B, ...]`` to logits ``[B, num_classes]``; inputs are flattened.

    Args:
      hidden: widths of the hidden layers; empty: a linear model.
      num_classes: number of logits.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = MLP(hidden=(16,), num_classes=3)
      >>> params = net.init(jax.random.key(0), jnp.zeros((1, 4)))
      >>> net.apply(params, jnp.ones((2, 4))).shape
      (2, 3)
    """

    hidden: tuple[int, ...] = (128, 128)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the logits ``[B, num_classes]`` of ``x [B, ...]``."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, dtype=x.dtype)(x))
        return nn.Dense(self.num_classes, dtype=x.dtype)(x)


class CNN(nn.Module):
    """A small convolutional classifier: strided 3x3 convolutions, one hidden dense layer.

    Maps images ``[B, H, W, C]`` to logits ``[B, num_classes]``. Strides take the place of pooling
    (Springenberg et al.); no normalisation, so it can be trained with differential privacy, and
    no example depends on its batch.

    Args:
      features: channels of the convolutions, each of which halves height and width.
      hidden: width of the dense layer; 0: none.
      num_classes: number of logits.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = CNN(features=(8, 16), hidden=32)
      >>> params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> net.apply(params, jnp.ones((2, 8, 8, 1))).shape
      (2, 10)

    References:
      J. T. Springenberg et al., Striving for simplicity: the all convolutional net, 2014,
      arXiv:1412.6806.
    """

    features: tuple[int, ...] = (32, 64)
    hidden: int = 64
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the logits ``[B, num_classes]`` of ``x [B, H, W, C]``."""
        for channels in self.features:
            x = nn.relu(nn.Conv(channels, (3, 3), strides=2, dtype=x.dtype)(x))
        x = x.reshape(x.shape[0], -1)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, dtype=x.dtype)(x))
        return nn.Dense(self.num_classes, dtype=x.dtype)(x)
