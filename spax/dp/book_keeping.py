"""Per-example gradients kept as what their sums are made of, and clipped without being formed.

One forward and one backward pass over the data give what enters and leaves every equation that has
a parameter (see `spax.dp.taps`); lengths and sums come from these (see `spax.dp.ghost_norms`), one
product or convolution a layer.

References:
  Z. Bu, Y.-X. Wang, S. Zha, G. Karypis, Differentially private optimization on large model at small
  cost, 2022, arXiv:2210.00038, Algorithm 1 (book-keeping).
  X. Li, F. Tramer, P. Liang, T. Hashimoto, Large language models can be strong differentially
  private learners, 2022, arXiv:2110.05679, Section 4 (ghost norms).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from spax.dp.ghost_norms import Form, form_of
from spax.dp.jaxprs import shaped, trace
from spax.dp.rules import Rule
from spax.dp.taps import Plan, Site, evaluate_tapped, make_plan, shape_of_tap, tap
from spax.loops import varying
from spax.typing import Array, Key, PyTree

__all__ = [
    "Book",
    "Entry",
    "add_pairs",
    "clip",
    "keep",
    "lengths_squared",
    "open_book",
]

# Rounding of products of many positions, against the square of the sum of their lengths.
_SLACK = 2.0**-20
# Up to this size of all entries, and from this limit on, squares that vanish do not matter.
_LARGEST, _LEAST_LIMIT = 2.0**12, 2.0**-10
_EXPONENT = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One parameter in the book.

    Args:
      leaf: which.
      site: where it is used; None: it is tapped itself.
      form: how its norms and sums are taken; None: from its per-example gradients.
    """

    leaf: int
    site: Site | None
    form: Form | None


@dataclasses.dataclass(frozen=True, eq=False)
class Book:
    """A loss, taken apart.

    Args:
      plan: where parameters are used.
      entries: one for each parameter that the loss depends on.
      shapes: of all parameters.
    """

    plan: Plan
    entries: tuple[Entry, ...]
    shapes: tuple[tuple[int, ...], ...]


# Of an entry: what enters and leaves its equation, or its per-example gradients, ``[B, ...]``.
Page = tuple[Array, ...]


def open_book(
    loss: Callable[[PyTree, PyTree, Key | None], Array],
    params: PyTree,
    data: PyTree,
    keys: Array | None,
) -> Book:
    """Takes the loss of one example apart.

    Args:
      loss: ``(params, example, key) -> scalar``.
      params: floating arrays.
      data: rows, ``[B, ...]``.
      keys: one a row, or None.
    """
    leaves, treedef = jax.tree.flatten(params)
    rows, rows_treedef = jax.tree.flatten((data, keys))

    def flat(*args: Array) -> Array:
        example, key = jax.tree.unflatten(rows_treedef, args[len(leaves) :])
        value = loss(jax.tree.unflatten(treedef, args[: len(leaves)]), example, key)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                "loss_fn must return a real scalar for one example (got "
                f"shape {jnp.shape(value)}, dtype {jnp.result_type(value)})"
            )
        return jnp.asarray(value)

    avals = [jax.typeof(leaf) for leaf in leaves]
    avals += [core.mapped_aval(jnp.shape(row)[0], 0, jax.typeof(row)) for row in rows]
    closed = trace(flat, *avals)
    plan = make_plan(closed, len(leaves), _refused)
    shapes = tuple(jnp.shape(leaf) for leaf in leaves)
    entries = [Entry(leaf, None, None) for leaf in plan.tapped]
    entries += [Entry(s.leaf, s, form_of(s, shapes[s.leaf])) for s in plan.sites.values()]
    return Book(plan, tuple(sorted(entries, key=lambda e: e.leaf)), shapes)


def _refused(sites: Sequence[Site]) -> str:
    if len(sites) > 1:
        return f"used {len(sites)} times"
    (site,) = sites
    if shaped(site.eqn.outvars[0]).size == 0:
        return "nothing comes of it"
    if site.eqn.primitive.name == "gather" and any(f.stacked for f in site.frames):
        return "a table for each iteration of a scan"
    return ""


def keep(
    book: Book, params: Sequence[Array], rows: Sequence[Array]
) -> tuple[Array, tuple[Page, ...]]:
    """Losses ``[B]``, and a page for each entry.

    Args:
      book: from `open_book`.
      params: flat.
      rows: data and keys, flat, ``[B, ...]``.
    """
    plan = book.plan

    def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
        return varying(jnp.zeros(shape, dtype), rows)

    def one(rows: Sequence[Array]) -> tuple[Array, tuple[Page, ...]]:
        def run(taps: tuple[dict[int, Array], dict[Any, Array]]) -> tuple[Array, Any]:
            args = [tap(p, taps[0][i]) if i in taps[0] else p for i, p in enumerate(params)]
            return evaluate_tapped(plan, [*args, *rows], taps[1])

        taps = (
            {i: zeros(params[i].shape, params[i].dtype) for i in plan.tapped},
            {
                path: zeros(shape_of_tap(site), shaped(site.eqn.outvars[0]).dtype)
                for path, site in plan.sites.items()
            },
        )
        loss, back, inputs = jax.vjp(run, taps, has_aux=True)
        ((whole, parts),) = back(jnp.ones_like(loss))
        pages = [
            (whole[e.leaf],) if e.site is None else (inputs[e.site.path], parts[e.site.path])
            for e in book.entries
        ]
        return loss, tuple(pages)

    losses, pages = jax.vmap(one)(rows)
    return losses, tuple(map(_made, book.entries, pages))


