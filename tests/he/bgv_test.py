import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import crypto, he
from spax.crypto.modular import log2_product
from tests.he.common import fresh

SPEC = he.bgv.ring(64, limbs=4, channels=2, plain_bits=17, special=True, insecure=True)
N = SPEC.n


@pytest.fixture(scope="module")
def keys():
    return he.keygen(key=fresh(), spec=SPEC, components=4, rotations=(3,), conjugation=True)


@pytest.fixture(scope="module")
def numbers():
    return np.random.default_rng(0).integers(-50, 50, (2, 3, N))


@pytest.fixture(scope="module")
def pair(keys, numbers):
    v, w = numbers
    x = he.encrypt_symmetric(keys.secret, he.bgv.encode(v, SPEC), key=fresh(1))
    return x, he.encrypt(keys.public, he.bgv.encode(w, SPEC), key=fresh(2))


@pytest.fixture(scope="module")
def results(keys, pair, numbers):
    """What each operation gave, and should have given."""
    (x, y), (v, w), evk = pair, numbers, keys.evaluation
    m = he.bgv.encode(w, SPEC)
    product = he.mul(x, y)
    short = he.relinearise(product, evk)
    turned = np.roll(v.reshape(3, 2, -1), -3, axis=2).reshape(3, N)
    return {
        "fresh": (x, v),
        "public": (y, w),
        "add": (he.add(x, y), v + w),
        "sub": (he.sub(x, y), v - w),
        "neg": (he.neg(x), -v),
        "add_plain": (he.add_plain(x, m), v + w),
        "mul_plain": (he.mul_plain(x, m), v * w),
        "mul_scalar": (he.mul_scalar(x, -7), -7 * v),
        "mul": (product, v * w),
        "square": (he.square(x), v * v),
        "long": (he.relinearise(he.mul(product, x), evk), v * v * w),
        "relinearise": (short, v * w),
        "mixed": (he.add(product, x), v * w + v),
        "drop": (he.drop(short), v * w),
        "deep": (he.drop(he.relinearise(he.square(he.drop(short)), evk)), (v * w) ** 2),
        "truncate": (he.truncate(x, 2), v),
        "rotate": (he.rotate(x, 3, evk), turned),
        "exchange": (he.conjugate(x, evk), v.reshape(3, 2, -1)[:, ::-1].reshape(3, N)),
        "indexed": (x[1], v[1]),
        "broadcast": (he.add(x, y[0]), v + w[0]),
    }


def test_arithmetic_is_that_of_integers(keys, results):
    for name, (ct, expected) in results.items():
        np.testing.assert_array_equal(
            he.bgv.decrypt_or_raise(keys.secret, ct), expected, err_msg=name
        )


def test_the_bound_of_the_error_is_never_below_it(keys, results):
    for name, (ct, _) in results.items():
        budget = float(he.bgv.decrypt(keys.secret, ct).budget_bits.min())
        measured = log2_product(ct.q) - 2 - budget
        assert measured <= ct.noise_log2 <= measured + 15, name


def test_jit_and_vmap_give_the_same_bits(keys, pair):
    x, y = pair
    evk = keys.evaluation

    def run(x, y, evk):
        return he.drop(he.relinearise(he.mul(x, y), evk)).c

    eager = run(x, y, evk)
    np.testing.assert_array_equal(jax.jit(run)(x, y, evk), eager)
    np.testing.assert_array_equal(jax.vmap(run, (0, 0, None))(x, y, evk), eager)


def test_the_same_message_twice_differs_everywhere(keys):
    m = he.bgv.encode(jnp.zeros(N, jnp.int32), SPEC)
    first, second = (he.encrypt(keys.public, m, key=fresh(k)).c for k in (3, 4))
    assert float(jnp.mean(first == second)) < 0.02
    again = he.encrypt(keys.public, m, key=fresh(3)).c
    np.testing.assert_array_equal(first, again)


def test_a_seed_stands_for_the_uniform_half(keys, numbers):
    m = he.bgv.encode(numbers[0], SPEC)
    sent = he.encrypt_seeded(keys.secret, m, key=fresh(1))
    whole = he.encrypt_symmetric(keys.secret, m, key=fresh(1))
    np.testing.assert_array_equal(he.expand(sent).c, whole.c)
    assert sent.c0.size * 2 == whole.c.size


def test_a_wrong_key_opens_nothing(pair):
    x, _ = pair
    for k in range(20):
        other = he.keygen(
            key=fresh(10 + k), spec=SPEC, components=4, rotations=(3,), conjugation=True
        ).secret
        # Even one that claims the right name.
        for secret in (other, dataclasses.replace(other, key_id=x.key_id[0])):
            found = he.bgv.decrypt(secret, x)
            assert not found.ok.any()
            assert (found.value == np.iinfo(np.int32).min).all()
        with pytest.raises(he.WrongKey):
            he.bgv.decrypt_or_raise(other, x)


def test_altered_ciphertexts_open_to_nothing(keys, pair):
    x, _ = pair
    rng = np.random.default_rng(1)
    c = np.broadcast_to(np.asarray(x.c[0]), (1000, *x.c.shape[1:])).copy()
    where = [rng.integers(0, size, 1000) for size in c.shape[1:]]
    c[(np.arange(1000), *where)] ^= np.uint32(1) << rng.integers(0, 29, 1000).astype(np.uint32)
    c %= np.array(x.q, np.uint32)[:, None]
    altered = dataclasses.replace(
        x, c=jnp.asarray(c), key_id=jnp.broadcast_to(x.key_id[0], (1000, 4))
    )
    assert not he.bgv.decrypt(keys.secret, altered).ok.any()


