"""PixelCNN: the exact likelihood of an image, one pixel after another."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from spax.typing import Array

__all__ = ["PixelCNN"]


def _causal_mask(size: int, channels_in: int, channels_out: int, groups: int, kind: str) -> Array:
    """Which weights of a ``[size, size, channels_in, channels_out]`` kernel may be non-zero.

    Pixels above, and to the left in the same row, are seen. At the centre the channels form
    ``groups`` in order: a group sees those before it, and in a type B mask itself.
    """
    mask = np.zeros((size, size, channels_in, channels_out), np.float32)
    centre = size // 2
    mask[:centre] = 1
    mask[centre, :centre] = 1
    source = np.arange(channels_in) * groups // channels_in
    target = np.arange(channels_out) * groups // channels_out
    seen = source[:, None] < target[None, :] if kind == "A" else source[:, None] <= target[None, :]
    mask[centre, centre] = seen
    return jnp.asarray(mask)


class _MaskedConv(nn.Module):
    features: int
    size: int
    groups: int
    kind: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        mask = _causal_mask(self.size, x.shape[-1], self.features, self.groups, self.kind)
        conv = nn.Conv(self.features, (self.size, self.size), mask=mask, dtype=x.dtype)
        return conv(x)


class PixelCNN(nn.Module):
    """A PixelCNN: logits of each pixel given those above it and to its left.

    Maps images ``[B, H, W, C]`` in [0, 1] to logits ``[B, H, W, C, levels]`` of every sub-pixel's
    level, in raster order, channel by channel within a pixel: entry (h, w, c) depends on earlier
    entries alone. Masked convolutions, the first of type A (7x7) and then residual blocks of type B
    (3x3). Plain masks leave a blind spot to the upper right (closed by the gated version).

    Args:
      features: channels, at least one a colour channel.
      blocks: residual blocks.
      levels: grey levels of a sub-pixel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = PixelCNN(features=8, blocks=1, levels=4)
      >>> x = jnp.ones((2, 5, 5, 1))
      >>> net.apply(net.init(jax.random.key(0), x), x).shape
      (2, 5, 5, 1, 4)

    References:
      A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, Pixel recurrent neural networks, 2016,
      arXiv:1601.06759, Sections 3.3, 3.4 and Table 1.
    """

    features: int = 32
    blocks: int = 3
    levels: int = 256

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``[B, H, W, C, levels]`` of ``x [B, H, W, C]``."""
        channels = x.shape[-1]
        if self.features < channels:
            raise ValueError(
                f"features must be at least the number of channels, {channels} "
                f"(got features={self.features})"
            )

        def conv(features: int, size: int, kind: str = "B") -> _MaskedConv:
            return _MaskedConv(features, size, channels, kind)

        h = conv(2 * self.features, 7, "A")(x)
        for _ in range(self.blocks):
            r = conv(self.features, 1)(nn.relu(h))
            r = conv(self.features, 3)(nn.relu(r))
            h = h + conv(2 * self.features, 1)(nn.relu(r))
        h = conv(self.features, 1)(nn.relu(h))
        logits = conv(channels * self.levels, 1)(nn.relu(h))
        return logits.reshape(*x.shape, self.levels)