def _made(entry: Entry, page: Page) -> Page:
    """Per-example gradients where they are wanted."""
    if entry.form is None:
        return (page[0].astype(jnp.float32),)
    return (entry.form.gradients(page[0], page[1]),) if entry.form.makes else page


def _squares(entry: Entry, page: Page, slack: float) -> Array:
    if len(page) == 1:
        flat = page[0].reshape(page[0].shape[0], -1)
        return jnp.sum(jnp.square(flat), axis=1)
    assert entry.form is not None
    a, d = page
    return entry.form.squares(a, d, slack)


def lengths_squared(book: Book, pages: Sequence[Page]) -> Array:
    """Squared norms, ``[entries, B]``."""
    return jnp.stack([_squares(e, p, 0.0) for e, p in zip(book.entries, pages, strict=True)])


def clip(
    book: Book,
    pages: tuple[Page, ...],
    mask: Array,
    rule: Rule,
    groups: Sequence[int],
    bounds: Array,
    limits: Array,
    block: int,
) -> tuple[tuple[list[Array], list[Array] | None], Array, Array]:
    """The sum of the gradients after the rule.

    Args:
      book: from `open_book`.
      pages: from `keep`.
      mask: bool ``[B]``.
      rule: of clipping.
      groups: of each entry.
      bounds: of each group, to tell which gradients are longer.
      limits: of each group, what no gradient may be longer than after the rule.
      block: rows that may be added in 32 bits, static.

    Returns:
      The sum, flat, as a pair of float32 (the second None where it would be zero); which rows were
      used ``[B]``; and which of them were longer than their bound ``[B]``.
    """
    count = limits.shape[0]
    if not book.entries:
        zero = [jnp.zeros(shape, jnp.float32) for shape in book.shapes]
        return (zero, None), mask, jnp.zeros_like(mask)
    squares = jnp.stack([_squares(e, p, _SLACK) for e, p in zip(book.entries, pages, strict=True)])

    nothing = jnp.zeros(mask.shape, jnp.float32)

    def grouped(values: Array) -> Array:
        return jnp.stack(
            [
                sum((v for v, g in zip(values, groups, strict=True) if g == i), nothing)
                for i in range(count)
            ]
        )

    lengths = grouped(squares)
    # Where nothing can overflow or vanish, which is nearly always, units are left out.
    safe = jnp.all(lengths < 2.0**80) & jnp.all(limits > _LEAST_LIMIT)
    for page in pages:
        if len(page) == 2:
            # An entry below 2^-63 vanishes where it is squared. What it is multiplied by must not
            # be large, or a gradient would be longer than it looks; nor infinite, even where a
            # stride skips it.
            safe &= jnp.all(jnp.stack([_largest(value) for value in page]) < _LARGEST)
    if rule.shrinks:
        # What vanished must not count in what is made longer either.
        safe &= jnp.all(lengths > 2.0**-28)

    def plain(pages: tuple[Page, ...]) -> Any:
        length, one = jnp.sqrt(lengths), jnp.ones_like(mask, jnp.float32)
        scales = [rule.scale(length[i], one, limits[i]) for i in range(count)]
        scales = [jnp.where(mask, s, 0.0) for s in scales]
        total = _total(book, pages, [scales[g] for g in groups], block)
        return total, mask, mask & jnp.any(length > bounds[:, None], axis=0)

    def careful(pages: tuple[Page, ...]) -> Any:
        finite = jnp.stack([_finite(v) for page in pages for v in page])
        used = mask & jnp.all(finite, axis=0)
        scaled = [_to_units(page, used) for page in pages]
        pages, exponents = tuple(p for p, _ in scaled), jnp.stack([e for _, e in scaled])
        squares = [_squares(e, p, _SLACK) for e, p in zip(book.entries, pages, strict=True)]
        parts = jnp.stack(squares)
        least = jnp.iinfo(jnp.int32).min // 2
        tops = [
            jnp.max(
                jnp.stack(
                    [
                        jnp.full(mask.shape, least),
                        *(
                            jnp.where(p > 0, e, least)
                            for p, e, g in zip(parts, exponents, groups, strict=True)
                            if g == i
                        ),
                    ]
                ),
                axis=0,
            )
            for i in range(count)
        ]
        top = jnp.stack([jnp.clip(t, -_EXPONENT, _EXPONENT) for t in tops])
        of = np.asarray(groups)
        length = jnp.sqrt(grouped(parts * jnp.square(_power(exponents - top[of]))))
        used &= jnp.all(jnp.isfinite(length), axis=0)
        unit = _power(top)
        scales = [rule.scale(length[i], unit[i], limits[i]) for i in range(count)]
        scales = [jnp.where(used, s, 0.0) for s in scales]
        by_entry = [scales[g] * _power(e - top[g]) for g, e in zip(groups, exponents, strict=True)]
        total = _total(book, pages, by_entry, block)
        return total, used, used & jnp.any(length > bounds[:, None] / unit, axis=0)

    like = (pages, mask, limits)
    marked = [partial(_marked, like, branch) for branch in (plain, careful)]
    return lax.cond(safe, *marked, pages)


