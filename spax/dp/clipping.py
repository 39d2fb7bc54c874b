"""Per-example gradients, clipped and summed: the part of DP-SGD whose sensitivity is bounded."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.checks import check_count, check_number
from spax.dp.sampling import Batch
from spax.gradients.convolutions import canonical_convolutions
from spax.norms import example_keys
from spax.typing import Array, Key, Number, PyTree

__all__ = ["ClipInfo", "clipped_grad"]

# Norms are float32 sums of many squares: aim below the bound by more than their error.
_SHRINK = 1 - 1e-5
# Below this bound float32 scales and standard deviations could underflow.
_LEAST_BOUND = 1e-30
_MOST_ROWS = 2**20


class ClipInfo(NamedTuple):
    """What happened to the examples of a batch; scalars, none of them private."""

    loss: Array  # mean over the examples that count
    clipped: Array  # share of them whose gradient was longer than the bound
    size: Array  # how many examples there are
    nonfinite: Array  # how many had a gradient that was not finite, and counted for nothing


def clipped_grad(
    loss_fn: Callable[..., tuple[Array, PyTree]],
    *,
    l2_clip_norm: Number,
    chunk_size: int | None = None,
) -> Callable[..., tuple[PyTree, ClipInfo]]:
    """Sums per-example gradients, each scaled to length at most C: ``g min(1, C / |g|)``.

    The length is that of all parameters together. Gradients are taken by ``vmap``, so that the
    memory is ``chunk_size`` times that of the parameters.

    Args:
      loss_fn: ``(params, example, key) -> (scalar, aux)`` of one example, a row of the batch;
        aux is dropped. (Statistics over a batch do not exist here: no batch norm.)
      l2_clip_norm: the bound C, > 0; inf: no clipping (and no privacy). May be traced; a value
        below 1e-30 gives zero.
      chunk_size: examples at a time, static; None: all. It trades memory for time and changes the
        result by the rounding of a float32 sum only.

    Returns:
      ``fn(params, batch, *, key=None) -> (sum, info)``: the sum in float32, shaped as the
      parameters, and `ClipInfo`. Each example's key is ``fold_in(key, row)``.

    Guarantees:
      Adding or removing one example moves the sum by at most C in l2, its rounding included: masked
      rows and gradients that are not finite count for zero, rows are added in 64 bits, and what
      rounding B rows to float32 can move the sum by, ``2^-23 B C``, is taken off C. Inside
      ``shard_map`` this holds of each shard's own sum, over its own rows, whether or not
      ``check_vma`` is set (parameters must not be spread over devices: the length is that of those
      it is given).

    Raises:
      TypeError: if chunk_size is not an int, or loss_fn does not return a pair.
      ValueError: if C is not a scalar, a concrete C <= 0, or chunk_size < 1; if the mask is not one
        bool a row, or there are more than 2^20 rows.

    Example:
      >>> import jax.numpy as jnp
      >>> fn = clipped_grad(lambda w, x, key: (w @ x, None), l2_clip_norm=1.0)
      >>> batch = Batch(jnp.array([[3.0, 4.0], [0.5, 0.0]]), jnp.array([True, True]))
      >>> total, info = fn(jnp.zeros(2), batch)
      >>> [round(float(v), 3) for v in total], float(info.clipped)
      ([1.1, 0.8], 0.5)

    References:
      M. Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133,
      Algorithm 1.
    """
    check_number("l2_clip_norm", l2_clip_norm, low=0, low_open=True, scalar=True)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)

    def scalar(params: PyTree, example: PyTree, key: Key | None) -> Array:
        out = loss_fn(params, example, key)
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"loss_fn must return a pair (scalar, aux) (got {type(out).__name__})")
        return out[0]

    def one_chunk(
        params: PyTree, limit: Array, data: PyTree, mask: Array, keys: Array | None
    ) -> tuple[PyTree, ClipInfo]:
        # Differentiating by parameters that all shards share would add up over the shards, before
        # any clipping; with a copy on each shard every row keeps a gradient of its own.
        params = _varying(params, _axes((data, mask, keys)))
        per_example = jax.vmap(jax.value_and_grad(scalar), (None, 0, None if keys is None else 0))
        losses, grads = canonical_convolutions(per_example)(params, data, keys)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        scale, unit, lengths = _scales(grads, limit)
        finite = jnp.isfinite(lengths)
        used = mask & finite
        longer = used & (lengths > jnp.asarray(l2_clip_norm, jnp.float32) / unit)
        info = ClipInfo(
            jnp.sum(jnp.where(used, losses.astype(jnp.float32), 0.0)),
            jnp.sum(longer.astype(jnp.float32)),
            jnp.sum(mask.astype(jnp.float32)),
            jnp.sum((mask & ~finite).astype(jnp.float32)),
        )
        return _sum_of_rows(grads, jnp.where(used, scale, 0.0), unit, used), info

    def fn(params: PyTree, batch: Batch, *, key: Key | None = None) -> tuple[PyTree, ClipInfo]:
        mask = batch.mask
        if mask.ndim != 1 or mask.dtype != jnp.bool_:
            raise ValueError(
                f"mask must be one bool a row (got shape {mask.shape}, dtype {mask.dtype})"
            )
        if not jax.tree.leaves(params):
            raise ValueError(f"params must hold at least one array (got params={params!r})")
        for leaf in jax.tree.leaves(batch.data):
            if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != mask.shape[0]:
                raise ValueError(
                    f"data must have {mask.shape[0]} rows, one a mask entry "
                    f"(got an array of shape {jnp.shape(leaf)})"
                )
        if mask.shape[0] > _MOST_ROWS:
            raise ValueError(
                f"a sum in float32 is bounded for at most {_MOST_ROWS} rows (got {mask.shape[0]})"
            )
        keys = None if key is None else example_keys(key, mask)
        bound = jnp.asarray(l2_clip_norm, jnp.float32)
        limit = jnp.where(bound < _LEAST_BOUND, 0.0, bound)
        limit = limit * (_SHRINK * rounding_margin(mask.shape[0]))
        fixed, rows = partial(one_chunk, params, limit), (batch.data, mask, keys)
        if chunk_size is None or chunk_size >= mask.shape[0]:
            sums, info = fixed(*rows)
        else:
            axes = _axes((params, limit, rows))
            sums, info = _summed_in_chunks(fixed, *rows, chunk_size, axes)
        # The one rounding, which the margin pays for.
        sums = jax.tree.map(lambda pair: pair.sum(axis=0), sums)
        count = jnp.maximum(info.size - info.nonfinite, 1.0)
        return sums, info._replace(loss=info.loss / count, clipped=info.clipped / count)

    return fn


def _axes(tree: PyTree) -> frozenset[str]:
    """The axes of a ``shard_map`` over which some leaf varies (none if it does not keep track)."""
    leaves = jax.tree.leaves(tree)
    return frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))


def _varying(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The same values, marked as varying over these axes."""

    def mark(leaf: Array) -> Array:
        missing = tuple(sorted(axes - _axes(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)


def rounding_margin(rows: int) -> float:
    """What to shrink C by, so that rounding a sum of so many clipped rows to float32 is covered.

    Rounding to nearest moves a vector by at most 2^-24 of its length, which is at most ``rows C``,
    and does so on either of two neighbouring data sets.
    """
    return 1 - 2.0**-23 * rows


def _scales(grads: PyTree, limit: Array) -> tuple[Array, Array, Array]:
    """``(s, u, r)``, ``[B]`` each: s times ``g / u``, of length r, is ``g`` cut to the limit.

    u is the power of two below the largest entry: exact to divide by, and far from underflow and
    overflow, as its reciprocal has to be (compilers multiply by that, and flush it if subnormal).
    """
    flat = [g.reshape(g.shape[0], math.prod(g.shape[1:])) for g in jax.tree.leaves(grads)]
    top = jnp.max(jnp.stack([jnp.max(jnp.abs(g), axis=1, initial=0.0) for g in flat]), axis=0)
    exponent = lax.bitcast_convert_type(top, jnp.uint32) & np.uint32(0x7F800000)
    unit = jnp.clip(lax.bitcast_convert_type(exponent, jnp.float32), 2.0**-100, 2.0**100)
    squares = [jnp.sum(jnp.square(g / unit[:, None]), axis=1) for g in flat]
    lengths = jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))
    scale = jnp.minimum(unit, limit / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny))
    return scale, unit, lengths


