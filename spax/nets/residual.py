"""A residual network, with batch statistics."""

import flax.linen as nn

from spax.typing import Array

__all__ = ["ResNet"]


class _Block(nn.Module):
    """Two 3x3 convolutions, normalised, beside a shortcut (1x1 where the shape changes)."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def norm() -> nn.BatchNorm:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=x.dtype)

        def conv(size: int, strides: int) -> nn.Conv:
            return nn.Conv(
                self.features, (size, size), strides=strides, use_bias=False, dtype=x.dtype
            )

        shortcut = x
        if self.strides != 1 or x.shape[-1] != self.features:
            shortcut = norm()(conv(1, self.strides)(x))
        out = nn.relu(norm()(conv(3, self.strides)(x)))
        return nn.relu(shortcut + norm()(conv(3, 1)(out)))


class ResNet(nn.Module):
    """A residual network for small images, with batch normalisation.

    Maps images ``[B, H, W, C]`` to logits ``[B, num_classes]``. Its variables are ``params`` and
    ``batch_stats``; in training mode examples meet in the batch statistics, so it cannot be
    trained with per-example gradients.

    Args:
      features: channels of each stage; every stage but the first halves height and width.
      blocks: residual blocks a stage. ``features=(16, 32, 64), blocks=n`` is the paper's ResNet of
        ``6 n + 2`` layers for CIFAR-10, with 1x1 shortcuts between stages.
      num_classes: number of logits.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = ResNet(features=(4, 8))
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> variables = net.init(jax.random.key(0), x)
      >>> logits, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> logits.shape, list(new)
      ((2, 10), ['batch_stats'])

    References:
      K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, 2015,
      arXiv:1512.03385, Section 4.2.
    """

    features: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns the logits ``[B, num_classes]`` of ``x [B, H, W, C]``."""
        x = nn.Conv(self.features[0], (3, 3), use_bias=False, dtype=x.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=x.dtype)(x)
        x = nn.relu(x)
        for stage, channels in enumerate(self.features):
            for block in range(self.blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                x = _Block(channels, strides)(x, train)
        return nn.Dense(self.num_classes, dtype=x.dtype)(x.mean(axis=(1, 2)))
