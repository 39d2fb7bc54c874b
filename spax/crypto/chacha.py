"""ChaCha20 in arrays: randomness that stands up to an adversary.

``jax.random`` is made for simulation: its keys have 64 bits, so that 2^64 work recovers every
number drawn. Secret keys, masks and the noise of differential privacy come from here instead: 256
bits of the operating system's entropy (`fresh_key`, on the host), expanded by ChaCha20 inside
jitted functions. The functions take their arguments in the order of their namesakes in
``jax.random``, and like there a key is used once: `split` it, or `fold_in` a step number.

What is and is not promised. A key's streams cannot be told from uniform bits by anyone who lacks
the key, as far as ChaCha20 is a pseudo-random function. Not defended: whoever can read this
process's memory (keys are ordinary device arrays and are not wiped), and floating-point artefacts
of noise (`normal` describes its own).

Pass a key to a jitted function as an *argument*. One that is closed over becomes a constant of the
compiled program: every call draws the same numbers, and the key lands wherever programs are kept.
Never put a key into a checkpoint: a restored key repeats its noise, and two noises that cancel
reveal the data. Pickling raises, but a checkpoint library that takes pytrees apart sees an ordinary
array and cannot be stopped from here.

References:
  Y. Nir, A. Langley, ChaCha20 and Poly1305 for IETF Protocols, 2018, RFC 8439.
  D. J. Bernstein, ChaCha, a variant of Salsa20, 2008.
"""

import dataclasses
import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri

from spax.checks import check_count, check_number, is_concrete
from spax.typing import Array, Number

__all__ = [
    "ChaChaKey",
    "bits",
    "chacha20_block",
    "fold_in",
    "fresh_key",
    "normal",
    "split",
    "uniform",
]

