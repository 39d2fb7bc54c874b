"""Recordings of spoken digits that are transcribed as other digits."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import spoken_digits
from spax import evasion
from spax.losses import decodes_to

CLIPS = 30


def measure():
    """Success in per cent, and the mean distortion in decibels, for one wanted digit and for two.

    A success is judged on the samples as a 16-bit file holds them.
    """
    data = spoken_digits.load(os.environ["SPAX_DATA"])
    params, right = victim(data)
    x, one, two = tasks(data, right)
    return {
        "accuracy": round(100 * float(right.mean()), 1),
        "clips": CLIPS,
        "ctc": attacked(params, x, one, steps=500),
        "aligned": attacked(params, x, one, steps=250, align_steps=250),
        "two_digits": attacked(params, x, two, steps=500),
    }


def victim(data):
    """The network, and for which test recordings its whole transcript is right."""
    x, y, x_test, y_test = data
    params = spoken_digits.train(x, y, key=jax.random.key(0))
    logits = jax.jit(spoken_digits.apply_fn)(params, x_test)
    return params, np.asarray(decodes_to(logits, spoken_digits.transcripts(y_test)))


def tasks(data, right, clips=CLIPS):
    """Test recordings that are understood, for each another digit, and for each two digits."""
    _, _, x, y = data
    rows = np.flatnonzero(right)
    rows = rows[np.arange(clips) * len(rows) // clips]
    rng = np.random.default_rng(0)
    one = (y[rows] + rng.integers(1, 10, clips)) % 10
    return jnp.asarray(x[rows]), one, np.stack([one, rng.integers(0, 10, clips)], axis=1)


def attacked(params, x, wanted, **settings):
    """Success and mean distortion of the successful; ``wanted`` are digits."""
    y = spoken_digits.transcripts(wanted)

    @jax.jit
    def run(params, x, y):
        f = functools.partial(spoken_digits.apply_fn, params)
        return evasion.audio_cw(f, x, y, **settings)

    x_adv = run(params, x, y)
    kept = np.clip(np.round(np.asarray(x_adv) * 32768), -32768, 32767).astype(np.int16)
    kept = jnp.asarray(kept, jnp.float32) / 32768
    success = np.asarray(decodes_to(spoken_digits.apply_fn(params, kept), y))
    level = np.asarray(evasion.distortion_db(x, kept - x))[success]
    return {
        "success": round(100 * float(success.mean()), 1),
        "mean_db": round(float(level.mean()), 1),
    }
