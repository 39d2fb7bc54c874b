"""Per-example gradients, clipped and summed: the part of DP-SGD whose sensitivity is bounded."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from spax.checks import check_choice, check_count, check_number
from spax.dp.book_keeping import (
    add_pairs,
    clip,
    keep,
    lengths_squared,
    open_book,
)
from spax.dp.rules import Rule, flat
from spax.dp.sampling import Batch
from spax.gradients.convolutions import canonical_convolutions
from spax.loops import scan, varying
from spax.norms import example_keys
from spax.typing import Array, Key, Number, PyTree

__all__ = ["ClipInfo", "ClippedGrad", "clipped_grad", "explain_clipping", "per_example_norms"]

# Norms are float32 sums of many squares: aim below the bound by more than their error, which grows
# as the square root of their number.
_LENGTH_ERROR = 1e-5
_LENGTH_ERROR_GROWTH = 2.0**-23
# Below this bound float32 scales and standard deviations could underflow.
_LEAST_BOUND = 1e-30
_MOST_ROWS = 2**20
# What rounding sums may take off C, where smaller blocks of rows can keep it there.
_MOST_MARGIN = 0.01


class ClipInfo(NamedTuple):
    """What happened to the examples of a batch; scalars, none of them private."""

    loss: Array  # mean over the examples that count
    clipped: Array  # share of them whose gradient was longer than the bound
    size: Array  # how many examples there are
    nonfinite: Array  # how many had a gradient that was not finite, and counted for nothing


class ClippedGrad(Protocol):
    """What `clipped_grad` returns."""

    def __call__(
        self, params: PyTree, batch: Batch, *, key: Key | None = None
    ) -> tuple[PyTree, ClipInfo]:
        """The sum of the clipped gradients, and how the batch fared."""

    def sensitivity(self, adjacency: str) -> Number:
        """How far apart in l2 the sums of two neighbouring batches can be.

        C where one example is added or removed (``"add_remove"``), 2 C where one is replaced
        (``"replace"``), whatever the rule.
        """


def clipped_grad(
    loss_fn: Callable[..., tuple[Array, PyTree]],
    *,
    l2_clip_norm: Number,
    chunk_size: int | None = None,
    rule: Rule = flat,
) -> ClippedGrad:
    """Sums per-example gradients, each scaled to length at most C: ``g min(1, C / |g|)``.

    The length is that of all parameters together, unless the rule says otherwise. Per-example
    gradients are not formed where that pays: the loss of one example is taken apart, and lengths
    and sums come from what enters and leaves each layer (`explain_clipping` tells how). This works
    for any loss that JAX can trace, and changes rounding only.

    Args:
      loss_fn: ``(params, example, key) -> (scalar, aux)`` of one example, a row of the batch;
        aux is dropped. (Statistics over a batch do not exist here: no batch norm. For losses
        written for batches there is `check_per_example`.)
      l2_clip_norm: the bound C, > 0; inf: no clipping (and no privacy). May be traced; a value
        below 1e-30 gives zero.
      chunk_size: examples at a time, static; None: all. It trades memory for time and changes the
        result by the rounding of a float32 sum only.
      rule: `flat`, `per_layer`, `automatic` or `normalised`.

    Returns:
      ``fn(params, batch, *, key=None) -> (sum, info)``: the sum in float32, shaped as the
      parameters, and `ClipInfo`. Each example's key is ``fold_in(key, row)``. And
      ``fn.sensitivity(adjacency)``, C or 2 C.

    Guarantees:
      Adding or removing one example moves the sum by at most C in l2. Masked rows and gradients
      that are not finite count for zero. Covered is what float32 makes of the sum: rows of a block
      may be added in any order, blocks are added in 64 bits, and ``B (b + 7) / 2^24`` is taken off
      C for B rows in blocks of b, which is at most 1 % as long as B <= 20,000 (b is the largest
      for which it is). Covered is the rounding of lengths: by ``1e-5 + 2^-23 sqrt(n)`` of C for n
      parameters (rounding errors of a sum of squares taken as independent), and by 2^-20 of the
      squared sum of the lengths of what a length is computed from. Not covered: the rounding within
      one example's gradient, where a layer's weights are used at many positions whose contributions
      nearly cancel (they are added together with those of other rows, in any order), or whose
      entries at one position are more than 2^60 times those at another; reduced
      precision that hardware forces upon matrix products in spite of ``precision=HIGHEST``;
      subnormal numbers that it flushes. Inside ``shard_map`` all this
      holds of each shard's own sum, over its own rows, whether or not ``check_vma`` is set
      (parameters must not be spread over devices: the length is that of those it is given).

    Raises:
      TypeError: if chunk_size is not an int, loss_fn does not return a pair, or a parameter is not
        floating point.
      ValueError: if C is not a scalar, a concrete C <= 0, or chunk_size < 1; if the mask is not one
        bool a row, there are more than 2^20 rows, or the loss is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> fn = clipped_grad(lambda w, x, key: (w @ x, None), l2_clip_norm=1.0)
      >>> batch = Batch(jnp.array([[3.0, 4.0], [0.5, 0.0]]), jnp.array([True, True]))
      >>> total, info = fn(jnp.zeros(2), batch)
      >>> [round(float(v), 3) for v in total], float(info.clipped), fn.sensitivity("replace")
      ([1.1, 0.8], 0.5, 2.0)

    References:
      M. Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133,
      Algorithm 1.
      Z. Bu, Y.-X. Wang, S. Zha, G. Karypis, Differentially private optimization on large model at
      small cost, 2022, arXiv:2210.00038, Algorithm 1.
    """
    check_number("l2_clip_norm", l2_clip_norm, low=0, low_open=True, scalar=True)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a clipping rule such as flat (got {rule!r})")
    scalar = partial(_scalar, loss_fn)

    def one_chunk(
        params: PyTree, limit: Array, block: int, data: PyTree, mask: Array, keys: Array | None
    ) -> tuple[Any, ClipInfo]:
        # Differentiating by parameters that all shards share would add up over the shards, before
        # any clipping; with a copy on each shard every row keeps a gradient of its own.
        params = varying(params, (data, mask, keys))
        book = open_book(scalar, params, data, keys)
        groups, shares = rule.groups(params)
        part = jnp.asarray(shares, jnp.float32)

        def run(params: list[Array], rows: list[Array], mask: Array, limit: Array) -> Any:
            losses, pages = keep(book, params, rows)
            of = [groups[entry.leaf] for entry in book.entries]
            bounds = jnp.asarray(l2_clip_norm, jnp.float32) * part
            return losses, clip(book, pages, mask, rule, of, bounds, limit * part, block)

        run = canonical_convolutions(run)
        flat_params, rows = jax.tree.leaves(params), jax.tree.leaves((data, keys))
        losses, (total, used, longer) = run(flat_params, rows, mask, limit)
        info = ClipInfo(
            jnp.sum(jnp.where(used, losses.astype(jnp.float32), 0.0)),
            jnp.sum(longer.astype(jnp.float32)),
            jnp.sum(mask.astype(jnp.float32)),
            jnp.sum((mask & ~used).astype(jnp.float32)),
        )
        return total, info

    def fn(params: PyTree, batch: Batch, *, key: Key | None = None) -> tuple[PyTree, ClipInfo]:
        mask, keys = batch.mask, _checked(params, batch, key)
        rows = mask.shape[0]
        params = jax.tree.map(jnp.asarray, params)
        block, margin = _block_and_margin(min(rows, chunk_size or rows), rows)
        bound = jnp.asarray(l2_clip_norm, jnp.float32)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        margin *= 1 - _LENGTH_ERROR - _LENGTH_ERROR_GROWTH * math.sqrt(size)
        limit = jnp.where(bound < _LEAST_BOUND, 0.0, bound) * margin
        fixed = partial(one_chunk, params, limit, block)
        data = jax.tree.map(jnp.asarray, batch.data)
        if chunk_size is None or chunk_size >= rows:
            (high, low), info = fixed(data, mask, keys)
        else:
            like = (params, limit, data, mask, keys)
            (high, low), info = _summed_in_chunks(fixed, data, mask, keys, chunk_size, like)
        # The one rounding of the whole, which the margin pays for.
        sums = high if low is None else [h + v for h, v in zip(high, low, strict=True)]
        count = jnp.maximum(info.size - info.nonfinite, 1.0)
        info = info._replace(loss=info.loss / count, clipped=info.clipped / count)
        return jax.tree.unflatten(jax.tree.structure(params), sums), info

    def sensitivity(adjacency: str) -> Number:
        check_choice("adjacency", adjacency, ("add_remove", "replace"))
        return l2_clip_norm if adjacency == "add_remove" else 2 * l2_clip_norm

    cast(Any, fn).sensitivity = sensitivity
    return cast(ClippedGrad, fn)


def per_example_norms(
    loss_fn: Callable[..., tuple[Array, PyTree]],
    params: PyTree,
    batch: Batch,
    *,
    key: Key | None = None,
) -> Array:
    """The l2 norm of each example's gradient, over all parameters; not private.

    Args:
      loss_fn: ``(params, example, key) -> (scalar, aux)`` of one example.
      params: pytree of floating arrays.
      batch: rows; masked ones have a norm too.
      key: of which each example gets ``fold_in(key, row)``.

    Returns:
      float32 ``[B]``; inf or NaN where a gradient is not finite, or its square overflows.

    Raises:
      TypeError: if a parameter is not floating point.
      ValueError: as `clipped_grad`.

    Example:
      >>> import jax.numpy as jnp
      >>> batch = Batch(jnp.array([[3.0, 4.0], [0.5, 0.0]]), jnp.array([True, True]))
      >>> per_example_norms(lambda w, x, key: (w @ x, None), jnp.zeros(2), batch).tolist()
      [5.0, 0.5]

    References:
      X. Li, F. Tramer, P. Liang, T. Hashimoto, Large language models can be strong differentially
      private learners, 2022, arXiv:2110.05679, Section 4.
    """
    keys = _checked(params, batch, key)
    data, params = jax.tree.map(jnp.asarray, (batch.data, params))
    params = varying(params, (data, keys))
    book = open_book(partial(_scalar, loss_fn), params, data, keys)
    if not book.entries:
        return jnp.zeros(batch.mask.shape, jnp.float32)

    def norms(params: list[Array], rows: list[Array]) -> Array:
        return jnp.sqrt(jnp.sum(lengths_squared(book, keep(book, params, rows)[1]), axis=0))

    rows = jax.tree.leaves((data, keys))
    return canonical_convolutions(norms)(jax.tree.leaves(params), rows)


def explain_clipping(
    loss_fn: Callable[..., tuple[Array, PyTree]],
    params: PyTree,
    batch: Batch,
    *,
    key: Key | None = None,
) -> str:
    """Tells how `clipped_grad` gets at the gradient of each parameter, and why.

    Args:
      loss_fn: ``(params, example, key) -> (scalar, aux)`` of one example.
      params: pytree of floating arrays.
      batch: rows; only shapes and types are looked at.
      key: as for `clipped_grad`.

    Returns:
      A table, to be printed: for each parameter its shape, the rule, how many bytes are kept for
      it (besides what enters and leaves the layer), and the reason.

    Raises:
      TypeError: if a parameter is not floating point.
      ValueError: as `clipped_grad`.

    Example:
      >>> import jax.numpy as jnp
      >>> batch = Batch(jnp.ones((8, 3)), jnp.ones(8, bool))
      >>> print(explain_clipping(lambda p, x, key: (p["w"] @ x, None), {"w": jnp.zeros(3)}, batch))
      parameter  shape  rule      bytes  why
      ['w']      (3,)   dot Gram  64     1 positions of 3 x 1: Gram 40, gradient 96 operations

    References:
      Z. Bu, Y.-X. Wang, S. Zha, G. Karypis, Differentially private optimization on large model at
      small cost, 2022, arXiv:2210.00038, Section 3 (the choice by cost).
    """
    keys = _checked(params, batch, key)
    book = open_book(partial(_scalar, loss_fn), params, batch.data, keys)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    count = batch.mask.shape[0]
    lines = [("parameter", "shape", "rule", "bytes", "why")]
    entries = {entry.leaf: entry for entry in book.entries}
    for leaf, (name, shape) in enumerate(zip(names, book.shapes, strict=True)):
        entry = entries.get(leaf)
        if entry is None:
            rule, kept, why = "none", 0, "the loss does not depend on it"
        elif entry.form is None:
            rule, kept, why = "vmap", math.prod(shape), book.plan.tapped[leaf]
        else:
            rule, kept, why = entry.form.rule, entry.form.numbers, entry.form.why
        lines.append((name or "params", str(shape), rule, f"{4 * count * kept:,}", why))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(line[:4], widths, strict=True)), line[4]])
        for line in lines
    )


def _scalar(
    loss_fn: Callable[..., tuple[Array, PyTree]], params: PyTree, example: PyTree, key: Key | None
) -> Array:
    out = loss_fn(params, example, key)
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"loss_fn must return a pair (scalar, aux) (got {type(out).__name__})")
    return out[0]


def _checked(params: PyTree, batch: Batch, key: Key | None) -> Array | None:
    """A key for each row; raises where the arguments do not fit together."""
    mask = batch.mask
    if mask.ndim != 1 or mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask must be one bool a row (got shape {mask.shape}, dtype {mask.dtype})"
        )
    if not jax.tree.leaves(params):
        raise ValueError(f"params must hold at least one array (got params={params!r})")
    for leaf in jax.tree.leaves(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"params must be floating point (got dtype {jnp.result_type(leaf)})")
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
    return None if key is None else example_keys(key, mask)


def rounding_margin(rows: int) -> float:
    """What to shrink C by, so that rounding a sum of so many clipped rows to float32 is covered.

    Rounding to nearest moves a vector by at most 2^-24 of its length, which is at most ``rows C``,
    and does so on either of two neighbouring data sets.
    """
    return 1 - 2.0**-23 * rows


def _block_and_margin(most: int, rows: int) -> tuple[int, float]:
    """How many rows to add in float32, at most so many, and what to shrink C by.

    Each addition rounds a partial sum of at most k C, k = 1 ... b, and so errs by at most k C /
    2^24: ``b (b + 1) / 2`` of these in a block. Two more roundings of each summand, as it is scaled
    and multiplied, make it ``b (b + 5) / 2``; all blocks ``B (b + 5) / 2``; two neighbouring
    batches ``B (b + 5)``. Rounding the whole costs 2 B.
    """
    block = max(1, min(most, int(_MOST_MARGIN * 2**24 / max(rows, 1)) - 7))
    return block, 1 - 2.0**-24 * rows * (block + 7)


def _summed_in_chunks(
    one_chunk: Callable[..., Any],
    data: PyTree,
    mask: Array,
    keys: Array | None,
    size: int,
    like: PyTree,
) -> tuple[Any, ClipInfo]:
    """Adds up what ``one_chunk`` returns, over chunks; the last is padded with masked rows."""
    rows = mask.shape[0]
    count = -(-rows // size)
    # Padding repeats row 0, which the mask takes out.
    index = jnp.arange(count * size)
    inside = index < rows
    index = jnp.where(inside, index, 0)

    def cut(leaf: Array) -> Array:
        return leaf[index].reshape(count, size, *jnp.shape(leaf)[1:])

    chunks = jax.tree.map(cut, (data, mask, keys))
    inside = inside.reshape(count, size)

    def add(carry: PyTree, chunk: Any) -> tuple[PyTree, None]:
        (data, mask, keys), inside = chunk
        sums, info = one_chunk(data, mask & inside, keys)
        return (add_pairs(carry[0], sums), jax.tree.map(jnp.add, carry[1], info)), None

    def start(chunk: Any) -> PyTree:
        (high, _), info = one_chunk(*chunk)
        return (high, high), info

    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(start, jax.tree.map(lambda leaf: leaf[0], chunks)),
    )
    return scan(add, varying(zero, like), (chunks, inside))[0]