def test_exhausted_noise_is_seen(keys, pair):
    ct = he.truncate(pair[1], 2)
    for _ in range(2):
        ct = he.square(ct)
    found = he.bgv.decrypt(keys.secret, ct)
    assert not found.ok.any()
    assert (found.budget_bits <= 1).all()
    with pytest.raises(he.NoiseExhausted):
        he.bgv.decrypt_or_raise(keys.secret, ct)


def test_what_does_not_fit_is_refused(keys, pair):
    x, y = pair
    evk = keys.evaluation
    other = he.bgv.ring(64, limbs=3, channels=2, plain_bits=17, special=True, insecure=True)
    with pytest.raises(he.LevelMismatch):
        he.add(he.truncate(x, 2), y)
    with pytest.raises(he.LevelMismatch):
        he.truncate(x, 5)
    with pytest.raises(he.ScaleMismatch):
        he.add(he.drop(x), he.truncate(y, 3))
    with pytest.raises(he.SpecMismatch):
        he.bgv.decrypt(dataclasses.replace(keys.secret, spec=other), x)
    with pytest.raises(he.SpecMismatch):
        he.add_plain(x, he.bgv.encode(jnp.arange(4), other))
    with pytest.raises(he.NoLevelsLeft):
        he.drop(he.truncate(x, 1))
    with pytest.raises(he.MissingRotation, match="rotation by 2"):
        he.rotate(x, 2, evk)
    with pytest.raises(ValueError, match="up to 4 components"):
        he.relinearise(he.square(he.square(x)), evk)
    with pytest.raises(ValueError, match="2 components is wanted"):
        he.rotate(he.mul(x, y), 3, evk)
    with pytest.raises(he.WrongKey):
        he.add(x, dataclasses.replace(y, key_id=y.key_id + jnp.uint32(1)))
    with pytest.raises(ValueError, match="a ciphertext of these parameters"):
        he.add(x, dataclasses.replace(y, c=y.c[..., :-1]))
    with pytest.raises(TypeError, match="Ciphertext"):
        he.add(x, 3)
    with pytest.raises(TypeError, match="Python integer"):
        he.mul_scalar(x, 0.5)


def test_keys_that_differ_unseen_give_what_no_key_opens(keys, pair):
    x, y = pair
    forged = dataclasses.replace(y, key_id=y.key_id + jnp.uint32(1))
    assert not he.bgv.decrypt(keys.secret, jax.jit(he.add)(x, forged)).ok.any()


def test_numbers_that_are_no_slots_are_refused():
    with pytest.raises(ValueError, match="integer type"):
        he.bgv.encode(jnp.ones(3), SPEC)
    with pytest.raises(ValueError, match="64 slots"):
        he.bgv.encode(jnp.arange(65), SPEC)
    one = he.bgv.ring(64, limbs=2, channels=1, plain_bits=17, insecure=True)
    with pytest.raises(he.PlaintextOverflow):
        he.bgv.encode(jnp.array([70_000]), one)
    with pytest.raises(he.SpecMismatch):
        he.bgv.encode(jnp.arange(3), he.ckks.ring(64, bits=(30,), special=None, insecure=True))


def test_wide_integers_are_not_narrowed(keys):
    for wide in (
        np.array([3_000_000_000, -5_000_000_000]),
        np.array([4_000_000_000], np.uint32),
        np.array([8_000_000_000], np.uint64),
    ):
        ct = he.encrypt_symmetric(keys.secret, he.bgv.encode(wide, SPEC), key=fresh(5))
        got = he.bgv.decrypt_or_raise(keys.secret, ct)[: wide.size]
        np.testing.assert_array_equal(got, wide)
    word = jnp.array([4_000_000_000], jnp.uint32)
    np.testing.assert_array_equal(
        jax.jit(he.bgv.encode, static_argnums=1)(word, SPEC).p, he.bgv.encode(word, SPEC).p
    )


def test_levels_that_do_not_exist_are_refused():
    with pytest.raises(he.LevelMismatch, match="level=5"):
        he.bgv.encode(jnp.arange(4), SPEC, level=5)


def test_channels_join_to_integers_modulo_their_product():
    t = (97, 101, 103)
    values = [0, 1, -1, 504_545, -504_545, 12_345]
    residues = np.array([[(v + p // 2) % p - p // 2 for v in values] for p in t], np.int32)
    np.testing.assert_array_equal(he.bgv.join(residues, t), values)
    with pytest.raises(ValueError, match="failed decryption"):
        he.bgv.join(np.full((3, 2), np.iinfo(np.int32).min, np.int32), t)


@pytest.mark.slow
def test_a_million_slots_at_full_security():
    spec = he.bgv.ring(8192, limbs=5, channels=1, special=True)
    secret, public, evk = he.keygen(key=crypto.fresh_key(), spec=spec, rotations=(1,))
    rng = np.random.default_rng(2)
    v, w = rng.integers(-400_000, 400_000, (2, 61, 8192))
    (t,) = spec.t
    x = he.encrypt_symmetric(secret, he.bgv.encode(v, spec), key=crypto.fresh_key())
    y = he.encrypt(public, he.bgv.encode(w, spec), key=crypto.fresh_key())
    product = he.relinearise(he.mul(x, y), evk)
    total = he.rotate(he.add(product, x), 1, evk)
    expected = np.roll((v * w + v).reshape(61, 2, -1), -1, axis=2).reshape(61, 8192)
    got = he.bgv.decrypt_or_raise(secret, total)
    np.testing.assert_array_equal((got - expected) % t, 0)