# "expand 32-byte k", RFC 8439 section 2.3.
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
# The last nonce word says what a block is for, so no block of a key ever serves two purposes.
_BITS, _UNIFORM, _NORMAL, _FOLD, _SPLIT = (
    int.from_bytes(tag, "little") for tag in (b"bits", b"unif", b"norm", b"fold", b"splt")
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ChaChaKey:
    """A 256-bit secret, or an array of them: a frozen pytree that enters functions as argument.

    Make one with `fresh_key`. Printing, formatting and errors never show the secret; pickling and
    copying raise (``dataclasses.asdict``, like any taking apart, does not).
    Arrays of keys, such as `split` returns, can be indexed and unpacked, mapped over
    by ``vmap`` and scanned over; one key at a time goes into the functions of this module.

    Attributes:
      words: the secret itself, uint32 ``[..., 8]``, little-endian as in RFC 8439. Give it directly
        only for known-answer tests and for keys agreed upon by a protocol.

    Raises:
      TypeError: if ``words`` is not a uint32 array.
      ValueError: if its last dimension is not 8.

    Example:
      >>> first, second = split(fresh_key())
      >>> first
      ChaChaKey(<secret>, shape=())
    """

    words: Array

    def __post_init__(self) -> None:
        dtype = getattr(self.words, "dtype", None)
        if dtype != np.uint32:
            raise TypeError(
                "words must be a uint32 array; make keys with spax.crypto.fresh_key() "
                f"(got {type(self.words).__name__}{f' of dtype {dtype}' if dtype else ''})"
            )
        if np.shape(self.words)[-1:] != (8,):
            raise ValueError(f"words must have shape [..., 8] (got {np.shape(self.words)})")
        object.__setattr__(self, "words", jnp.asarray(self.words))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array of keys; ``()`` for a single key."""
        return tuple(np.shape(self.words)[:-1])

    def __repr__(self) -> str:
        return f"ChaChaKey(<secret>, shape={self.shape})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a ChaChaKey is secret and is never pickled, copied or saved: draw a fresh_key() where "
            "it is needed, or split() it"
        )

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single ChaChaKey has no length; split(key, n) gives n of them")
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> "ChaChaKey":
        # JAX clamps an index out of range, which would use one key twice.
        if not isinstance(index, slice):
            index = range(len(self))[operator.index(index)]
        return ChaChaKey(self.words[index])

    def __iter__(self) -> Iterator["ChaChaKey"]:
        return (self[i] for i in range(len(self)))


def _unflatten(_: None, children: Iterable[Any]) -> ChaChaKey:
    key = object.__new__(ChaChaKey)  # JAX puts things that are no arrays into pytrees
    object.__setattr__(key, "words", *children)
    return key


jax.tree_util.register_pytree_with_keys(
    ChaChaKey,
    lambda key: (((jax.tree_util.GetAttrKey("words"), key.words),), None),
    _unflatten,
    lambda key: ((key.words,), None),
)


def fresh_key() -> ChaChaKey:
    """A new key from the operating system's entropy; for the host, outside any JAX transform.

    Returns:
      A single ChaChaKey of 32 bytes from ``os.urandom``.

    Raises:
      RuntimeError: inside ``jit``, ``vmap``, ``grad`` or a JAX loop. The entropy would be read
        once, while tracing, and every call, lane and step would share it.

    Example:
      >>> import jax
      >>> noisy = jax.jit(lambda x, key: x + normal(key, x.shape))
      >>> noisy(jnp.zeros(3), fresh_key()).shape
      (3,)
    """
    with jax.core.eval_context():
        outside = jax.extend.core.get_opaque_trace_state()
    if jax.extend.core.get_opaque_trace_state() != outside:
        raise RuntimeError(
            "fresh_key() was called inside a JAX transformation, where its entropy would become a "
            "constant; call it outside and pass the key as an argument"
        )
    return ChaChaKey(jnp.asarray(np.frombuffer(os.urandom(32), "<u4").astype(np.uint32)))


def chacha20_block(key: Array, counter: Array, nonce: Array) -> Array:
    """The ChaCha20 block function: 64 bytes of key stream for each counter.

    Args:
      key: uint32 ``[8]``.
      counter: uint32, any shape: the numbers of the blocks.
      nonce: uint32 ``[3]``.

    Returns:
      uint32 ``[*counter.shape, 16]``; little-endian bytes of it are RFC 8439's key stream.

    Raises:
      ValueError: on another dtype, or another shape of key or nonce.

    Example:
      >>> key = jnp.zeros(8, jnp.uint32)
      >>> hex(chacha20_block(key, jnp.uint32(0), jnp.zeros(3, jnp.uint32))[0])
      '0xade0b876'

    References:
      Y. Nir, A. Langley, 2018, RFC 8439, section 2.3; the value above is test vector 1 of its
      appendix A.1.
    """
    shapes, dtypes = (np.shape(key), np.shape(nonce)), {key.dtype, counter.dtype, nonce.dtype}
    if shapes != ((8,), (3,)) or dtypes != {np.dtype(np.uint32)}:
        raise ValueError(
            "key, counter and nonce must be uint32, key of shape [8] and nonce of shape [3] (got "
            f"shapes {shapes[0]} and {shapes[1]}, dtypes {sorted(map(str, dtypes))})"
        )
    words = [*(np.uint32(c) for c in _CONSTANTS), *key, counter, *nonce]
    start = tuple(jnp.broadcast_to(word, counter.shape) for word in words)
    # A loop, not 960 unrolled operations, which take seconds to compile.
    end = lax.fori_loop(0, 10, _double_round, start)
    return jnp.stack([a + b for a, b in zip(start, end, strict=True)], axis=-1)


def _double_round(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """A column round, then a diagonal round (RFC 8439, section 2.3)."""
    x = list(state)
    for shift in (0, 1):
        for column in range(4):
            # Row r of a diagonal is r columns to the right.
            a, b, c, d = (4 * row + (column + shift * row) % 4 for row in range(4))
            x[a], x[b], x[c], x[d] = _quarter_round(x[a], x[b], x[c], x[d])
    return tuple(x)


def _quarter_round(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array, Array, Array]:
    """RFC 8439, section 2.1."""
    a += b
    d = _rotate(d ^ a, 16)
    c += d
    b = _rotate(b ^ c, 12)
    a += b
    d = _rotate(d ^ a, 8)
    c += d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


def _rotate(x: Array, n: int) -> Array:
    return (x << np.uint32(n)) | (x >> np.uint32(32 - n))


def split(key: ChaChaKey, num: int = 2) -> ChaChaKey:
    """Makes ``num`` new keys; the old one is used up.

    Args:
      key: a single key, consumed.
      num: how many, static.

    Returns:
      A ChaChaKey of shape ``(num,)``.

    Guarantees:
      Keys never share key stream, with one another or with their parent. Within one key, a block is
      fixed by nonce and counter; children are the first half of blocks that are used for nothing
      else: their nonce carries a tag for split (and ``num``) or for fold_in (and its number), and
      draws carry tags of their own. If ChaCha20 is a pseudo-random function, children are
      therefore as good as independent uniform 256-bit keys, even to someone who sees all other
      children and draws, and any two of n keys are equal with probability below n^2 / 2^257.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey, such as a ``jax.random`` key.
      ValueError: if it is an array of keys, or ``num`` is not in [1, 2^32).

    Example:
      >>> keys = split(fresh_key(), 3)
      >>> keys.shape, len(keys)
      ((3,), 3)

    References:
      D. J. Bernstein, Extending the Salsa20 nonce, 2011 (why keys may be made by blocks of the
      same cipher: the security of a cascade).
    """
    words = _one(key)
    check_count("num", num)
    if num >= 2**32:
        raise ValueError(f"num must be < 2**32 (got num={num})")
    counter = lax.iota(jnp.uint32, num)
    return ChaChaKey(chacha20_block(words, counter, _nonce(num, _SPLIT))[:, :8])


def fold_in(key: ChaChaKey, data: int | Array) -> ChaChaKey:
    """A new key from a key and a number, such as the step of a loop.

    Args:
      key: a single key. It may be folded with many numbers; use it for nothing else.
      data: an integer in [0, 2^32), Python's or a scalar array; a traced one outside wraps modulo
        2^32.

    Returns:
      A single ChaChaKey: different numbers give different keys (see `split` for the argument).

    Raises:
      TypeError: if ``key`` is not a ChaChaKey, or ``data`` not an integer.
      ValueError: if ``key`` is an array of keys, or ``data`` is not a scalar or out of range.

    Example:
      >>> keys = jax.vmap(fold_in, in_axes=(None, 0))(fresh_key(), jnp.arange(5))
      >>> keys.shape
      (5,)
    """
    words = _one(key)
    kind = getattr(data, "dtype", np.result_type(type(data)))
    if not jnp.issubdtype(kind, jnp.integer):
        raise TypeError(f"data must be an integer (got {type(data).__name__} of {kind})")
    if np.ndim(data) != 0:
        raise ValueError(f"data must be a scalar; vmap over it (got shape {np.shape(data)})")
    if is_concrete(data):
        if not 0 <= int(data) < 2**32:
            raise ValueError(f"data must be in [0, 2**32) (got data={data})")
        data = jnp.uint32(int(data))
    block = chacha20_block(words, jnp.uint32(0), _nonce(data, _FOLD))
    return ChaChaKey(block[:8])


def bits(key: ChaChaKey, shape: Sequence[int] = (), dtype: Any = jnp.uint32) -> Array:
    """Uniform random bits.

    Args:
      key: a single key, consumed.
      shape: of the result.
      dtype: uint8, uint16, uint32, or uint64 where 64-bit types are enabled. Whatever the type,
        the bytes are the same stream, in little-endian order: RFC 8439's with this key and a nonce
        of two zero words and the ASCII letters "bits".

    Returns:
      An array of that shape and type.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey.
      ValueError: on another dtype, an array of keys, or 2^32 blocks of 64 bytes and more.

    Example:
      >>> bits(fresh_key(), (2, 5), jnp.uint8).shape
      (2, 5)
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.uint8, np.uint16, np.uint32, np.uint64):
        raise ValueError(f"dtype must be uint8, uint16, uint32 or uint64 (got dtype={dtype})")
    _check_enabled(dtype)
    count = math.prod(_shape(shape))
    words = _stream(key, _BITS, -(-count * dtype.itemsize // 4))
    if dtype.itemsize > 4:
        words = words.reshape(-1, dtype.itemsize // 4)
    return lax.bitcast_convert_type(words, dtype).reshape(-1)[:count].reshape(_shape(shape))


def uniform(
    key: ChaChaKey,
    shape: Sequence[int] = (),
    dtype: Any = float,
    minval: Number = 0.0,
    maxval: Number = 1.0,
) -> Array:
    """Uniform random numbers in [minval, maxval).

    On [0, 1) they are the multiples of 2^-p, equally likely, where p is the precision of the type:
    24 for float32 (jax.random has 23), 53 for float64, 11 for float16, 8 for bfloat16.

    Args:
      key: a single key, consumed.
      shape: of the result.
      dtype: a floating type; ``float`` is the default float type.
      minval: lower end, included; a number or an array that broadcasts to ``shape``.
      maxval: upper end, excluded, likewise. Where it is not above a traced ``minval``, the result
        is ``minval``.

    Returns:
      An array of that shape and type.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey.
      ValueError: on another dtype, an array of keys, concrete ``minval >= maxval`` or
        ``maxval - minval`` above the largest number of the type, or a size of 2^32 blocks of 64
        bytes and more.

    Example:
      >>> u = uniform(fresh_key(), (1000,), minval=-1.0)
      >>> bool(((u >= -1) & (u < 1)).all())
      True
    """
    dtype = _floating(dtype)
    shape = _shape(shape)
    check_number("minval", minval)
    check_number("maxval", maxval)
    if is_concrete((minval, maxval)) and not np.all(np.asarray(minval) < np.asarray(maxval)):
        raise ValueError(f"minval must be < maxval (got minval={minval}, maxval={maxval})")
    precision = int(jnp.finfo(dtype).nmant) + 1
    count = math.prod(shape)
    if dtype.itemsize == 8:
        words = lax.bitcast_convert_type(
            _stream(key, _UNIFORM, 2 * count).reshape(-1, 2), jnp.uint64
        )
        numbers = words >> np.uint64(64 - precision)
    else:
        numbers = _stream(key, _UNIFORM, count) >> np.uint32(32 - precision)
    if is_concrete((minval, maxval)):
        width = np.asarray(maxval, np.float64) - np.asarray(minval, np.float64)
        if not np.all(width <= float(jnp.finfo(dtype).max)):
            raise ValueError(f"maxval - minval must be finite in {dtype} (got {width.max():g})")
    unit = (numbers.astype(dtype) * jnp.asarray(2.0**-precision, dtype)).reshape(shape)
    low, high = (jnp.broadcast_to(jnp.asarray(v, dtype), shape) for v in (minval, maxval))
    # Rounding may reach maxval, which is excluded.
    return jnp.maximum(low, jnp.minimum(low + unit * (high - low), jnp.nextafter(high, low)))


def normal(key: ChaChaKey, shape: Sequence[int] = (), dtype: Any = float) -> Array:
    """Standard normal random numbers, by inversion of the distribution function.

    Each takes 64 bits of the stream: one for the sign, 63 for the tail probability
    ``w = (k + 1/2) / 2^64`` with ``0 <= k < 2^63``, and is ``+-ndtri(w)``. Rounding k to the
    precision of the type keeps a small w, and so the tails, to full relative accuracy.

    As noise for differential privacy:

    * Tails: ``|z| <= 9.16``, the quantile at 2^-65, where ``jax.random.normal`` in float32 ends at
      5.42. What is cut off weighs 2^-63 a number (against 6e-8 there), so that N numbers are
      within ``N / 2^63`` in total variation of untruncated ones. For 10^6 coordinates and 10^4
      steps that adds about ``(1 + e^epsilon) * 1.1e-9`` to delta.
    * Resolution: results are rounded to the type, near zero to about 2^-24 in absolute terms
      (float32). The set of floats that ``data + sigma * z`` can take depends on the data, which
      known attacks exploit (Mironov 2012; Haney et al. 2022). Inversion does not defend
      against them; a grid does. Do not publish such sums at full precision where that matters.

    Args:
      key: a single key, consumed.
      shape: of the result.
      dtype: a floating type; ``float`` is the default float type. 16-bit types are rounded from
        float32.

    Returns:
      An array of that shape and type, always finite.

    Raises:
      TypeError: if ``key`` is not a ChaChaKey.
      ValueError: on another dtype, an array of keys, or 2^32 blocks of 64 bytes and more.

    Example:
      >>> z = normal(fresh_key(), (4, 2), jnp.bfloat16)
      >>> z.shape, z.dtype.name
      ((4, 2), 'bfloat16')

    References:
      I. Mironov, On Significance of the Least Significant Bits for Differential Privacy, 2012.
      S. Haney, D. Desfontaines, L. Hartman, R. Shrestha, M. Hay, Precision-based attacks and
      interval refining, 2022, arXiv:2207.13793.
    """
    dtype = _floating(dtype)
    shape = _shape(shape)
    words = _stream(key, _NORMAL, 2 * math.prod(shape)).reshape(2, -1)
    return normal_from_words(words, dtype).reshape(shape)


def normal_from_words(words: Array, dtype: np.dtype) -> Array:
    """Standard normal numbers ``[N]`` from uniform uint32 ``[2, N]``: see `normal`."""
    wide = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
    high, low = words
    sign, high = high >> np.uint32(31), high & np.uint32(0x7FFFFFFF)
    unit = wide.type(2.0**-32)
    z = ndtri(high.astype(wide) * unit + (low.astype(wide) * unit * unit + unit * unit / 2))
    return jnp.where(sign == 1, z, -z).astype(dtype)


def _stream(key: ChaChaKey, purpose: int, count: int) -> Array:
    """The first ``count`` words of the key stream reserved for a purpose."""
    words = _one(key)
    blocks = -(-count // 16)
    if blocks >= 2**32:
        raise ValueError(
            "one draw must stay below 2**32 blocks of 64 bytes, the reach of ChaCha20's counter; "
            f"split the key (got {blocks} blocks)"
        )
    counter = lax.iota(jnp.uint32, blocks)
    return chacha20_block(words, counter, _nonce(0, purpose)).reshape(-1)[:count]


def _nonce(number: int | Array, purpose: int) -> Array:
    first = jnp.uint32(number) if isinstance(number, int) else number.astype(jnp.uint32)
    return jnp.stack([first, jnp.uint32(0), jnp.uint32(purpose)])


def _one(key: Any) -> Array:
    """The words of a single key."""
    if not isinstance(key, ChaChaKey):
        what = type(key).__name__
        if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            what = "a jax.random key, which is not cryptographic"
        raise TypeError(f"key must be a ChaChaKey from spax.crypto.fresh_key() (got {what})")
    if key.shape:
        raise ValueError(f"key must be a single key; vmap over arrays of keys (got {key!r})")
    return key.words


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(operator.index(size) for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must have sizes >= 0 (got shape={sizes})")
    return sizes


def _floating(dtype: Any) -> np.dtype:
    resolved = np.dtype(jnp.result_type(float) if dtype is float else dtype)
    if resolved not in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
        raise ValueError(
            f"dtype must be bfloat16, float16, float32 or float64 (got dtype={resolved})"
        )
    _check_enabled(resolved)
    return resolved


def _check_enabled(dtype: np.dtype) -> None:
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype {dtype} needs jax.enable_x64(True) (got dtype={dtype})")
