"""ChaCha20 against RFC 8439; its draws against their distributions; its keys against misuse."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from spax import crypto
from spax.crypto import (
    ChaChaKey,
    bits,
    chacha20_block,
    fold_in,
    fresh_key,
    normal,
    split,
    uniform,
)

pytestmark = pytest.mark.usefixtures("strict")

N = 1 << 16


def key_of(seed):
    return ChaChaKey(np.arange(8, dtype=np.uint32) + np.uint32(8 * seed))


def words_of(text):
    return jnp.asarray(np.frombuffer(bytes.fromhex(text), "<u4").astype(np.uint32))


def rows(key):
    return {tuple(row) for row in np.asarray(key.words).reshape(-1, 8).tolist()}


# RFC 8439


ZERO, COUNTING = "00" * 32, bytes(range(32)).hex()


@pytest.mark.parametrize(
    ("key", "counter", "nonce", "stream"),
    [
        pytest.param(
            COUNTING,
            1,
            "000000090000004a00000000",
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
            "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
            id="2.3.2",
        ),
        pytest.param(
            ZERO,
            0,
            "00" * 12,
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
            "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
            id="A.1-1",
        ),
        pytest.param(
            ZERO,
            1,
            "00" * 12,
            "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
            "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
            id="A.1-2",
        ),
        pytest.param(
            "00" * 31 + "01",
            1,
            "00" * 12,
            "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
            "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
            id="A.1-3",
        ),
        pytest.param(
            "00ff" + "00" * 30,
            2,
            "00" * 12,
            "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
            "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
            id="A.1-4",
        ),
        pytest.param(
            ZERO,
            0,
            "00" * 11 + "02",
            "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
            "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
            id="A.1-5",
        ),
    ],
)
def test_block_function_on_the_vectors_of_the_rfc(key, counter, nonce, stream):
    block = chacha20_block(words_of(key), jnp.uint32(counter), words_of(nonce))
    assert np.asarray(block).astype("<u4").tobytes().hex() == stream


def test_encryption_on_the_vector_of_the_rfc():
    """Section 2.4.2: blocks 1 and 2 at once, the last one cut."""
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    cipher = (
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
        "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
        "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )
    nonce = words_of("000000000000004a00000000")
    blocks = chacha20_block(words_of(COUNTING), jnp.arange(1, 3, dtype=jnp.uint32), nonce)
    stream = np.asarray(blocks).astype("<u4").tobytes()
    assert bytes(a ^ b for a, b in zip(text, stream, strict=False)).hex() == cipher


def test_blocks_do_not_depend_on_the_shape_of_the_counters():
    key, nonce = key_of(0).words, jnp.zeros(3, jnp.uint32)
    counters = jnp.arange(6, dtype=jnp.uint32)
    flat = chacha20_block(key, counters, nonce)
    square = chacha20_block(key, counters.reshape(2, 3), nonce)
    np.testing.assert_array_equal(square.reshape(6, 16), flat)
    np.testing.assert_array_equal(chacha20_block(key, counters[5], nonce), flat[5])


def test_block_function_refuses_other_shapes_and_types():
    key, counter, nonce = jnp.zeros(8, jnp.uint32), jnp.uint32(0), jnp.zeros(3, jnp.uint32)
    for bad in [(key[:4], counter, nonce), (key, counter, nonce[:2]), (key, jnp.int32(0), nonce)]:
        with pytest.raises(ValueError, match="must be uint32"):
            chacha20_block(*bad)


# bits


def test_bits_are_the_documented_key_stream_in_every_type():
    key = key_of(1)
    nonce = words_of("00" * 8 + b"bits".hex())
    stream = np.asarray(chacha20_block(key.words, jnp.arange(2, dtype=jnp.uint32), nonce))
    whole = stream.astype("<u4").tobytes()
    for dtype in (np.uint8, np.uint16, np.uint32):
        count = 70 // np.dtype(dtype).itemsize
        drawn = np.asarray(bits(key, (count,), dtype))
        assert drawn.dtype == dtype
        assert drawn.tobytes() == whole[: drawn.nbytes]
    with jax.enable_x64(True):
        assert np.asarray(bits(key, (3, 5), jnp.uint64)).tobytes() == whole[:120]


def test_shapes_and_empty_draws():
    key = key_of(1)
    for draw, dtype in ((bits, jnp.uint32), (uniform, jnp.float32), (normal, jnp.float32)):
        for shape in ((), (2, 0, 3), [2, 3]):
            drawn = jax.eval_shape(lambda k, d=draw, s=shape: d(k, s), key)
            assert (drawn.shape, drawn.dtype) == (tuple(shape), dtype)
    assert bits(key, (0,)).tolist() == []


def test_bytes_are_uniform_and_uncorrelated():
    drawn = np.asarray(bits(key_of(2), (N,), jnp.uint8))
    assert 1e-4 < stats.chisquare(np.bincount(drawn, minlength=256)).pvalue < 1 - 1e-4
    pairs = np.bincount(drawn[0::2].astype(int) // 16 * 16 + drawn[1::2] // 16, minlength=256)
    assert 1e-4 < stats.chisquare(pairs).pvalue < 1 - 1e-4
    ones = np.unpackbits(drawn).sum()
    assert abs(ones - 4 * N) < 4 * np.sqrt(2 * N)  # 8N bits: standard deviation sqrt(8N) / 2


# uniform


def test_uniform_is_uniform():
    drawn = np.asarray(uniform(key_of(3), (N,)))
    assert drawn.dtype == np.float32
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    scaled = np.asarray(uniform(key_of(3), (N,), minval=-2, maxval=jnp.float32(4)))
    np.testing.assert_allclose(scaled, drawn * 6 - 2, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "precision"), [(jnp.float32, 24), (jnp.bfloat16, 8), (jnp.float16, 11)]
)
def test_uniform_is_on_the_grid_of_its_type_and_below_one(dtype, precision):
    drawn = uniform(key_of(4), (N,), dtype)
    assert drawn.dtype == dtype
    grid = np.asarray(drawn, np.float64) * 2**precision
    np.testing.assert_array_equal(grid, np.round(grid))
    assert grid.min() >= 0
    assert grid.max() <= 2**precision - 1
    if precision < 16:  # every number of the grid is reached, equally often
        counts = np.bincount(grid.astype(int), minlength=2**precision)
        assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_uniform_never_rounds_up_to_maxval(dtype):
    low, high = jnp.asarray(100.0, dtype), jnp.asarray(101.0, dtype)
    drawn = uniform(key_of(5), (N,), dtype, low, high)
    assert drawn.dtype == dtype
    assert bool(jnp.all((drawn >= low) & (drawn < high)))


def test_uniform_refuses_a_range_that_overflows():
    with pytest.raises(ValueError, match="finite"):
        uniform(key_of(0), (4,), minval=-3e38, maxval=3e38)


def test_uniform_takes_arrays_of_ends():
    low = jnp.array([[0.0], [10.0]])
    drawn = uniform(key_of(5), (2, N // 2), minval=low, maxval=low + 1)
    assert bool(jnp.all((drawn >= low) & (drawn < low + 1)))


# normal


def test_normal_is_normal():
    drawn = np.asarray(normal(key_of(6), (N,)), np.float64)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 / np.sqrt(N)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / N)
    assert abs(stats.kurtosis(drawn)) < 4 * np.sqrt(24 / N)
    # Independent of its neighbours, also in size.
    for a in (drawn, np.abs(drawn)):
        assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 4 / np.sqrt(N)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_normals_are_the_long_ones_rounded(dtype):
    drawn = normal(key_of(6), (N,), dtype)
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(drawn, normal(key_of(6), (N,)).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tails_of_normal_reach_as_far_as_documented(monkeypatch, dtype):
    """Chosen streams: the smallest and largest tails, of either sign, against exact quantiles."""
    high = [0, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF, 0x12345678, 0, 1, 0x00000100]
    low = [0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0x9ABCDEF0, 1, 0, 7]
    stream = jnp.asarray(np.array(high + low, np.uint32))
    monkeypatch.setattr("spax.crypto.chacha._stream", lambda key, purpose, count: stream)
    with jax.enable_x64(dtype is np.float64):
        drawn = np.asarray(normal(key_of(0), (8,), dtype))
    k = [((a & 0x7FFFFFFF) << 32) + b for a, b in zip(high, low, strict=True)]
    signs = [-1 if h >> 31 else 1 for h in high]
    exact = [-s * special.ndtri((n + 0.5) / 2**64) for s, n in zip(signs, k, strict=True)]
    assert drawn.dtype == dtype
    np.testing.assert_allclose(drawn, exact, rtol=8 * np.finfo(dtype).eps, atol=1e-7)
    assert abs(np.abs(drawn).max() - 9.1553) < 1e-4
    assert drawn[0] == -drawn[1]


def test_float64_draws_where_enabled():
    with jax.enable_x64(True):
        z, u = (
            jax.jit(lambda k, f=f: f(k, (N,), jnp.float64))(key_of(7)) for f in (normal, uniform)
        )
        assert z.dtype == u.dtype == jnp.float64
        assert stats.kstest(np.asarray(z), "norm").pvalue > 1e-3
        assert stats.kstest(np.asarray(u), "uniform").pvalue > 1e-3
        assert len(np.unique(np.asarray(u))) == N  # more than 24 bits
        short = jax.eval_shape(lambda k: normal(k, (2,), jnp.float32), key_of(7))
        assert short.dtype == jnp.float32


# Keys


def test_samplers_of_one_key_do_not_share_a_stream():
    key = key_of(8)
    draws = [bits(key, (N,)), uniform(key, (N,)), special.ndtr(np.asarray(normal(key, (N,))))]
    correlations = np.corrcoef(np.stack([np.asarray(d, np.float64) for d in draws])) - np.eye(3)
    assert np.abs(correlations).max() < 4 / np.sqrt(N)


def test_relatives_are_uncorrelated():
    key = key_of(9)
    first, second = split(key)
    family = [key, first, second, fold_in(key, 0), fold_in(key, 1), fold_in(first, 0)]
    draws = np.stack([np.asarray(normal(k, (N,))) for k in family])
    correlations = np.corrcoef(draws) - np.eye(len(family))
    assert np.abs(correlations).max() < 4.5 / np.sqrt(N)


def test_children_are_distinct():
    key = key_of(10)
    folded = jax.vmap(fold_in, (None, 0))(key, jnp.arange(1000))
    far = [fold_in(key, n) for n in (2**31, 2**32 - 1)]
    grandchildren = jax.vmap(split)(folded[:100])
    family = [key, folded, *far, split(key, 2), split(key, 1000), grandchildren]
    count = sum(int(np.prod(k.shape)) for k in family)
    assert len(set().union(*(rows(k) for k in family))) == count
    # No child's secret is among what its parent draws.
    drawn = {tuple(row) for row in np.asarray(bits(key, (N,))).reshape(-1, 8).tolist()}
    assert not drawn & set().union(*(rows(k) for k in family))


def test_children_are_as_unpredictable_as_draws():
    words = jax.vmap(fold_in, (None, 0))(key_of(11), jnp.arange(1000)).words
    counts = np.bincount(np.asarray(words).astype("<u4").view(np.uint8).ravel(), minlength=256)
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


def test_fold_in_takes_any_integer_type():
    key = key_of(12)
    for data in (7, np.int64(7), np.uint8(7), jnp.int32(7), jnp.uint32(7), jnp.int8(7)):
        assert rows(fold_in(key, data)) == rows(fold_in(key, 7))
    assert rows(jax.jit(fold_in)(key, 7)) == rows(fold_in(key, 7))


def test_arrays_of_keys_unpack_and_index():
    keys = split(key_of(13), 3)
    assert (keys.shape, len(keys)) == ((3,), 3)
    assert [rows(k) for k in keys] == [rows(keys[i]) for i in range(3)]
    assert rows(keys[-1]) == rows(keys[2])
    assert keys[1:].shape == (2,)
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            keys[beyond]
    for call in (len, list, lambda k: k[0]):
        with pytest.raises(TypeError, match="single"):
            call(keys[0])


def test_fresh_keys_come_from_the_operating_system(monkeypatch):
    keys = [fresh_key() for _ in range(20)]
    assert len(set().union(*map(rows, keys))) == 20
    monkeypatch.setattr("os.urandom", lambda n: bytes(range(n)))
    np.testing.assert_array_equal(fresh_key().words, words_of(COUNTING))


@pytest.mark.parametrize(
    "transform",
    [
        jax.jit,
        jax.vmap,
        jax.checkpoint,
        lambda f: jax.grad(lambda x: f(x).sum()),
        lambda f: lambda x: jax.lax.scan(lambda c, row: (c, f(row)), 0, x),
        lambda f: lambda x: jax.eval_shape(f, x),
        lambda f: jax.vmap(jax.jit(f)),
        lambda f: lambda x: jax.lax.cond(x[0] > 0, f, lambda x: x, x),
    ],
)
def test_fresh_key_refuses_to_become_a_constant(transform):
    def f(x):
        with pytest.raises(RuntimeError, match="pass the key as an argument"):
            fresh_key()
        return x

    transform(f)(jnp.ones(3))
    fresh_key()


# Transformations


@pytest.mark.slow
def test_jit_vmap_and_scan_draw_the_same():
    keys = split(key_of(14), 4)

    def draw(key):
        first, second = split(fold_in(key, 3))
        return normal(first, (5,)), uniform(second, (5,))

    eager = [jax.tree.map(np.asarray, draw(key)) for key in keys]
    jitted_draw = jax.jit(draw)
    jitted = [jitted_draw(key) for key in keys]
    mapped = jax.vmap(draw)(keys)
    _, scanned = jax.lax.scan(lambda carry, key: (carry, draw(key)), None, keys)
    for i in range(4):
        for part in range(2):
            tolerance = 0 if part else 1e-6  # ndtri may be fused differently
            for other in (jitted[i][part], mapped[part][i], scanned[part][i]):
                np.testing.assert_allclose(other, eager[i][part], rtol=tolerance, atol=tolerance)


def test_a_key_is_an_argument_not_a_constant():
    traces = []

    @jax.jit
    def draw(key):
        traces.append(1)
        return bits(key, (4,))

    drawn = {tuple(draw(fresh_key()).tolist()) for _ in range(5)}
    assert len(drawn) == 5
    assert len(traces) == 1


def test_a_key_round_trips_as_a_pytree():
    key = key_of(15)
    leaves, tree = jax.tree.flatten(key)
    assert [leaf.shape for leaf in leaves] == [(8,)]
    assert rows(jax.tree.unflatten(tree, leaves)) == rows(key)
    assert jax.tree.map(lambda _: None, key).words is None
    assert jax.tree_util.tree_flatten_with_path(key)[0][0][0] == (
        jax.tree_util.GetAttrKey("words"),
    )


# Secrecy and misuse


def shown(value):
    return [str(value), repr(value), f"{value}", f"{[value]}"]


def test_nothing_printed_shows_the_secret():
    key = fresh_key()
    texts = shown(key) + shown(split(key)) + shown({"key": key})
    for call in [
        lambda: fold_in(key, 1.5),
        lambda: fold_in(key, -1),
        lambda: bits(split(key), (2,)),
        lambda: bits(key, (2,), jnp.int32),
        lambda: len(key),
        lambda: pickle.dumps(key),
        lambda: ChaChaKey(key.words[:4]),
        lambda: ChaChaKey(key.words.astype(jnp.float32)),
        lambda: setattr(key, "words", 0),
        lambda: jax.jit(lambda k: k + 1)(key),
    ]:
        with pytest.raises((TypeError, ValueError, AttributeError)) as caught:
            call()
        texts.append(str(caught.value))
    secret = np.asarray(key.words)
    for text in texts:
        for word in secret.tolist():
            assert str(word) not in text
            assert f"{word:x}" not in text
        assert secret.tobytes().hex() not in text


@pytest.mark.parametrize(
    "save", [pickle.dumps, copy.copy, copy.deepcopy, lambda key: pickle.dumps({"state": [key]})]
)
def test_keys_are_never_pickled_or_copied(save):
    with pytest.raises(TypeError, match="never pickled"):
        save(fresh_key())


def test_keys_do_not_pass_through_numpy_files(tmp_path):
    with pytest.raises(TypeError, match="never pickled"):
        np.save(tmp_path / "key.npy", np.array(fresh_key(), object), allow_pickle=True)


@pytest.mark.parametrize(
    "key", [jax.random.key(0), jax.random.PRNGKey(0), np.zeros(8, np.uint32), 7, None, "secret"]
)
@pytest.mark.parametrize("use", [split, lambda k: fold_in(k, 0), bits, uniform, normal])
def test_other_keys_are_refused(use, key):
    with pytest.raises(TypeError, match=r"must be a ChaChaKey from spax\.crypto\.fresh_key"):
        use(key)


def test_a_jax_random_key_is_named_in_the_refusal():
    with pytest.raises(TypeError, match=r"a jax\.random key, which is not cryptographic"):
        jax.jit(lambda key: bits(key, (2,)))(jax.random.key(0))


@pytest.mark.parametrize("words", [7, [1] * 8, np.zeros(8), np.zeros(8, np.int32), "secret"])
def test_keys_are_made_of_uint32_words_only(words):
    with pytest.raises(TypeError, match="uint32 array"):
        ChaChaKey(words)


def test_keys_have_eight_words():
    with pytest.raises(ValueError, match=r"\[\.\.\., 8\]"):
        ChaChaKey(np.zeros(4, np.uint32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: bits(split(k)), ValueError, "single key; vmap"),
        (lambda k: split(k, 0), ValueError, "num must be >= 1"),
        (lambda k: split(k, 2**32), ValueError, r"num must be < 2\*\*32"),
        (lambda k: split(k, 2.0), TypeError, "static int"),
        (lambda k: fold_in(k, -1), ValueError, r"data must be in \[0, 2\*\*32\)"),
        (lambda k: fold_in(k, 2**32), ValueError, r"data must be in \[0, 2\*\*32\)"),
        (lambda k: fold_in(k, 1.0), TypeError, "must be an integer"),
        (lambda k: fold_in(k, True), TypeError, "must be an integer"),
        (lambda k: fold_in(k, "a"), TypeError, "must be an integer"),
        (lambda k: fold_in(k, jnp.arange(2)), ValueError, "scalar; vmap"),
        (lambda k: bits(k, (2,), jnp.int32), ValueError, "uint8, uint16, uint32 or uint64"),
        (lambda k: bits(k, (2,), jnp.uint64), ValueError, "enable_x64"),
        (lambda k: normal(k, (2,), jnp.float64), ValueError, "enable_x64"),
        (lambda k: normal(k, (2,), jnp.int32), ValueError, "bfloat16, float16"),
        (lambda k: uniform(k, (2,), jnp.uint8), ValueError, "bfloat16, float16"),
        (lambda k: uniform(k, (2,), minval=1.0), ValueError, "minval must be < maxval"),
        (lambda k: uniform(k, (2,), maxval=np.nan), ValueError, "maxval must be a number"),
        (lambda k: bits(k, (-1,)), ValueError, "sizes >= 0"),
        (lambda k: bits(k, (2.5,)), TypeError, "integer"),
        # The counter ends after 2^32 blocks of 16 words.
        (lambda k: bits(k, (2**36,)), ValueError, r"below 2\*\*32 blocks"),
        (lambda k: bits(k, (2**19, 2**19), jnp.uint8), ValueError, r"below 2\*\*32 blocks"),
        (lambda k: normal(k, (2**35,)), ValueError, r"below 2\*\*32 blocks"),
    ],
)
def test_misuse_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(key_of(0))


def test_the_last_permitted_draw_can_be_traced():
    shape = jax.eval_shape(lambda k: bits(k, (2**35 - 16,)), key_of(0))
    assert shape.shape == (2**35 - 16,)


def test_the_room_exports_what_it_says():
    assert sorted(crypto.__all__) == crypto.__all__
    assert all(hasattr(crypto, name) for name in crypto.__all__)
