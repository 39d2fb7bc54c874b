"""Exactness and precision of encrypted arithmetic, at full security."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.figures.common import median_seconds
from spax import crypto, he
from spax.crypto.ntt import ntt


def measure():
    return {"exact": exact(), "approximate": approximate(), "transform": transform()}


def exact(batch=123):
    """Slots that differ from integer arithmetic: ``x y + x``, relinearised and rotated."""
    spec = he.bgv.ring(8192, limbs=5, channels=1, special=True)
    secret, public, evk = he.keygen(key=crypto.fresh_key(), spec=spec, rotations=(1,))
    v, w = np.random.default_rng(0).integers(-400_000, 400_000, (2, batch, spec.n))
    x = he.encrypt_symmetric(secret, he.bgv.encode(v, spec), key=crypto.fresh_key())
    y = he.encrypt(public, he.bgv.encode(w, spec), key=crypto.fresh_key())

    @jax.jit
    def run(x, y, evk):
        return he.rotate(he.add(he.relinearise(he.mul(x, y), evk), x), 1, evk)

    got = he.bgv.decrypt_or_raise(secret, run(x, y, evk))
    rows = (v * w + v).reshape(batch, 2, -1)
    wrong = (got - np.roll(rows, -1, axis=2).reshape(batch, -1)) % spec.t[0] != 0
    return {"slots": f"{wrong.size:,}", "wrong": int(wrong.sum())}


def approximate(depth=5):
    """The largest error of a slot after so many squares, N = 8192, scale 2^26; in bits."""
    spec = he.ckks.ring(8192)
    secret, public, evk = he.keygen(key=crypto.fresh_key(), spec=spec)
    z = np.random.default_rng(1).uniform(-1, 1, spec.slots)
    m = he.ckks.encode(z, spec, scale=2.0**26)
    fresh = {
        "symmetric": he.encrypt_symmetric(secret, m, key=crypto.fresh_key()),
        "public": he.encrypt(public, m, key=crypto.fresh_key()),
    }

    @jax.jit
    def run(ct, evk):
        for _ in range(depth):
            ct = he.drop(he.relinearise(he.square(ct), evk))
        return ct

    found = {"depth": depth}
    for name, ct in fresh.items():
        out = run(ct, evk)
        error = np.abs(he.ckks.decrypt_or_raise(secret, out) - z ** (2**depth)).max()
        found[name] = round(float(np.log2(error)), 1)
        found[f"{name}_bound"] = round(float(out.noise_log2 - np.log2(out.scale)), 1)
    return found


def transform(batch=64):
    """Microseconds a polynomial and prime, batched, by the median."""
    q = he.bgv.ring(8192, limbs=7).q
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.integers(0, min(q), (batch, len(q), 8192)).astype(np.uint32))
    seconds = median_seconds(lambda: ntt(x, q))
    return {"microseconds": round(seconds / batch / len(q) * 1e6, 1)}
