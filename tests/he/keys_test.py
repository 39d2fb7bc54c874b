import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import crypto, he
from spax.crypto.modular import ntt_primes
from spax.crypto.ntt import intt
from spax.he.parameters import GUIDELINES_2024, HES_2018

SPEC = he.ckks.ring(64, bits=(30, 26), insecure=True)


@pytest.fixture(scope="module")
def keys():
    return he.keygen(key=crypto.fresh_key(), spec=SPEC)


def test_parameters_below_128_bits_are_refused():
    for n, limit in HES_2018.items():
        if n > 16384:
            continue
        fits = ntt_primes(n, 27, limit // 27)
        assert he.RingSpec(n, fits).bits <= limit
        with pytest.raises(he.InsecureParameters, match="insecure=True"):
            he.RingSpec(n, ntt_primes(n, 27, limit // 27 + 1))
    with pytest.raises(he.InsecureParameters):
        he.RingSpec(64, ntt_primes(64, 20, 1))
    q = ntt_primes(8192, 27, 8)  # 216 bits
    assert GUIDELINES_2024[8192] < 216 <= HES_2018[8192]
    with pytest.raises(he.InsecureParameters):
        he.RingSpec(8192, q, security="guidelines_2024")
    # The special prime counts.
    with pytest.raises(he.InsecureParameters):
        he.RingSpec(8192, q, special=ntt_primes(8192, 28, 1)[0])


def test_parameters_that_make_no_ring_are_refused():
    q = ntt_primes(64, 26, 2)
    for wrong in (
        {"n": 48, "q": q},
        {"n": 64, "q": (97,)},
        {"n": 64, "q": q, "t": q[:1]},
        {"n": 64, "q": q, "special": ntt_primes(64, 20, 1)[0]},
        {"n": 64, "q": q, "security": "none"},
    ):
        with pytest.raises(ValueError, match="got"):
            he.RingSpec(**wrong, insecure=True)


def test_what_is_insecure_says_so(keys):
    m = he.ckks.encode(np.ones(3), SPEC, scale=2.0**20)
    assert not he.encrypt(keys.public, m, key=crypto.fresh_key()).secure


def test_only_secure_keys_make_keys(keys):
    m = he.ckks.encode(np.ones(3), SPEC, scale=2.0**20)
    for wrong in (jax.random.key(0), 3, jnp.zeros(8, jnp.uint32)):
        with pytest.raises(TypeError, match="ChaChaKey"):
            he.keygen(key=wrong, spec=SPEC)
        with pytest.raises(TypeError, match="ChaChaKey"):
            he.encrypt(keys.public, m, key=wrong)


def test_a_secret_is_never_shown_or_copied(keys):
    shown = repr(keys.secret) + str(keys)
    assert "<secret>" in shown
    assert str(int(keys.secret.s[0, 0])) not in repr(keys.secret)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled"):
            leak(keys.secret)


def test_the_secret_is_ternary_and_the_public_key_hides_it(keys):
    q = SPEC.all_primes
    s = np.asarray(intt(keys.secret.s, q)).astype(np.int64)
    s = np.where(s > np.array(q)[:, None] // 2, s - np.array(q)[:, None], s)
    assert (s == s[0]).all()
    assert set(np.unique(s)) <= {-1, 0, 1}
    b = np.asarray(intt(keys.public.b, SPEC.q)).astype(np.int64)
    assert abs(b.mean(axis=-1) / np.array(SPEC.q) - 0.5).max() < 0.25


def test_two_keys_have_nothing_in_common():
    first, second = (he.keygen(key=crypto.fresh_key(), spec=SPEC) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert float(jnp.mean(a == b)) < 0.1


def test_rotations_need_a_special_prime():
    spec = he.ckks.ring(64, bits=(30,), special=None, insecure=True)
    with pytest.raises(ValueError, match="special prime"):
        he.keygen(key=crypto.fresh_key(), spec=spec, rotations=(1,))


def test_only_plaintexts_are_encrypted_and_only_by_their_parameters(keys):
    other = he.ckks.ring(64, bits=(30, 20), insecure=True)
    m, foreign = (he.ckks.encode(np.ones(3), s, scale=2.0**20) for s in (SPEC, other))
    with pytest.raises(TypeError, match="Plaintext"):
        he.encrypt(keys.public, jnp.ones(3), key=crypto.fresh_key())
    with pytest.raises(he.SpecMismatch):
        he.encrypt_symmetric(keys.secret, foreign, key=crypto.fresh_key())
    with pytest.raises(TypeError, match="SecretKey"):
        he.encrypt_symmetric(keys.public, m, key=crypto.fresh_key())
