"""Networks that make images: an autoencoder, and the pair of a GAN."""

import flax.linen as nn
import jax.numpy as jnp

from spax.typing import Array

__all__ = ["Autoencoder", "Discriminator", "Generator"]


class _Upsampling(nn.Module):
    """Transposed convolutions from a vector to an image ``[B, *shape]``, before any squashing."""

    shape: tuple[int, int, int]
    features: tuple[int, ...]

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.shape
        factor = 2 ** len(self.features)
        rows, columns = -(-height // factor), -(-width // factor)
        x = nn.relu(nn.Dense(rows * columns * self.features[0], dtype=z.dtype)(z))
        x = x.reshape(z.shape[0], rows, columns, self.features[0])
        for channel in self.features[1:]:
            x = nn.relu(nn.ConvTranspose(channel, (4, 4), strides=(2, 2), dtype=z.dtype)(x))
        x = nn.ConvTranspose(channels, (4, 4), strides=(2, 2), dtype=z.dtype)(x)
        return x[:, :height, :width]  # sizes that the strides do not divide are cut


class Autoencoder(nn.Module):
    """A convolutional autoencoder for images in [0, 1].

    Maps images ``[B, H, W, C]`` to their reconstructions, of the same shape, through a code
    ``[B, code]``.

    Args:
      code: width of the code.
      features: channels of the strided convolutions of the encoder, mirrored by the decoder.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = Autoencoder(code=4, features=(8, 16))
      >>> x = jnp.ones((2, 7, 7, 1))
      >>> params = net.init(jax.random.key(0), x)
      >>> net.apply(params, x).shape, net.apply(params, x, method="encode").shape
      ((2, 7, 7, 1), (2, 4))

    References:
      G. E. Hinton, R. R. Salakhutdinov, Reducing the dimensionality of data with neural networks,
      2006.
    """

    code: int = 32
    features: tuple[int, ...] = (16, 32)

    @nn.compact
    def encode(self, x: Array) -> Array:
        """Returns the code ``[B, code]`` of ``x [B, H, W, C]``."""
        for channels in self.features:
            x = nn.relu(nn.Conv(channels, (3, 3), strides=2, dtype=x.dtype)(x))
        return nn.Dense(self.code, dtype=x.dtype)(x.reshape(x.shape[0], -1))

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the reconstruction of ``x [B, H, W, C]``, in (0, 1)."""
        z = self.encode(x)
        height, width, channels = x.shape[1:]
        decode = _Upsampling((height, width, channels), self.features[::-1])
        return nn.sigmoid(decode(z))


class Generator(nn.Module):
    """The generator of a GAN: maps latent vectors ``[B, Z]`` to images ``[B, *shape]`` in (0, 1).

    Deviations from the paper: no batch normalisation, so that no example depends on its batch, and
    a sigmoid in place of tanh, for images in [0, 1].

    Args:
      shape: ``(height, width, channels)`` of an image.
      features: channels between the transposed convolutions, from the smallest image up.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = Generator(shape=(8, 8, 1), features=(16, 8))
      >>> z = jnp.ones((2, 5))
      >>> net.apply(net.init(jax.random.key(0), z), z).shape
      (2, 8, 8, 1)

    References:
      A. Radford, L. Metz, S. Chintala, Unsupervised representation learning with deep
      convolutional generative adversarial networks, 2015, arXiv:1511.06434.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    features: tuple[int, ...] = (64, 32)

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Returns images ``[B, *shape]`` for ``z [B, Z]``."""
        return nn.sigmoid(_Upsampling(self.shape, self.features)(z))


class Discriminator(nn.Module):
    """The discriminator (or critic) of a GAN: maps images ``[B, H, W, C]`` to one logit each.

    Args:
      features: channels of the strided convolutions.
      slope: slope of the leaky ReLU below zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = Discriminator(features=(8, 16))
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> net.apply(net.init(jax.random.key(0), x), x).shape
      (2,)

    References:
      A. Radford, L. Metz, S. Chintala, 2015, arXiv:1511.06434.
    """

    features: tuple[int, ...] = (32, 64)
    slope: float = 0.2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``[B]``, high for real images ``x [B, H, W, C]``."""
        for channels in self.features:
            x = nn.Conv(channels, (4, 4), strides=2, dtype=x.dtype)(x)
            x = nn.leaky_relu(x, jnp.asarray(self.slope, x.dtype))
        return nn.Dense(1, dtype=x.dtype)(x.reshape(x.shape[0], -1))[:, 0]
