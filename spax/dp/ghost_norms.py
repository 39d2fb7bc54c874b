"""Norms and sums of per-example gradients of one equation, from what enters and leaves it.

Each gradient is a sum of outer products over positions, ``G = sum_t a_t d_t^T``. Its squared norm
is ``sum_st <a_s, a_t> <d_s, d_t>``, which needs no G; where that is dearer, G is made.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives

from spax.dp.jaxprs import bind, shaped
from spax.dp.taps import Site, view
from spax.loops import varying
from spax.typing import Array

__all__ = ["Form", "form_of"]

# What reading or writing a number of memory costs, in multiplications and additions.
_TOUCH = 10.0
_LETTERS = "abcdefghijklmnopqrstuvwxyABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HIGHEST = lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """How to get norms and sums at one site.

    Args:
      rule: the name of the rule.
      makes: whether per-example gradients are made, rather than their norms alone.
      why: what the choice was made by.
      numbers: how many numbers a row keeps for it, beyond what enters and leaves the equation.
      squares: ``(a, d, slack) -> [B]``, squared norms in float32, and ``slack`` times the square of
        ``sum_t |a_t| |d_t|`` where they are differences of such products, which rounding blurs.
      gradients: ``(a, d) -> [B, ...]``, shaped as the parameter, float32.
      total: ``(a, d) -> ...``, their sum over rows.
    """

    rule: str
    makes: bool
    why: str
    numbers: int
    squares: Callable[[Array, Array, float], Array]
    gradients: Callable[[Array, Array], Array]
    total: Callable[[Array, Array], Array]


def form_of(site: Site, shape: tuple[int, ...]) -> Form:
    """The form of a site.

    Args:
      site: the equation.
      shape: of the parameter.
    """
    if site.eqn.primitive is primitives.gather_p:
        return _lookup(site, shape)
    outer = _dot(site) if site.eqn.primitive is primitives.dot_general_p else _conv(site)
    gram = 2.0 * outer.groups * outer.positions**2 * (outer.rows + outer.columns + 2 * _TOUCH)
    if outer.positions == 1:
        gram = _TOUCH * outer.groups * (outer.rows + outer.columns)
    size = outer.groups * outer.rows * outer.columns
    made = 3 * _TOUCH * size + outer.cost
    makes = made < gram
    sizes = f"{outer.positions} positions of {outer.rows} x {outer.columns}"

    def gradients(a: Array, d: Array) -> Array:
        found = outer.fold(outer.outer(outer.unfold(a), outer.split(d), True))
        return jax.vmap(_back(site, shape))(found)

    def squares(a: Array, d: Array, slack: float) -> Array:
        if makes:
            return _squared(outer.outer(outer.unfold(a), outer.split(d), True))
        return outer.gram(outer.unfold(a), outer.split(d), slack)

    def total(a: Array, d: Array) -> Array:
        return _back(site, shape)(outer.total(a, d))

    return Form(
        outer.name + (" gradient" if makes else " Gram"),
        makes,
        f"{sizes}: Gram {gram:,.0f}, gradient {made:,.0f} operations",
        size if makes else 2 * outer.groups * outer.positions**2,
        squares,
        gradients,
        total,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Outer:
    """Sums of outer products over positions, by einsum labels ("z" is the row)."""

    name: str
    a: str  # of what enters
    d: str  # of the cotangent
    out: str  # of the gradient, without the row
    sizes: dict[str, int]
    shared: str  # positions
    unfold: Callable[[Array], Array]
    split: Callable[[Array], Array]
    fold: Callable[[Array], Array]  # of gradients with a leading row
    total: Callable[[Array, Array], Array]
    cost: float  # of making a row's gradient, beyond touching it

    def _size(self, labels: set[str]) -> int:
        return math.prod(self.sizes[c] for c in labels)

    @property
    def positions(self) -> int:
        return self._size(set(self.shared))

    @property
    def groups(self) -> int:
        return self._size((set(self.a) & set(self.d)) - set(self.shared) - {"z"})

    @property
    def rows(self) -> int:
        return self._size(set(self.a) - set(self.d))

    @property
    def columns(self) -> int:
        return self._size(set(self.d) - set(self.a))

    def outer(self, a: Array, d: Array, by_row: bool) -> Array:
        out = "z" + self.out if by_row else self.out
        return _einsum(f"{self.a},{self.d}->{out}", a, d)

    def gram(self, a: Array, d: Array, slack: float) -> Array:
        groups = "".join(c for c in self.a if c in self.d and c not in self.shared + "z")
        at = groups + self.shared
        norms = [_einsum(f"{s},{s}->z{at}", v, v) for s, v in ((self.a, a), (self.d, d))]
        if self.positions == 1:
            return jnp.sum((norms[0] * norms[1]).reshape(a.shape[0], -1), axis=1)
        rest = [c for c in _LETTERS if c not in self.sizes]
        primed = dict(zip(self.shared, rest, strict=False))
        out = f"z{at}{''.join(primed.values())}"

        def products(labels: str, value: Array) -> Array:
            other = "".join(primed.get(c, c) for c in labels)
            return _einsum(f"{labels},{other}->{out}", value, value)

        both = products(self.a, a) * products(self.d, d)
        both = jnp.sum(both.reshape(a.shape[0], -1), axis=1)
        lengths = jnp.sqrt(norms[0] * norms[1]).reshape(a.shape[0], self.groups, self.positions)
        blur = jnp.sum(jnp.square(jnp.sum(lengths, axis=2)), axis=1)
        return jnp.maximum(both, 0.0) + slack * blur


def _einsum(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, precision=_HIGHEST, preferred_element_type=jnp.float32)


def _squared(value: Array) -> Array:
    return jnp.sum(jnp.square(value.reshape(value.shape[0], -1)), axis=1)


def _back(site: Site, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """From the gradient of what the site sees to that of the parameter."""

    def back(value: Array) -> Array:
        return _transposed(lambda leaf: view(site, leaf), shape, value)

    return back


def _transposed(linear: Callable[[Array], Array], shape: tuple[int, ...], value: Array) -> Array:
    """The transpose of a linear function of a float32 array of this shape."""
    # A zero of the same kind under shard_map, which linear_transpose cannot be told.
    zero = varying(jnp.zeros(shape, jnp.float32), value)
    return jax.vjp(linear, zero)[1](value)[0]


def _same(value: Array) -> Array:
    return value


def _frames(site: Site, letters: Any, sizes: dict[str, int]) -> tuple[str, str, str]:
    """Labels of the loops around a site: all, those that cut the parameter, those that do not."""
    labels = [next(letters) for _ in site.frames]
    sizes |= {c: f.length for c, f in zip(labels, site.frames, strict=True)}
    pairs = list(zip(labels, site.frames, strict=True))
    cut = "".join(c for c, f in pairs if f.stacked)
    return "".join(labels), cut, "".join(c for c, f in pairs if not f.stacked)


def _dot(site: Site) -> _Outer:
    letters, sizes = iter(_LETTERS), {"z": 1}
    loops, cut, shared = _frames(site, letters, sizes)
    (contracted, batch) = site.eqn.params["dimension_numbers"]
    p, q = site.operand, 1 - site.operand
    shapes = [shaped(v).shape for v in site.eqn.invars]
    labels = [[""] * len(shape) for shape in shapes]
    for pairs in (batch, contracted):
        for i, j in zip(pairs[p], pairs[q], strict=True):
            labels[p][i] = labels[q][j] = next(letters)
    free: list[str] = []
    for side in (0, 1):
        for i, label in enumerate(labels[side]):
            if not label:
                labels[side][i] = next(letters)
        used = {*batch[side], *contracted[side]}
        free += [c for i, c in enumerate(labels[side]) if i not in used]
        sizes |= dict(zip(labels[side], shapes[side], strict=True))
    out = [labels[0][i] for i in batch[0]] + free
    kept = "".join(labels[p])
    shared += "".join(c for c in labels[q] if c not in kept)
    a, d = "z" + loops + "".join(labels[q]), "z" + loops + "".join(out)

    def total(inputs: Array, cotangents: Array) -> Array:
        return _einsum(f"{a},{d}->{cut + kept}", inputs, cotangents)

    flops = 2.0 * math.prod(sizes.values())
    return _Outer("dot", a, d, cut + kept, sizes, shared, _same, _same, _same, total, flops)


def _conv(site: Site) -> _Outer:
    letters, sizes = iter(_LETTERS), {"z": 1}
    loops, cut, shared = _frames(site, letters, sizes)
    eqn, params = site.eqn, site.eqn.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    exact = params | {"precision": _HIGHEST, "preferred_element_type": jnp.dtype("float32")}
    wide = eqn.replace(params=exact)
    kernel, out = shaped(eqn.invars[1]).shape, shaped(eqn.outvars[0]).shape
    lead, count = 1 + len(site.frames), len(kernel) - 2
    features, channels = kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]]
    image, group, feature, channel = (next(letters) for _ in range(4))
    where = "".join(next(letters) for _ in range(count))
    window = "".join(next(letters) for _ in range(count))
    window_shape = tuple(kernel[i] for i in numbers.rhs_spec[2:])
    where_shape = tuple(out[i] for i in numbers.out_spec[2:])
    sizes |= {image: out[numbers.out_spec[0]], group: groups, channel: channels}
    sizes |= {feature: features // groups}
    sizes |= dict(zip(where, where_shape, strict=True)) | dict(
        zip(window, window_shape, strict=True)
    )
    a = "z" + loops + image + where + window + group + channel
    d = "z" + loops + image + where + group + feature

    def move(value: Array, spec: tuple[int, ...]) -> Array:
        order = (spec[0], *spec[2:], spec[1])
        return value.transpose(*range(lead), *(lead + i for i in order))

    def unfold(inputs: Array) -> Array:
        """Windows: ``[B, loops, images, places, window, groups, channels]``."""
        value = move(inputs, numbers.lhs_spec)
        padding = [(0, 0, 0)] * (lead + 1)
        padding += [
            (*p, dilation - 1)
            for p, dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
        ]
        value = lax.pad(value, np.zeros((), value.dtype), [*padding, (0, 0, 0)])
        for i in range(count):
            starts = np.arange(where_shape[i]) * params["window_strides"][i]
            offsets = np.arange(window_shape[i]) * params["rhs_dilation"][i]
            # Each place becomes a pair: the place and, after all places, its part of the window.
            axis = lead + 1 + i
            stride = params["window_strides"][i]
            parts = [
                lax.slice_in_dim(value, int(o), int(o + starts[-1]) + 1, stride, axis)
                for o in offsets
            ]
            value = jnp.stack(parts, axis=lead + 1 + count + i)
        return value.reshape(*value.shape[:-1], groups, channels)

    def split(cotangents: Array) -> Array:
        value = move(cotangents, numbers.out_spec)
        return value.reshape(*value.shape[:-1], groups, features // groups)

    def fold(found: Array) -> Array:
        """From ``[B, cut, groups, features, channels, window]`` to the layout of the kernel."""
        ahead = 1 + len(cut)
        value = found.reshape(*found.shape[:ahead], features, channels, *window_shape)
        order = np.argsort(numbers.rhs_spec)
        return value.transpose(*range(ahead), *(ahead + int(i) for i in order))

    def total(inputs: Array, cotangents: Array) -> Array:
        stacked = [i for i, f in enumerate(site.frames) if f.stacked]

        def one(inputs: Array, cotangents: Array) -> Array:
            """Over rows and iterations that share a kernel: one batch."""

            def batched(weights: Array) -> Array:
                return jax.vmap(lambda row: bind(wide, [row, weights])[0])(inputs)

            return _transposed(batched, kernel, cotangents)

        a, d = inputs.astype(jnp.float32), cotangents.astype(jnp.float32)
        a, d = (jnp.moveaxis(v, [1 + i for i in stacked], range(len(stacked))) for v in (a, d))
        rest = lead - len(stacked)
        a, d = (
            v.reshape(*v.shape[: len(stacked)], -1, *v.shape[len(stacked) + rest :]) for v in (a, d)
        )
        for _ in stacked:
            one = jax.vmap(one)
        return one(a, d)

    flops = 2.0 * math.prod(sizes.values())
    flops += _TOUCH * 2 * math.prod(sizes[c] for c in set(a))
    return _Outer(
        "conv",
        a,
        d,
        cut + group + feature + channel + window,
        sizes,
        shared + image + where,
        unfold,
        split,
        fold,
        total,
        flops,
    )


def _lookup(site: Site, shape: tuple[int, ...]) -> Form:
    """Rows of a table: positions that looked up the same row add up."""
    eqn = site.eqn
    numbers = eqn.params["dimension_numbers"]
    table, out = shaped(eqn.invars[0]).shape, shaped(eqn.outvars[0]).shape
    lead = 1 + len(site.frames)
    axis = numbers.start_index_map[0]
    offsets = [lead + i for i in numbers.offset_dims]
    width = math.prod(out[i] for i in numbers.offset_dims)
    positions = math.prod(f.length for f in site.frames) * math.prod(out) // max(width, 1)
    last = table[axis] - 1

    def flat(ids: Array, d: Array) -> tuple[Array, Array]:
        rest = [i for i in range(1, d.ndim) if i not in offsets]
        d = d.transpose(0, *rest, *offsets).reshape(d.shape[0], positions, width)
        d = d.astype(jnp.float32)
        ids = ids.reshape(ids.shape[0], positions)
        if eqn.params["mode"] == lax.GatherScatterMode.CLIP:
            return jnp.clip(ids, 0, last), d
        # A position outside the table has no gradient.
        return ids, jnp.where(((ids >= 0) & (ids <= last))[..., None], d, 0.0)

    def squares(ids: Array, d: Array, slack: float) -> Array:
        ids, d = flat(ids, d)
        same = ids[:, :, None] == ids[:, None, :]
        products = _einsum("zsn,ztn->zst", d, d)
        both = jnp.maximum(jnp.sum(jnp.where(same, products, 0.0), axis=(1, 2)), 0.0)
        lengths = jnp.sqrt(_einsum("zsn,zsn->zs", d, d))
        # A NaN must not hide behind ids that differ.
        return both + slack * jnp.square(jnp.sum(lengths, axis=1))

    def scattered(ids: Array, d: Array) -> Array:
        """From positions to a table: ``[positions], [positions, width]``."""
        rows = jnp.zeros((last + 1, width), jnp.float32).at[ids].add(d, mode="drop")
        rest = [n for i, n in enumerate(table) if i != axis]
        return _back(site, shape)(jnp.moveaxis(rows.reshape(last + 1, *rest), 0, axis))

    def gradients(ids: Array, d: Array) -> Array:
        return jax.vmap(scattered)(*flat(ids, d))

    def total(ids: Array, d: Array) -> Array:
        ids, d = flat(ids, d)
        return scattered(ids.reshape(-1), d.reshape(-1, width))

    return Form(
        "lookup Gram",
        False,
        f"{positions} rows of {width}, equal ones together",
        2 * positions**2,
        squares,
        gradients,
        total,
    )
