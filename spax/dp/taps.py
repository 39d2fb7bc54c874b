"""Where a loss consumes its parameters, and its evaluation with a tap at each of these places.

A *site* is the equation in which a parameter meets an example's data: a product, a convolution, a
look-up in a table. The gradient with respect to the parameter is a product of two things, the data
that enter the equation and the cotangent of what leaves it. A *tap* is a variable that stands for
zero, added to what leaves: the gradient with respect to taps is these cotangents, and costs no
gradient of any parameter. Parameters that are used in any other way are tapped themselves, which is
to say that their gradient is taken for each example.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from spax.dp.jaxprs import as_closed, bind, inlined, read, shaped
from spax.typing import Array

__all__ = [
    "Frame",
    "Plan",
    "Site",
    "evaluate_tapped",
    "make_plan",
    "shape_of_tap",
    "tap",
    "view",
]

Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A ``scan`` around a site.

    Args:
      length: how many iterations.
      stacked: whether each iteration has a slice of the parameter, rather than all of it.
    """

    length: int
    stacked: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """An equation that consumes a parameter.

    Args:
      leaf: which parameter.
      path: the numbers of the equations that lead to it, the outermost first.
      eqn: the equation.
      operand: which of its operands is the parameter; the other is data.
      views: what was done to the parameter before: equations, or None where ``scan`` cuts slices.
      frames: the loops around it, the outermost first.
    """

    leaf: int
    path: Path
    eqn: core.JaxprEqn
    operand: int
    views: tuple[core.JaxprEqn | None, ...]
    frames: tuple[Frame, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A loss, and where its parameters are consumed.

    Args:
      closed: the loss, of the parameters and then of all else, one example.
      sites: by path.
      tapped: the parameters that are tapped themselves, and why.
      unused: the parameters that the loss does not depend on.
      bodies: of the loops and checkpoints that hold a site, by path.
    """

    closed: core.ClosedJaxpr
    sites: Mapping[Path, Site]
    tapped: Mapping[int, str]
    unused: frozenset[int]
    bodies: Mapping[Path, core.ClosedJaxpr]


# What an analysed value is: `_DATA` depends on the example; `_View` is one parameter, rearranged;
# `_Mixed` some other function of parameters alone; None is neither.
@dataclasses.dataclass(frozen=True)
class _View:
    leaf: int
    views: tuple[core.JaxprEqn | None, ...] = ()
    frames: tuple[Frame, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Mixed:
    leaves: frozenset[int]


_DATA = object()
# Rearrangements: the sum of squares of a gradient is the same before and after.
_VIEWS = frozenset(
    {
        primitives.reshape_p,
        primitives.transpose_p,
        primitives.squeeze_p,
        primitives.broadcast_in_dim_p,
        primitives.convert_element_type_p,
        primitives.copy_p,
    }
)


def make_plan(
    closed: core.ClosedJaxpr, count: int, refuse: Callable[[Sequence[Site]], str]
) -> Plan:
    """Finds the sites of the first ``count`` arguments.

    Args:
      closed: the loss of one example, flat; see `spax.dp.jaxprs.trace`.
      count: how many of its arguments are parameters.
      refuse: of all sites of one parameter: why they are not to be used; "" if they are.

    Returns:
      A `Plan`.
    """
    tapped: dict[int, str] = {}
    while True:
        search = _Search()
        roles: list[Any] = [_View(i) if i < count else _DATA for i in range(len(closed.in_avals))]
        for leaf in tapped:
            roles[leaf] = _DATA
        search.eat(search.look(closed, roles, ()), "the loss itself")
        by_leaf: dict[int, list[Site]] = {}
        for site in search.sites.values():
            by_leaf.setdefault(site.leaf, []).append(site)
        for leaf, sites in by_leaf.items():
            why = refuse(sites)
            if why:
                search.opaque.setdefault(leaf, why)
        if not search.opaque:
            unused = frozenset(range(count)) - frozenset(by_leaf) - frozenset(tapped)
            return Plan(closed, search.sites, tapped, unused, search.bodies)
        # Again: a tapped parameter is data to what it meets, which may be another parameter.
        tapped |= search.opaque


class _Search:
    """One pass over a jaxpr."""

    def __init__(self) -> None:
        self.sites: dict[Path, Site] = {}
        self.opaque: dict[int, str] = {}
        self.bodies: dict[Path, core.ClosedJaxpr] = {}

    def eat(self, roles: Sequence[Any], why: str) -> None:
        """Marks the parameters among these as used in a way that has no rule."""
        for leaf in sorted(_leaves(roles)):
            self.opaque.setdefault(leaf, why)

    def look(self, closed: core.ClosedJaxpr, roles: Sequence[Any], path: Path) -> list[Any]:
        """Roles of the outputs; sites and all else are kept."""
        env: dict[Any, Any] = dict.fromkeys(closed.jaxpr.constvars)
        env.update(zip(closed.jaxpr.invars, roles, strict=True))

        def role(atom: Any) -> Any:
            return None if isinstance(atom, core.Literal) else env[atom]

        for i, eqn in enumerate(closed.jaxpr.eqns):
            ins = [role(v) for v in eqn.invars]
            if any(r is _DATA for r in ins):
                if _leaves(ins):
                    self.meet(eqn, ins, (*path, i))
                outs = [_DATA] * len(eqn.outvars)
            else:
                outs = _combined(eqn, ins)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [role(v) for v in closed.jaxpr.outvars]

    def meet(self, eqn: core.JaxprEqn, ins: list[Any], path: Path) -> None:
        """An equation of both parameters and data."""
        operand = _operand(eqn, ins)
        if operand is not None:
            seen = ins[operand]
            self.sites[path] = Site(seen.leaf, path, eqn, operand, seen.views, seen.frames)
        elif eqn.primitive in (primitives.remat_p, primitives.scan_p):
            self.bodies[path] = body = inlined(as_closed(eqn.params["jaxpr"]))
            if eqn.primitive is primitives.scan_p:
                consts, carry = eqn.params["num_consts"], eqn.params["num_carry"]
                self.eat(ins[consts : consts + carry], "carried by scan")
                ins = [
                    *(_framed(r, Frame(eqn.params["length"], False)) for r in ins[:consts]),
                    *[_DATA] * carry,
                    *(_framed(r, Frame(eqn.params["length"], True)) for r in ins[consts + carry :]),
                ]
            self.eat(self.look(body, ins, path), f"leaves {eqn.primitive.name} as it is")
        else:
            self.eat(ins, f"used by {eqn.primitive.name}")


def _framed(role: Any, frame: Frame) -> Any:
    """The role of an operand of ``scan`` within its body."""
    if not isinstance(role, _View):
        return role
    cut = (None,) if frame.stacked else ()
    return _View(role.leaf, role.views + cut, (*role.frames, frame))


def _leaves(roles: Sequence[Any]) -> frozenset[int]:
    found: set[int] = set()
    for role in roles:
        if isinstance(role, _View):
            found.add(role.leaf)
        elif isinstance(role, _Mixed):
            found |= role.leaves
    return frozenset(found)


def _combined(eqn: core.JaxprEqn, ins: list[Any]) -> list[Any]:
    """What an equation without data makes of parameters and constants."""
    leaves = _leaves(ins)
    if not leaves or eqn.primitive is primitives.stop_gradient_p:
        return [None] * len(eqn.outvars)
    first = ins[0]
    if isinstance(first, _View) and len(ins) == 1 and eqn.primitive in _VIEWS:
        old, new = shaped(eqn.invars[0]), shaped(eqn.outvars[0])
        if old.size == new.size and jnp.issubdtype(new.dtype, jnp.floating):
            return [dataclasses.replace(first, views=(*first.views, eqn))]
    return [
        _Mixed(leaves) if jnp.issubdtype(shaped(v).dtype, jnp.inexact) else None
        for v in eqn.outvars
    ]


def _operand(eqn: core.JaxprEqn, ins: list[Any]) -> int | None:
    """Which operand of an equation that has a rule is the parameter; None if it has none."""
    seen = [i for i, r in enumerate(ins) if isinstance(r, _View)]
    if len(ins) != 2 or len(seen) != 1 or ins[1 - seen[0]] is not _DATA:
        return None
    operand, params = seen[0], eqn.params
    if eqn.primitive is primitives.dot_general_p:
        return operand
    if eqn.primitive is primitives.conv_general_dilated_p:
        return operand if operand == 1 and params["batch_group_count"] == 1 else None
    if eqn.primitive is primitives.gather_p and operand == 0:
        numbers, shape = params["dimension_numbers"], shaped(eqn.invars[0]).shape
        axes = numbers.start_index_map
        rows = [1 if axes == (axis,) else size for axis, size in enumerate(shape)]
        if (
            len(axes) == 1
            and numbers.collapsed_slice_dims == axes
            and not (numbers.operand_batching_dims or rows != list(params["slice_sizes"]))
        ):
            return 0
    return None


@jax.custom_vjp
def tap(value: Array, zero: Array) -> Array:
    """``value + zero``, for a zero that is only there to be differentiated by."""
    return value


tap.defvjp(lambda value, zero: (value, None), lambda _, cotangent: (cotangent, cotangent))


def shape_of_tap(site: Site) -> tuple[int, ...]:
    """One for each iteration of the loops around the site."""
    return (*(f.length for f in site.frames), *shaped(site.eqn.outvars[0]).shape)


def evaluate_tapped(
    plan: Plan, args: Sequence[Array], taps: Mapping[Path, Array]
) -> tuple[Array, dict[Path, Array]]:
    """The loss, and the data that enter each site.

    Args:
      plan: from `make_plan`.
      args: the arguments of the loss, flat.
      taps: zeros, one a site, of `shape_of_tap`.

    Returns:
      The loss, and by the path of each site the operand that is not the parameter, with leading
      dimensions for the loops around it.
    """
    (loss,), inputs = _run(plan, plan.closed, args, taps, ())
    return loss, inputs


def _run(
    plan: Plan,
    closed: core.ClosedJaxpr,
    args: Sequence[Array],
    taps: Mapping[Path, Array],
    path: Path,
) -> tuple[list[Array], dict[Path, Array]]:
    env: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(closed.jaxpr.invars, args, strict=True))
    inputs: dict[Path, Array] = {}
    for i, eqn in enumerate(closed.jaxpr.eqns):
        values = [read(env, v) for v in eqn.invars]
        here = (*path, i)
        if here in plan.sites:
            site = plan.sites[here]
            outs = [tap(bind(eqn, values)[0], taps[here])]
            inputs[here] = values[1 - site.operand]
        elif here in plan.bodies:
            within = {p: zero for p, zero in taps.items() if p[: len(here)] == here}
            inner = _scan if eqn.primitive is primitives.scan_p else _checkpoint
            outs, seen = inner(plan, eqn, values, within, here)
            inputs |= seen
        else:
            outs = bind(eqn, values)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(env, v) for v in closed.jaxpr.outvars], inputs


def _scan(
    plan: Plan, eqn: core.JaxprEqn, values: list[Array], taps: dict[Path, Array], path: Path
) -> tuple[list[Array], dict[Path, Array]]:
    params = eqn.params
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, init, xs = values[:first], values[first:last], values[last:]

    def body(carry: list[Array], x: Any) -> tuple[list[Array], Any]:
        outs, inputs = _run(plan, plan.bodies[path], [*consts, *carry, *x[0]], x[1], path)
        return outs[: len(init)], (outs[len(init) :], inputs)

    carry, (ys, inputs) = lax.scan(
        body, init, (xs, taps), params["length"], params["reverse"], params["unroll"]
    )
    return [*carry, *ys], inputs


def _checkpoint(
    plan: Plan, eqn: core.JaxprEqn, values: list[Array], taps: dict[Path, Array], path: Path
) -> tuple[list[Array], dict[Path, Array]]:
    """Keeps what enters the sites, which any gradient needs, and computes the rest again."""

    def body(values: list[Array], taps: dict[Path, Array]) -> Any:
        return _run(plan, plan.bodies[path], values, taps, path)

    params = eqn.params
    wrapped = jax.checkpoint(body, prevent_cse=params["prevent_cse"], policy=params["policy"])
    return wrapped(values, taps)


def view(site: Site, leaf: Array) -> Array:
    """The parameter as the site sees it, in its own dtype; ``scan``'s slices stay stacked."""

    def apply(views: tuple[core.JaxprEqn | None, ...], value: Array) -> Array:
        for i, step in enumerate(views):
            if step is None:
                return jax.vmap(lambda row, rest=views[i + 1 :]: apply(rest, row))(value)
            if step.primitive is not primitives.convert_element_type_p:
                (value,) = bind(step, [value])
        return value

    return apply(site.views, leaf)
