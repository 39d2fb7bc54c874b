"""Looks at a model before it is audited: what would make every figure meaningless is said here."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax.audit.errors import AuditError, one_line
from spax.audit.model import Model, bind, per_architecture
from spax.datasets import Dataset
from spax.typing import Key, call

__all__ = ["inspect"]

_EXAMPLES = 8
# Shares of how far logits lie apart. Two runs of one program agree; two programs agree up to
# rounding, which on accelerators, or between batch sizes, is coarser.
_SAME_PROGRAM, _SAME_SHAPE, _OTHER_SHAPE = 1e-6, 1e-4, 1e-2

_UNSEEN = 104.0  # exp(-104) is 0 in float32

_NOT_TRACEABLE = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)

_MARK = (
    "mark a model that draws as spax.typing.Stochastic(fn) with fn(x, key), all its randomness "
    "from the key, or switch its noise and dropout off"
)


def inspect(models: dict[str, Model], data: Dataset, key: Key, batch_size: int = 1) -> None:
    """Raises unless each model gives logits that fit the data and depend on the example alone.

    Args:
      models: the models by name.
      data: what they are audited on.
      key: a random key, for models that draw.
      batch_size: how many examples a model will get at a time, at most.

    Raises:
      AuditError: if a model cannot be evaluated or differentiated; gives no floating ``[B, K]``, or
        NaN; has fewer logits than the data have classes; is not deterministic without being marked
        Stochastic; or lets examples of one batch see each other.
    """
    # Two separate compilations: randomness that tracing has frozen differs between them.
    first, second = (
        per_architecture(lambda logits_fn, x, key: call(logits_fn, x, key)) for _ in range(2)
    )
    x = data.x_test[:_EXAMPLES]
    for name, model in models.items():
        logits = _evaluate(first, name, model, x, key)
        _check_logits(name, logits, data)
        _check_gradient(name, model, x, key)
        if not model.draws:
            _check_purity(name, model, x, logits, data, key, first, second)
        _check_size(name, model, data.x_test[:batch_size], key)


def _evaluate(program: Any, name: str, model: Model, x: np.ndarray, key: Key) -> np.ndarray:
    try:
        outputs = program(model, x, key)
        shape: Any = getattr(outputs, "shape", None)
        if shape is None:
            kind = type(outputs).__name__
        elif not jnp.issubdtype(outputs.dtype, jnp.floating):
            kind = f"an array of {outputs.dtype}"
        else:
            kind = ""
    except _NOT_TRACEABLE as error:
        raise AuditError(
            f"model {name!r} cannot be traced by JAX, because it asks for the values of its input, "
            "as NumPy or an `if` on them does; write it in jax.numpy "
            f"(got {type(error).__name__})"
        ) from error
    except Exception as error:  # whatever the user's code raises
        raise AuditError(
            f"model {name!r} fails on inputs of shape {x.shape}, {x.dtype} ({one_line(error)}); "
            "it must take any batch x as logits_fn(x), with batch normalisation and dropout in "
            "evaluation mode, or be marked spax.typing.Stochastic(fn) if it is fn(x, key)"
        ) from error
    if kind:
        raise AuditError(
            f"model {name!r} must return one floating-point array of logits [B, K] (got {kind}); "
            "return the logits alone"
        )
    if len(shape) != 2 or shape[0] != len(x) or shape[1] < 2:
        raise AuditError(
            f"model {name!r} must return logits [B, K] with K >= 2 (got shape {tuple(shape)} for "
            f"inputs of shape {x.shape}); for two classes return two logits"
        )
    return np.asarray(outputs, np.float64)


def _check_logits(name: str, logits: np.ndarray, data: Dataset) -> None:
    if np.isnan(logits).any():
        bad = int(np.isnan(logits).any(axis=1).sum())
        raise AuditError(
            f"model {name!r} returns NaN for {bad} of the first {len(logits)} test examples; "
            "check its parameters and the scale of the inputs (--bounds)"
        )
    if data.num_classes > logits.shape[1]:
        raise AuditError(
            f"the labels of {data.name!r} go up to {data.num_classes - 1} but model {name!r} gives "
            f"{logits.shape[1]} logits, for labels 0 to {logits.shape[1] - 1}; "
            "number the classes from 0 or audit the model on its own data"
        )


def _check_gradient(name: str, model: Model, x: np.ndarray, key: Key) -> None:
    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(call(bind(model.apply_fn, model.params), x, key))

    try:
        jax.eval_shape(jax.grad(total), x)
    except Exception as error:
        raise AuditError(
            f"model {name!r} has no gradient with respect to its input ({one_line(error)}); "
            "give its non-differentiable step a surrogate with spax.gradients.bpda"
        ) from error


def _check_size(name: str, model: Model, x: np.ndarray, key: Key) -> None:
    try:
        jax.eval_shape(lambda x: call(bind(model.apply_fn, model.params), x, key), x)
    except Exception as error:
        raise AuditError(
            f"model {name!r} fails on batches of {len(x)} ({one_line(error)}); it must take any, "
            "or the batches must be smaller (--batch-size)"
        ) from error


def _check_purity(
    name: str,
    model: Model,
    x: np.ndarray,
    logits: np.ndarray,
    data: Dataset,
    key: Key,
    first: Any,
    second: Any,
) -> None:
    def off(other: np.ndarray) -> float:
        """Largest difference of a logit, as a share of the largest, or of what is usual.

        The second counts logits from the largest of their row: what is added to all of them hides
        nothing there, and neither does one of another magnitude, as of a class masked out.
        """
        finite = np.isfinite(logits) & np.isfinite(other)
        if (finite != np.isfinite(logits)).any():
            return np.inf
        one, two = (np.where(finite, z, 0.0) for z in (logits, other))
        gap, scale = np.abs(one - two).max(initial=0.0), np.abs(one).max(initial=0.0)
        one, two = (
            np.where(finite, z - np.where(finite, z, -np.inf).max(axis=1, keepdims=True), 0.0)
            for z in (logits, other)
        )
        apart = -one[one < 0]
        seen = apart[apart < _UNSEEN]  # by a softmax in float32, if any is
        apart = seen if seen.size else apart
        usual = (np.median(apart) if apart.size else 1.0) + np.abs(one)
        relative = float((np.abs(one - two) / usual).max(initial=0.0))
        return max(float(gap / scale) if scale else float(gap), relative)

    not_deterministic = AuditError(
        f"model {name!r} is not deterministic: twice the same inputs gave different logits; {_MARK}"
    )
    if off(_evaluate(first, name, model, x, key)) > _SAME_PROGRAM:
        raise not_deterministic
    # The same examples in another order, among other neighbours, in a batch of another size.
    low, high = data.bounds
    mixed = np.concatenate([x[::-1], (low + high - x)[: len(x) // 2 + 1]])
    gap = off(_evaluate(second, name, model, mixed, key)[: len(x)][::-1])
    if gap > _SAME_SHAPE:
        if off(_evaluate(second, name, model, x, key)) > _SAME_SHAPE:
            raise not_deterministic
        if gap > _OTHER_SHAPE:
            raise AuditError(
                f"model {name!r} is batch-dependent: the logits of an example change with the "
                "other examples of its batch; put batch normalisation into evaluation mode, where "
                "it takes the averages of the training"
            )
