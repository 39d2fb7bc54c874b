"""Per-example gradients, clipped and summed: the part of DP-SGD whose sensitivity is bounded."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax.checks import check_count, check_number
from spax.dp.sampling import Batch
from spax.gradients.convolutions import canonical_convolutions
from spax.norms import example_keys
from spax.typing import Array, Key, Number, PyTree

__all__ = ["ClipInfo", "clipped_grad"]

# Norms are float32 sums of many squares: aim below the bound by more than their error.
_SHRINK = 1 - 1e-5


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
      l2_clip_norm: the bound C, > 0; inf: no clipping (and no privacy). May be traced; a traced
        value <= 0 gives zero.
      chunk_size: examples at a time, static; None: all. It trades memory for time and changes the
        result by the rounding of a float32 sum only.

    Returns:
      ``fn(params, batch, *, key=None) -> (sum, info)``: the sum in float32, shaped as the
      parameters, and `ClipInfo`. Each example's key is ``fold_in(key, row)``.

    Guarantees:
      Adding or removing one example moves the sum by at most C in l2, as the float32 numbers that
      they are: masked rows and gradients that are not finite count for zero. Inside ``shard_map``
      this holds of each shard's own sum, over its own rows, whether or not ``check_vma`` is set
      (parameters must not be spread over devices: the length is that of those it is given).

    Raises:
      TypeError: if chunk_size is not an int, or loss_fn does not return a pair.
      ValueError: if a concrete C <= 0, or chunk_size < 1; if the mask is not one bool a row.

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
    check_number("l2_clip_norm", l2_clip_norm, low=0, low_open=True)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)

    def scalar(params: PyTree, example: PyTree, key: Key | None) -> Array:
        out = loss_fn(params, example, key)
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"loss_fn must return a pair (scalar, aux) (got {type(out).__name__})")
        return out[0]

    def one_chunk(
        params: PyTree, data: PyTree, mask: Array, keys: Array | None
    ) -> tuple[PyTree, ClipInfo]:
        # Differentiating by parameters that all shards share would add up over the shards, before
        # any clipping; with a copy on each shard every row keeps a gradient of its own.
        params = _varying(params, _axes((data, mask, keys)))
        per_example = jax.vmap(jax.value_and_grad(scalar), (None, 0, None if keys is None else 0))
        losses, grads = canonical_convolutions(per_example)(params, data, keys)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        scale, norms = _scales(grads, l2_clip_norm)
        finite = jnp.isfinite(norms)
        used = mask & finite
        scale = jnp.where(used, scale, 0.0)

        def total(g: Array) -> Array:
            # 0 * NaN is NaN: what does not count has to be cleared, not only scaled.
            rows = used.reshape(used.shape + (1,) * (g.ndim - 1))
            return jnp.tensordot(scale, jnp.where(rows, g, 0.0), 1, precision=lax.Precision.HIGHEST)

        longer = used & (norms > jnp.asarray(l2_clip_norm, jnp.float32))
        info = ClipInfo(
            jnp.sum(jnp.where(used, losses.astype(jnp.float32), 0.0)),
            jnp.sum(longer.astype(jnp.float32)),
            jnp.sum(mask.astype(jnp.float32)),
            jnp.sum((mask & ~finite).astype(jnp.float32)),
        )
        return jax.tree.map(total, grads), info

    def fn(params: PyTree, batch: Batch, *, key: Key | None = None) -> tuple[PyTree, ClipInfo]:
        mask = batch.mask
        if mask.ndim != 1 or mask.dtype != jnp.bool_:
            raise ValueError(
                f"mask must be one bool a row (got shape {mask.shape}, dtype {mask.dtype})"
            )
        for leaf in jax.tree.leaves(batch.data):
            if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != mask.shape[0]:
                raise ValueError(
                    f"data must have {mask.shape[0]} rows, one a mask entry "
                    f"(got an array of shape {jnp.shape(leaf)})"
                )
        keys = None if key is None else example_keys(key, mask)
        if chunk_size is None or chunk_size >= mask.shape[0]:
            sums, info = one_chunk(params, batch.data, mask, keys)
        else:
            sums, info = _summed_in_chunks(one_chunk, params, batch.data, mask, keys, chunk_size)
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


def _scales(grads: PyTree, bound: Number) -> tuple[Array, Array]:
    """``min(1, C / |g|)`` and ``|g|``, ``[B]`` each; free of overflow of the squares."""
    flat = [g.reshape(g.shape[0], math.prod(g.shape[1:])) for g in jax.tree.leaves(grads)]
    tops = [jnp.max(jnp.abs(g), axis=1, initial=0.0) for g in flat]
    top = jnp.max(jnp.stack(tops), axis=0)
    unit = jnp.where((top > 0) & jnp.isfinite(top), top, 1.0)
    squares = [jnp.sum(jnp.square(g / unit[:, None]), axis=1) for g in flat]
    norms = unit * jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))
    limit = jnp.maximum(jnp.asarray(bound, jnp.float32), 0.0) * _SHRINK
    return jnp.minimum(1.0, limit / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)), norms


def _summed_in_chunks(
    one_chunk: Callable[..., Any],
    params: PyTree,
    data: PyTree,
    mask: Array,
    keys: Array | None,
    size: int,
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
        return jax.tree.map(jnp.add, carry, one_chunk(params, data, mask & inside, keys)), None

    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(one_chunk, params, *jax.tree.map(lambda leaf: leaf[0], chunks)),
    )
    zero = _varying(zero, _axes((params, chunks)))
    return lax.scan(add, zero, (chunks, inside))[0]