def _marked(like: PyTree, branch: Callable[..., Any], pages: Any) -> Any:
    return varying(branch(pages), like)


def _largest(value: Array) -> Array:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.zeros((), jnp.float32)
    return jnp.max(jnp.abs(value), initial=0).astype(jnp.float32)


def _finite(value: Array) -> Array:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.ones(value.shape[0], bool)
    return jnp.all(jnp.isfinite(value.reshape(value.shape[0], -1)), axis=1)


def _to_units(page: Page, used: Array) -> tuple[Page, Array]:
    """Rows divided by powers of two, so that no entry exceeds 2; and the sum of the exponents.

    A power of two is exact to divide by, and far from underflow and overflow, as its reciprocal has
    to be (compilers multiply by that, and flush it if subnormal). Rows not used are cleared: 0 *
    NaN is NaN.
    """
    exponent: Array = jnp.zeros(used.shape, jnp.int32)
    values = []
    for value in page:
        if jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(jnp.float32)
            flat = jnp.abs(value.reshape(value.shape[0], -1))
            top = jnp.max(jnp.where(used[:, None], flat, 0.0), axis=1, initial=0.0)
            bits = lax.bitcast_convert_type(top, jnp.int32) >> 23
            own = jnp.clip(bits - 127, -_EXPONENT, _EXPONENT)
            shape = (-1,) + (1,) * (value.ndim - 1)
            value = jnp.where(used.reshape(shape), value / _power(own).reshape(shape), 0.0)
            exponent = exponent + own
        values.append(value)
    return tuple(values), exponent


def _power(exponent: Array) -> Array:
    """Two to an integer, 0 where that is below the normal numbers."""
    bits = (jnp.clip(exponent, -127, 127) + 127).astype(jnp.int32) << 23
    return lax.bitcast_convert_type(bits, jnp.float32)


def _total(
    book: Book, pages: Sequence[Page], scales: Sequence[Array], block: int
) -> tuple[list[Array], list[Array] | None]:
    """The sum over rows of scale times gradient, rows of a block in 32 bits, blocks in 64."""
    rows = scales[0].shape[0]
    count = -(-rows // block)
    if count <= 1:
        return _total_of_block(book, (pages, scales)), None
    size = -(-rows // count)

    def cut(value: Array) -> Array:
        value = jnp.pad(value, [(0, count * size - rows)] + [(0, 0)] * (value.ndim - 1))
        return value.reshape(count, size, *value.shape[1:])

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        return add_pairs(carry, (_total_of_block(book, part), None)), None

    zero = [jnp.zeros(shape, jnp.float32) for shape in book.shapes]
    start = varying((zero, zero), (pages, scales))
    return lax.scan(add, start, jax.tree.map(cut, (list(pages), list(scales))))[0]


def _total_of_block(book: Book, block: tuple[Sequence[Page], Sequence[Array]]) -> list[Array]:
    totals: list[Array] = [jnp.zeros(shape, jnp.float32) for shape in book.shapes]
    for entry, page, scale in zip(book.entries, *block, strict=True):
        if len(page) == 1:
            total = jnp.einsum("z,z...->...", scale, page[0], precision=lax.Precision.HIGHEST)
        else:
            assert entry.form is not None
            a, d = page
            scaled = d.astype(jnp.float32) * scale.reshape(-1, *(1,) * (d.ndim - 1))
            total = entry.form.total(a, scaled)
        totals[entry.leaf] = total
    return totals


def add_pairs(a: Any, b: Any) -> tuple[list[Array], list[Array]]:
    """The sum of two sums, each a pair of float32 (high, low or None), in 64 bits."""

    def wide(pair: Any, i: int) -> Array:
        high = pair[0][i].astype(jnp.float64)
        return high if pair[1] is None else high + pair[1][i].astype(jnp.float64)

    with jax.enable_x64(True):
        sums = [wide(a, i) + wide(b, i) for i in range(len(a[0]))]
        high = [s.astype(jnp.float32) for s in sums]
        low = [
            (s - h.astype(jnp.float64)).astype(jnp.float32) for s, h in zip(sums, high, strict=True)
        ]
        return high, low
