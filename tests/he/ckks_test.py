import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import he
from tests.he.common import fresh

SPEC = he.ckks.ring(128, bits=(30, 26, 26, 26), insecure=True)
SCALE = 2.0**26


@pytest.fixture(scope="module")
def keys():
    return he.keygen(key=fresh(), spec=SPEC, rotations=(5,), conjugation=True)


@pytest.fixture(scope="module")
def results(keys):
    z, y = np.random.default_rng(0).uniform(-1, 1, (2, 2, 64))
    evk = keys.evaluation
    a = he.encrypt_symmetric(keys.secret, he.ckks.encode(z, SPEC, scale=SCALE), key=fresh(1))
    b = he.encrypt(keys.public, he.ckks.encode(y, SPEC, scale=SCALE), key=fresh(2))
    m = he.ckks.encode(y, SPEC, scale=SCALE)
    product = he.mul(a, b)
    short = he.drop(he.relinearise(product, evk))
    return {
        "fresh": (a, z),
        "public": (b, y),
        "add": (he.add(a, b), z + y),
        "sub": (he.sub(a, b), z - y),
        "add_plain": (he.add_plain(a, m), z + y),
        "mul_plain": (he.mul_plain(a, m), z * y),
        "mul_scalar": (he.mul_scalar(a, 3), 3 * z),
        "mul": (product, z * y),
        "rescaled": (short, z * y),
        "deep": (he.drop(he.relinearise(he.square(short), evk)), (z * y) ** 2),
        "rotate": (he.rotate(a, 5, evk), np.roll(z, -5, axis=1)),
        "conjugate": (he.conjugate(a, evk), z),
    }


def test_arithmetic_is_that_of_numbers_within_the_bound(keys, results):
    for name, (ct, expected) in results.items():
        error = np.abs(he.ckks.decrypt_or_raise(keys.secret, ct) - expected).max()
        bound = 2**ct.noise_log2 / ct.scale
        assert error <= bound, name
        assert bound <= 2.0**12 * max(error, 2.0**-24), name
        assert np.log2(np.abs(expected).max() * ct.scale) <= ct.message_log2, name


def test_encoding_alone_is_the_canonical_embedding(keys):
    z = np.random.default_rng(1).uniform(-1, 1, 64)
    p = he.ckks.encode(z, SPEC, scale=SCALE, level=1)
    from spax.crypto.ntt import intt

    q = SPEC.q[:1]
    coefficients = np.asarray(intt(p.p, q))[0, 0].astype(np.int64)
    coefficients = np.where(coefficients > q[0] // 2, coefficients - q[0], coefficients)
    root = np.exp(1j * np.pi / 128)
    points = root ** np.array([pow(5, j, 256) for j in range(64)])
    values = np.polynomial.polynomial.polyval(points, coefficients / SCALE)
    np.testing.assert_allclose(values, z, atol=128 / SCALE)


def test_a_wrong_key_and_an_altered_ciphertext_open_to_nan(keys, results):
    ct, _ = results["fresh"]
    other = he.keygen(key=fresh(9), spec=SPEC, rotations=(5,), conjugation=True).secret
    forged = dataclasses.replace(other, key_id=keys.secret.key_id)
    altered = dataclasses.replace(ct, c=ct.c.at[:, 0, 0, 1, 3].add(1))
    for found in (
        he.ckks.decrypt(other, ct),
        he.ckks.decrypt(forged, ct),
        he.ckks.decrypt(keys.secret, altered),
    ):
        assert not found.ok.any()
        assert np.isnan(found.value).all()
    with pytest.raises(he.WrongKey):
        he.ckks.decrypt_or_raise(other, ct)
    with pytest.raises(he.NoiseExhausted):
        he.ckks.decrypt_or_raise(keys.secret, altered)


def test_what_does_not_fit_is_refused(results):
    ct, _ = results["fresh"]
    small = he.ckks.encode(np.ones(3), SPEC, scale=2.0**20)
    with pytest.raises(he.ScaleMismatch):
        he.add_plain(ct, small)
    with pytest.raises(he.ScaleMismatch):
        he.add(ct, he.mul_plain(ct, small))
    with pytest.raises(he.LevelMismatch):
        he.mul_plain(he.truncate(ct, 2), small)
    with pytest.raises(ValueError, match="finite"):
        he.ckks.encode(np.array([np.nan]), SPEC, scale=SCALE)
    with pytest.raises(ValueError, match="64"):
        he.ckks.encode(np.ones(65), SPEC, scale=SCALE)
    with pytest.raises(ValueError, match="positive"):
        he.ckks.encode(np.ones(3), SPEC, scale=0.0)
    with pytest.raises(he.PlaintextOverflow, match="2\\^52"):
        he.ckks.encode(np.ones(3), SPEC, scale=2.0**60)
    with pytest.raises(he.PlaintextOverflow, match="within bound"):
        he.ckks.encode(np.ones(3), SPEC, scale=SCALE, bound=0.5)
    with pytest.raises(he.SpecMismatch):
        he.bgv.encode(jnp.arange(3), SPEC)


def test_the_users_flag_for_64_bits_stays_as_it_was(results):
    assert not jax.config.jax_enable_x64
    assert all(ct.c.dtype == jnp.uint32 for ct, _ in results.values())
