"""Loads the model that ``--model package.module:name`` names; this runs its code."""

import contextlib
import importlib
import inspect
import os
import sys
from typing import Any

from spax.audit.errors import AuditError, one_line
from spax.audit.model import Model
from spax.typing import Stochastic

__all__ = ["load_model"]


def load_model(target: str) -> Model:
    """Imports a module, from the current directory too, and takes a model from it.

    Args:
      target: ``package.module:name``; the name is that of a ``logits_fn``, a
        `spax.typing.Stochastic` or a `Model`, or of a function without arguments that returns one.

    Returns:
      The model.

    Raises:
      AuditError: if there is no such module or name, its code fails, or it is none of these.

    Example:
      >>> load_model("jax.nn:softmax").draws
      False
    """
    module_name, colon, name = target.partition(":")
    dotted = all(part.isidentifier() for part in module_name.split("."))
    if not colon or not name or not dotted or module_name.endswith(".py"):
        raise AuditError(
            f"--model must be package.module:name, with dots for slashes and without .py, such as "
            f"examples.mnist:model (got {target!r})"
        )
    found = _attribute(_imported(module_name), module_name, name)
    if not isinstance(found, Stochastic | Model) and _takes_nothing(found):
        found = _run(found, f"the factory {target}")
    if isinstance(found, Model):
        return found
    if not callable(found):
        raise AuditError(
            f"{target} is neither a function logits_fn(x) nor a factory of one "
            f"(got {type(found).__name__})"
        )
    needed = _required(found)
    if not isinstance(found, Stochastic) and needed is not None and needed != 1:
        raise AuditError(
            f"{target} must take the inputs alone, as logits_fn(x); bind its parameters, or mark "
            f"fn(x, key) as spax.typing.Stochastic(fn) (got a function of {needed} arguments)"
        )
    return Model(found)


def _imported(name: str) -> Any:
    """The module; the current directory is searched first, as by ``python -m``."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return _run(lambda: importlib.import_module(name), f"the module {name}")
    except AuditError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise AuditError(
                f"there is no module {missing!r}; run from the folder that holds it, or install it"
            ) from cause
        raise


def _attribute(module: Any, module_name: str, name: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise AuditError(
                f"the module {module_name} has no {name!r}; --model is package.module:name"
            )
        found = getattr(found, part)
    return found


def _run(code: Any, what: str) -> Any:
    """Runs somebody's code, whose output does not belong on ours."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return code()
    except (Exception, SystemExit) as error:  # whatever it raises
        raise AuditError(f"{what} fails ({one_line(error)})") from error


def _required(fn: Any) -> int | None:
    """How many arguments must be given; None where Python cannot tell."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.default is p.empty and p.kind not in variable for p in parameters)


def _takes_nothing(fn: Any) -> bool:
    return callable(fn) and _required(fn) == 0