def _sum_of_rows(grads: PyTree, scale: Array, unit: Array, used: Array) -> PyTree:
    """The sum over rows of ``scale g / unit``, added in 64 bits, as pairs of float32 ``[2, ...]``.

    A float32 sum of B rows may err by B^2 / 2^24 of one row, so that one row more or less would
    move it by far more than its length. Row by row, since a 64-bit copy of the gradients would take
    twice their memory.
    """

    def add(i: Array, totals: PyTree) -> PyTree:
        def row(total: Array, g: Array) -> Array:
            # 0 * NaN is NaN: what does not count has to be cleared, not only scaled.
            part = jnp.where(used[i], g[i] / unit[i], 0.0).astype(jnp.float64)
            return total + scale[i].astype(jnp.float64) * part

        return jax.tree.map(row, totals, grads)

    with jax.enable_x64(True):
        zero = jax.tree.map(lambda g: jnp.zeros(g.shape[1:], jnp.float64), grads)
        zero = _varying(zero, _axes((grads, scale, unit, used)))
        totals = lax.fori_loop(0, used.shape[0], add, zero, unroll=min(8, used.shape[0]))
        return jax.tree.map(_as_pair, totals)


def _as_pair(value: Array) -> Array:
    """A 64-bit number as two of 32 bits, which hold 48; within the island."""
    high = value.astype(jnp.float32)
    return jnp.stack([high, (value - high.astype(jnp.float64)).astype(jnp.float32)])


def _add_pairs(a: Array, b: Array) -> Array:
    with jax.enable_x64(True):
        return _as_pair(a.astype(jnp.float64).sum(axis=0) + b.astype(jnp.float64).sum(axis=0))


def _summed_in_chunks(
    one_chunk: Callable[..., Any],
    data: PyTree,
    mask: Array,
    keys: Array | None,
    size: int,
    axes: frozenset[str],
) -> tuple[PyTree, ClipInfo]:
    """Adds up what ``one_chunk`` returns, over chunks; the last is padded with masked rows."""
    rows = mask.shape[0]
    count = -(-rows // size)
    # Padding repeats row 0, which the mask takes out.
    index = jnp.arange(count * size)
    inside = index < rows
    index = jnp.where(inside, index, 0)

    def cut(leaf: Array) -> Array:
        return jnp.asarray(leaf)[index].reshape(count, size, *jnp.shape(leaf)[1:])

    chunks = jax.tree.map(cut, (data, mask, keys))
    inside = inside.reshape(count, size)

    def add(carry: PyTree, chunk: Any) -> tuple[PyTree, None]:
        (data, mask, keys), inside = chunk
        sums, info = one_chunk(data, mask & inside, keys)
        sums = jax.tree.map(_add_pairs, carry[0], sums)
        return (sums, jax.tree.map(jnp.add, carry[1], info)), None

    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(one_chunk, *jax.tree.map(lambda leaf: leaf[0], chunks)),
    )
    return lax.scan(add, _varying(zero, axes), (chunks, inside))[0]
