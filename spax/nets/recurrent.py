"""A recurrent network: one label a sequence, or one row of symbols a frame."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from spax.typing import Array

__all__ = ["LSTM"]


class LSTM(nn.Module):
    """A stack of LSTM layers over sequences.

    Maps ``[B, F, D]`` to logits of the whole sequence, ``[B, num_classes]``, or of each frame,
    ``[B, F, num_classes]``: what `spax.losses.ctc` takes, with the blank at index 0.

    Args:
      hidden: widths of the layers.
      num_classes: number of logits.
      per_frame: whether each frame gets logits.
      bidirectional: whether each layer reads both ways, its outputs side by side.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = LSTM(hidden=(8,), num_classes=3, per_frame=True)
      >>> x = jnp.ones((2, 5, 4))
      >>> net.apply(net.init(jax.random.key(0), x), x).shape
      (2, 5, 3)

    References:
      S. Hochreiter, J. Schmidhuber, Long short-term memory, 1997. A. Graves et al., Connectionist
      temporal classification, 2006.
    """

    hidden: tuple[int, ...] = (64,)
    num_classes: int = 10
    per_frame: bool = False
    bidirectional: bool = False

    @nn.compact
    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        """Returns logits of ``x [B, F, D]``.

        Args:
          x: sequences ``[B, F, D]``.
          lengths: int ``[B]``, 1 <= lengths <= F: the number of frames of each sequence; what
            follows them is not read, and frames there have no meaning. None: F.
        """
        for width in self.hidden:
            layer: Any = nn.RNN(nn.OptimizedLSTMCell(width, dtype=x.dtype))
            if self.bidirectional:
                back = nn.RNN(nn.OptimizedLSTMCell(width, dtype=x.dtype))
                layer = nn.Bidirectional(layer, back)
            x = layer(x, seq_lengths=lengths)
        if not self.per_frame:
            x = _summary(x, lengths)
        return nn.Dense(self.num_classes, dtype=x.dtype)(x)


def _summary(x: Array, lengths: Array | None) -> Array:
    """Mean over the frames that count: unlike the last frame, it fits both directions."""
    if lengths is None:
        return x.mean(axis=1)
    counts = (jnp.arange(x.shape[1])[None, :] < lengths[:, None]).astype(x.dtype)[..., None]
    return (x * counts).sum(axis=1) / counts.sum(axis=1)
