"""Models that can only be asked: a remote service as a model, and asking no more than is needed."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from spax.checks import check_count, check_number
from spax.gradients.convolutions import canonical_convolutions
from spax.typing import Array, Key, Model, Number, Outputs, call

__all__ = ["Info", "Oracle", "ask", "budget_of"]


class Info(NamedTuple):
    """What the judge cannot recompute: the rows asked of the model, int32 ``[B]``."""

    queries: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _ask_once(x: Array, live: Array, oracle: "Oracle") -> Array:
    shape = jax.ShapeDtypeStruct((x.shape[0], oracle.num_classes), jnp.float32)
    # Not pure_callback: the compiler may leave that out, or run it twice, and rows cost money.
    return io_callback(oracle.answers, shape, x, live)


@_ask_once.defjvp
def _no_derivative(oracle: "Oracle", primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "an Oracle has no gradient: give the attack gradient=spax.gradients.nes(...) or "
        "spsa(...), or use an attack that asks only (got a derivative of an Oracle)"
    )


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A model behind any Python function: a remote service, a process, another framework.

    It enters an attack in the place of ``logits_fn``, jitted or not. Attacks that count queries
    (`boundary`, `hop_skip_jump`, `spsa_attack`, `substitute`) tell it which examples are still of
    interest, and only their rows reach the function: examples that are finished, or whose budget
    is spent, are never asked again. Other attacks ask for the whole batch at every evaluation.

    Args:
      query_fn: takes a NumPy array ``[n, ...]``, n >= 1, and returns either n integer labels in
        ``[0, num_classes)``, or n rows of ``num_classes`` finite scores. It should not call JAX:
        the computation that waits for it may hold the threads it needs.
      num_classes: K.
      batch_size: most rows in one call; None: as many as there are.

    Guarantees:
      Every evaluation that an attack makes is one call for its live rows (or one for each
      ``batch_size`` of them), neither repeated nor left out by the compiler. Labels come to the
      attack as one-hot logits, scores as they are, both float32. An exception of ``query_fn``, or
      an answer of another form, ends the computation at once: no further row is asked, and JAX
      raises `jax.errors.JaxRuntimeError` with the message in it where the result is used. What was
      answered before is lost with it, unless ``query_fn`` remembers: an attack asks the same
      questions again when its key is the same, so behind a cache a second run pays for the rest
      only.

      There are no derivatives, and no ``vmap`` over an attack on an Oracle (JAX raises): put the
      examples into one batch. A preprocessing step belongs into ``query_fn``; put in front by
      `spax.typing.lift`, it hides from the attack that there is an Oracle.

    Raises:
      TypeError: if ``query_fn`` is not callable, or a derivative is asked for.
      ValueError: if ``num_classes < 2`` or ``batch_size < 1``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> service = Oracle(lambda x: (x[:, 0] > 0.5).astype(int), num_classes=2)
      >>> service(jnp.array([[0.2], [0.9]])).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """

    query_fn: Callable[[np.ndarray], Any]
    num_classes: int
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.query_fn):
            raise TypeError(f"query_fn must be callable (got {type(self.query_fn).__name__})")
        check_count("num_classes", self.num_classes, 2)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)

    def __call__(self, x: Array) -> Array:
        """Asks every row: ``[B, ...] -> [B, K]``."""
        return self.ask(x, jnp.ones(x.shape[:1], bool))

    def ask(self, x: Array, live: Array) -> Array:
        """Asks the rows where ``live``, bool ``[B]``; the others come back as zeros."""
        return _ask_once(x, live, self)

    def answers(self, x: Any, live: Any) -> np.ndarray:
        """The same on the host, with NumPy arrays."""
        x, rows = np.asarray(x), np.flatnonzero(np.asarray(live))
        out = np.zeros((x.shape[0], self.num_classes), np.float32)
        size = self.batch_size or max(rows.size, 1)
        for first in range(0, rows.size, size):
            some = rows[first : first + size]
            out[some] = self._checked(self.query_fn(x[some]), some.size)
        return out

    def _checked(self, answer: Any, n: int) -> np.ndarray:
        answer, k = np.asarray(answer), self.num_classes
        if answer.shape == (n,) and np.issubdtype(answer.dtype, np.integer):
            if answer.min() < 0 or answer.max() >= k:
                raise ValueError(
                    f"query_fn must answer with labels in [0, {k}) "
                    f"(got labels from {answer.min()} to {answer.max()})"
                )
            return np.eye(k, dtype=np.float32)[answer]
        if answer.shape != (n, k) or not np.issubdtype(answer.dtype, np.number):
            raise ValueError(
                f"query_fn must answer {n} rows with {n} integer labels or scores [{n}, {k}] "
                f"(got shape {answer.shape}, dtype {answer.dtype})"
            )
        if not np.isfinite(answer).all():
            raise ValueError("query_fn must answer with finite scores (got NaN or infinite ones)")
        return answer


def ask(logits_fn: Model, x: Array, live: Array, key: Key | None = None) -> Outputs:
    """The outputs of a model, of which only the live rows matter.

    Args:
      logits_fn: a model, plain, Stochastic, or an `Oracle`, which is asked the live rows only.
      x: ``[B, ...]``, or ``[n, B, ...]``: n batches.
      live: bool ``[B]``, or ``[n, B]``.
      key: consumed by a Stochastic model.

    Returns:
      The outputs, with leading ``[B]`` or ``[n, B]``.

    Raises:
      ValueError: if the model is Stochastic and key is None.

    Example:
      >>> import jax.numpy as jnp
      >>> service = Oracle(lambda x: x[:, 0].astype(int), num_classes=2)
      >>> ask(service, jnp.ones((2, 1)), jnp.array([True, False])).tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    several = live.ndim == 2
    if isinstance(logits_fn, Oracle):
        if not several:
            return logits_fn.ask(x, live)
        outputs = logits_fn.ask(x.reshape((-1, *x.shape[2:])), live.reshape(-1))
        return outputs.reshape((*live.shape, -1))
    if not several:
        return canonical_convolutions(lambda x, key: call(logits_fn, x, key))(x, key)
    keys = None if key is None else jax.random.split(key, x.shape[0])
    batches = jax.vmap(lambda x, key: call(logits_fn, x, key), (0, None if key is None else 0))
    return canonical_convolutions(batches)(x, keys)


def budget_of(max_queries: Number | None, x: Array) -> Array:
    """The rows that each example may cost, int32 ``[B]``.

    Args:
      max_queries: >= 0, scalar or ``[B]``; None: no limit.
      x: ``[B, ...]``; only its length is used.

    Returns:
      int32 ``[B]``.

    Raises:
      ValueError: if a concrete entry is negative, or the shape is another.

    Example:
      >>> import jax.numpy as jnp
      >>> budget_of(5, jnp.zeros((2, 3))).tolist()
      [5, 5]
    """
    most = jnp.full(x.shape[:1], jnp.iinfo(jnp.int32).max, jnp.int32)
    if max_queries is None:
        return most
    check_number("max_queries", max_queries, low=0)
    rows = jnp.asarray(max_queries)
    if rows.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"max_queries must be a scalar or of shape {x.shape[:1]} (got shape {rows.shape})"
        )
    return jnp.minimum(rows.astype(jnp.int32), most)
