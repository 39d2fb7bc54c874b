"""The shapes that the functions of this package take and give, and random models.

A model enters spax as a plain function ``logits_fn(x) -> [B, K]``. A model that draws random
numbers is marked with `Stochastic`; nothing else changes for its callers, because every function
of the package evaluates models by `call`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

__all__ = [
    "Array",
    "Attack",
    "Bounds",
    "Criterion",
    "Gradient",
    "Key",
    "LogitsFn",
    "LossFn",
    "Model",
    "Number",
    "Outputs",
    "PerExampleLoss",
    "PyTree",
    "Stochastic",
    "call",
    "each_row",
    "expand",
    "lift",
    "wide",
]

Array: TypeAlias = jax.Array
Key: TypeAlias = Any
PyTree: TypeAlias = Any
Outputs: TypeAlias = Any
Number: TypeAlias = float | jax.Array
Bounds: TypeAlias = tuple[Number, Number]


class LogitsFn(Protocol):
    """A bound model: ``x [B, ...] -> logits [B, K]`` (or any outputs with leading B)."""

    def __call__(self, x: Array, /) -> Outputs: ...


class Attack(Protocol):
    """An attack on inputs: ``(logits_fn, x, y, *, key) -> x_adv``, with ``x_adv`` shaped as x."""

    def __call__(
        self, logits_fn: Any, x: Array, y: PyTree, /, *, key: Key | None = None
    ) -> Array: ...


class LossFn(Protocol):
    """A training objective: ``(params, batch, key) -> (scalar, aux)``."""

    def __call__(self, params: PyTree, batch: PyTree, key: Key, /) -> tuple[Array, PyTree]: ...


class PerExampleLoss(Protocol):
    """The ``loss=`` hook: ``(outputs, y) -> [B]``, what an untargeted attack raises."""

    def __call__(self, outputs: Outputs, y: PyTree, /) -> Array: ...


class Criterion(Protocol):
    """The ``criterion=`` hook: ``(outputs, y) -> bool [B]``, what counts as success."""

    def __call__(self, outputs: Outputs, y: PyTree, /) -> Array: ...


class Gradient(Protocol):
    """The ``gradient=`` hook: how the gradient of an objective is taken.

    ``fn(x) -> (value [B], aux)`` is the objective to ascend (or ``Stochastic`` of
    ``fn(x, key)``), ``aux`` any pytree of float arrays. Returns ``(value, grad, aux)``, with
    ``grad`` shaped as ``x``.
    """

    def __call__(self, fn: Any, x: Array, key: Key | None, /) -> tuple[Array, Array, PyTree]: ...


@dataclasses.dataclass(frozen=True)
class Stochastic:
    """Marks a function that draws: ``fn(x, key)``.

    Args:
      fn: a pure function ``(x, key) -> outputs``. The key may be used once.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> noisy = Stochastic(lambda x, key: x + jax.random.normal(key, x.shape))
      >>> call(noisy, jnp.zeros(3), jax.random.key(0)).shape
      (3,)
    """

    fn: Callable[[Any, Any], Any]

    def __call__(self, x: Any, key: Key) -> Any:
        """Evaluates the function at ``x`` with one draw from ``key``."""
        return self.fn(x, key)


Model: TypeAlias = Callable[[Array], Outputs] | Stochastic


def call(f: Callable[..., Any], x: Any, key: Key | None = None) -> Any:
    """Evaluates a model that may be `Stochastic`.

    Args:
      f: a function of ``x``, or a `Stochastic`.
      x: the input, any pytree that ``f`` takes.
      key: a random key; consumed when ``f`` draws, ignored otherwise.

    Returns:
      ``f(x)`` or ``f.fn(x, key)``.

    Raises:
      ValueError: if ``f`` is `Stochastic` and ``key`` is None.

    Example:
      >>> call(lambda x: 2 * x, 3)
      6
    """
    if not isinstance(f, Stochastic):
        return f(x)
    if key is None:
        raise ValueError("a Stochastic model needs a random key (got key=None)")
    return f.fn(x, key)


def lift(preprocess: Callable[..., Any], logits_fn: Callable[..., Any]) -> Any:
    """Puts a preprocessing step in front of a model.

    Args:
      preprocess: ``x -> x'``, or a `Stochastic` one.
      logits_fn: the model that sees ``x'``; plain or `Stochastic`.

    Returns:
      ``logits_fn`` after ``preprocess``; `Stochastic` if either of the two is.

    Raises:
      TypeError: at a call, if the result is `Stochastic` and the key is not a random key.

    Example:
      >>> import jax.numpy as jnp
      >>> f = lift(lambda x: x / 2, lambda x: x + 1)
      >>> float(f(jnp.array(4.0)))
      3.0
    """
    if not isinstance(preprocess, Stochastic) and not isinstance(logits_fn, Stochastic):
        return lambda x: logits_fn(preprocess(x))

    def drawn(x: Any, key: Key) -> Any:
        key_h, key_f = jax.random.split(key)
        return call(logits_fn, call(preprocess, x, key_h), key_f)

    return Stochastic(drawn)


def each_row(mask: Array, x: Array) -> Array:
    """Reshapes one entry per example, of any dtype, to broadcast against a batch.

    Args:
      mask: ``[B]``, or as many leading dimensions of ``x`` as there are.
      x: ``[B, ...]``.

    Returns:
      ``[B, 1, ..., 1]`` with the rank of ``x``.

    Raises:
      ValueError: if ``x`` has fewer dimensions.

    Example:
      >>> import jax.numpy as jnp
      >>> each_row(jnp.array([True, False]), jnp.zeros((2, 3, 4))).shape
      (2, 1, 1)
    """
    if mask.ndim > x.ndim:
        raise ValueError(f"x must have at least {mask.ndim} dimensions (got x.shape={x.shape})")
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def expand(v: Number, x: Array) -> Array:
    """Reshapes a number, or one number per example, to broadcast against a batch.

    Args:
      v: a scalar or a ``[B]`` array.
      x: ``[B, ...]``, whose dtype and rank the result takes.

    Returns:
      ``v`` in the dtype of ``x``, of shape ``[]`` or ``[B, 1, ..., 1]``, ready to broadcast
      (scalars become rank-``x.ndim`` arrays of ones in every dimension).

    Raises:
      ValueError: if ``v`` is neither a scalar nor of shape ``[B]``.

    Example:
      >>> import jax.numpy as jnp
      >>> expand(jnp.array([1.0, 2.0]), jnp.zeros((2, 3, 4))).shape
      (2, 1, 1)
    """
    v = jnp.asarray(v, x.dtype)
    if v.ndim == 0:
        return v.reshape((1,) * x.ndim)
    if v.shape != x.shape[:1]:
        raise ValueError(
            f"a number must be a scalar or one per example, of shape {x.shape[:1]} "
            f"(got shape {v.shape})"
        )
    return v.reshape(v.shape + (1,) * (x.ndim - 1))


def wide(x: Array) -> Any:
    """The dtype in which sums over ``x`` are taken: its own, float32 at least.

    Args:
      x: any floating array.

    Returns:
      The dtype.

    Raises:
      AttributeError: if ``x`` has no dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> wide(jnp.zeros(2, jnp.bfloat16)).name
      'float32'
    """
    dtype = jnp.dtype(x.dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype
