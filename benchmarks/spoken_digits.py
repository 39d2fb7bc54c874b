"""A small network that transcribes spoken digits, to be attacked: log-mel front end, CTC.

The recordings are those of the Free Spoken Digit Dataset, ``spoken_digits.npz`` in the folder that
SPAX_DATA names: 8 kHz, the first five of each speaker and digit held out.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spax.losses import ctc

SAMPLES, WINDOW, HOP = 4608, 256, 128
FRAMES = (SAMPLES - WINDOW) // HOP + 1
MELS, WIDTH, REACH = 32, 64, 5
SYMBOLS = 11  # the blank and ten digits


def load(folder):
    """(x_train, y_train, x_test, y_test): waves in [-1, 1) of at most SAMPLES, padded; digits."""
    with np.load(pathlib.Path(folder) / "spoken_digits.npz") as stored:
        samples, offsets = stored["samples"], stored["offsets"]
        label, test = stored["label"].astype(np.int32), stored["index"] < 5
    lengths = np.diff(offsets)
    waves = np.zeros((len(lengths), SAMPLES), np.float32)
    for row, start, length in zip(waves, offsets, lengths, strict=False):
        length = min(length, SAMPLES)
        row[:length] = samples[start : start + length] / 32768
    kept = lengths <= SAMPLES  # nine in ten; the others would be cut
    train, test = kept & ~test, kept & test
    return waves[train], label[train], waves[test], label[test]


def transcripts(digits):
    """Sequences of digits ``[n]`` or ``[n, N]``, as `spax.losses.ctc` takes them."""
    digits = np.asarray(digits, np.int32)
    digits = digits[:, None] if digits.ndim == 1 else digits
    count, length = digits.shape
    return (
        jnp.asarray(digits + 1),  # symbol 0 is the blank
        jnp.full(count, length, jnp.int32),
        jnp.full(count, FRAMES, jnp.int32),
    )


@functools.cache
def _bank():
    """The windowed Fourier transform as one matrix, and triangular mel filters."""
    time, frequency = np.arange(WINDOW), np.arange(WINDOW // 2 + 1)
    angle = 2 * np.pi * np.outer(time, frequency) / WINDOW
    window = np.hanning(WINDOW)[:, None]
    fourier = np.concatenate([window * np.cos(angle), window * np.sin(angle)], axis=1)
    top = 2595 * np.log10(1 + 4000 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    hertz = frequency * 8000 / WINDOW
    rise = (hertz[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - hertz[:, None]) / (corners[2:] - corners[1:-1])
    mel = np.maximum(np.minimum(rise, fall), 0)
    return fourier.astype(np.float32), mel.astype(np.float32)


def features(x):
    """Log-mel energies ``[B, FRAMES, MELS]`` of waves; the floor keeps silence differentiable."""
    fourier, mel = (jnp.asarray(m) for m in _bank())
    halves = x.reshape(x.shape[0], -1, HOP)
    frames = jnp.concatenate([halves[:, :-1], halves[:, 1:]], axis=2)
    cosines, sines = jnp.split(frames @ fourier, 2, axis=2)
    energy = (cosines**2 + sines**2) @ mel
    return (jnp.log(energy + 1e-3) + 2.0) / 4.0


def init(key):
    """Parameters: three convolutions over time, then the symbols."""
    sizes = ((REACH * MELS, WIDTH), (REACH * WIDTH, WIDTH), (REACH * WIDTH, WIDTH))
    sizes = (*sizes, (WIDTH, SYMBOLS))
    keys = jax.random.split(key, len(sizes))
    return [
        (jax.random.normal(k, size) * np.sqrt(2 / size[0]), jnp.zeros(size[1]))
        for k, size in zip(keys, sizes, strict=True)
    ]


def transcribe(params, h):
    """Symbols ``[B, FRAMES, V]`` from features."""
    for w, b in params[:-1]:
        h = jnp.pad(h, ((0, 0), (REACH // 2, REACH // 2), (0, 0)))
        h = jnp.concatenate([h[:, i : i + FRAMES] for i in range(REACH)], axis=2)
        h = jax.nn.relu(h @ w + b[None, None, :])
    w, b = params[-1]
    return h @ w + b[None, None, :]


def apply_fn(params, x):
    """The whole network: waves ``[B, SAMPLES]`` to symbols ``[B, FRAMES, V]``."""
    return transcribe(params, features(x))


def train(x, y, *, key, epochs=24, batch_size=64):
    """Parameters after some passes over waves and their digits."""
    h = jnp.concatenate([jax.jit(features)(x[i : i + 256]) for i in range(0, len(x), 256)])
    texts = transcripts(y)
    a_pass = len(x) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, epochs * a_pass))

    @jax.jit
    def run(params, h, texts, keys):
        def loss_fn(params, rows, key):
            # Masked bands and frames (SpecAugment): otherwise it learns the recordings by heart.
            key_band, key_frame = jax.random.split(key)
            kept = jax.random.bernoulli(key_band, 0.95, (batch_size, 1, MELS))
            kept &= jax.random.bernoulli(key_frame, 0.95, (batch_size, FRAMES, 1))
            text = jax.tree.map(lambda v: v[rows], texts)
            return ctc(transcribe(params, h[rows] * kept), text).mean()

        def step(carry, given):
            params, opt_state = carry
            updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, *given), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        def epoch(carry, key):
            key_order, key_steps = jax.random.split(key)
            order = jax.random.permutation(key_order, h.shape[0])[: a_pass * batch_size]
            given = order.reshape(a_pass, batch_size), jax.random.split(key_steps, a_pass)
            return jax.lax.scan(step, carry, given)

        (params, _), _ = jax.lax.scan(epoch, (params, optimizer.init(params)), keys)
        return params

    return run(init(jax.random.fold_in(key, 0)), h, texts, jax.random.split(key, epochs))
