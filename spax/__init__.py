"""spax: a JAX-native functional toolkit for Secure and Private AI.

Everything is a pure function of arrays and composes with ``jit``, ``vmap``, ``grad`` and
``shard_map``. Rooms are imported when they are first used, so that ``import spax`` costs no more
than ``import jax``.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from spax._version import __version__

if TYPE_CHECKING:
    from spax import (
        audit,
        crypto,
        datasets,
        defenses,
        dp,
        evaluation,
        evasion,
        gradients,
        he,
        leakage,
        losses,
        nets,
        norms,
        poisoning,
        typing,
    )

__all__ = [
    "__version__",
    "audit",
    "crypto",
    "datasets",
    "defenses",
    "dp",
    "evaluation",
    "evasion",
    "gradients",
    "he",
    "leakage",
    "losses",
    "nets",
    "norms",
    "poisoning",
    "typing",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"spax.{name}")
    raise AttributeError(f"module 'spax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
