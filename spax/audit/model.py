"""The model under audit, and programs that models of one architecture share."""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import jax

from spax.audit.errors import AuditError
from spax.typing import Array, Key, Outputs, PyTree, Stochastic

__all__ = ["Model", "bind", "closure", "per_architecture"]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model under audit: a plain function, and what else is known about it.

    Args:
      logits_fn: ``x [B, ...] -> logits [B, K]``, or a `spax.typing.Stochastic` of ``fn(x, key)``.
        None: it is made from ``apply_fn`` and ``params``.
      apply_fn: the unbound model, ``(params, x) -> [B, K]``, or a Stochastic of
        ``fn(params, x, key)``. Models that share it (the same function object) share what is
        compiled, and large parameters stay arguments of it; give it wherever you can.
      params: parameters of ``apply_fn``, any pytree of arrays.
      privacy: the receipt of private training, as `spax.dp.private_grad` returns it; None: the
        model makes no such promise.
      layers: ``x [B, ...] -> (features [B, D], ...)``, for probes that look inside the model. No
        standard probe needs it.

    Raises:
      AuditError: if neither form of the model is complete, or one is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> model = Model(None, apply_fn=lambda w, x: x @ w, params=jnp.eye(2))
      >>> model.logits_fn(jnp.ones((1, 2))).tolist()
      [[1.0, 1.0]]
    """

    logits_fn: Any
    apply_fn: Any = None
    params: PyTree = None
    privacy: Any = None
    layers: Callable[[Array], tuple[Array, ...]] | None = None

    def __post_init__(self) -> None:
        for name in ("logits_fn", "apply_fn", "layers"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise AuditError(f"{name} must be a function (got {type(value).__name__})")
        if self.apply_fn is None:
            if self.logits_fn is None:
                raise AuditError(
                    "a model needs logits_fn, or apply_fn with params (got neither); "
                    "pass logits_fn=lambda x: ..."
                )
            if self.params is not None:
                raise AuditError("params were given without apply_fn; pass apply_fn(params, x) too")
            # A function of its own for each model: what it closes over is compiled in.
            object.__setattr__(self, "apply_fn", _ignore_params(self.logits_fn))
        elif self.params is None:
            raise AuditError("apply_fn was given without params; pass params too")
        elif self.logits_fn is None:
            object.__setattr__(self, "logits_fn", bind(self.apply_fn, self.params))

    @property
    def draws(self) -> bool:
        """Whether the model is Stochastic."""
        return isinstance(self.apply_fn, Stochastic)


def _ignore_params(logits_fn: Any) -> Any:
    if isinstance(logits_fn, Stochastic):
        draw: Callable[..., Outputs] = logits_fn.fn

        def drawn(params: PyTree, x: Array, key: Key) -> Outputs:
            return draw(x, key)

        return Stochastic(drawn)  # type: ignore[arg-type]
    return lambda params, x: logits_fn(x)


def bind(apply_fn: Any, params: PyTree) -> Any:
    """The bound model, plain or Stochastic as ``apply_fn`` is.

    Example:
      >>> bind(lambda w, x: w * x, 2)(3)
      6
    """
    if isinstance(apply_fn, Stochastic):
        draw: Callable[..., Outputs] = apply_fn.fn

        def drawn(x: Array, key: Key) -> Outputs:
            return draw(params, x, key)

        return Stochastic(drawn)
    return lambda x: apply_fn(params, x)


class _Same:
    """A function that equals itself alone: others may be dataclasses of arrays."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and _identity(self.fn) == _identity(other.fn)

    def __hash__(self) -> int:
        return hash(_identity(self.fn))

    def __call__(self, *args: Any) -> Any:
        return self.fn(*args)


def _identity(fn: Callable[..., Any]) -> Any:
    # `net.apply` is a new object at each access, equal to the others; any other callable is known
    # by its identity. It lives as long as the program that holds it, so that no id is taken twice.
    return fn if isinstance(fn, types.MethodType) else id(fn)


def closure(model: Model) -> jax.tree_util.Partial:
    """The bound model as a pytree: programs that take it as an argument serve its like too.

    Args:
      model: one that does not draw.

    Returns:
      A `jax.tree_util.Partial` of ``x -> logits``.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_fn = lambda w, x: w * x
      >>> run = jax.jit(lambda f, x: f(x))
      >>> [float(run(closure(Model(None, apply_fn, jnp.float32(w))), 3.0)) for w in (1, 2)]
      [3.0, 6.0]
    """
    return jax.tree_util.Partial(_Same(model.apply_fn), model.params)


def per_architecture(measure: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a measurement once for all models that share ``apply_fn``.

    Args:
      measure: ``(logits_fn, *arrays) -> arrays``, traceable.

    Returns:
      ``run(model, *arrays) -> arrays``.

    Example:
      >>> import jax.numpy as jnp
      >>> run = per_architecture(lambda logits_fn, x: logits_fn(x).sum())
      >>> apply_fn = lambda w, x: x @ w
      >>> [float(run(Model(None, apply_fn, w * jnp.eye(2)), jnp.ones((1, 2)))) for w in (1, 2)]
      [2.0, 4.0]
    """
    compiled: dict[Any, Any] = {}

    def run(model: Model, *arrays: Any) -> Any:
        apply_fn = model.apply_fn
        fn = apply_fn.fn if isinstance(apply_fn, Stochastic) else apply_fn
        key = (model.draws, _identity(fn))
        if key not in compiled:
            compiled[key] = jax.jit(
                lambda params, *arrays: measure(bind(apply_fn, params), *arrays)
            )
        return compiled[key](model.params, *arrays)

    return run
