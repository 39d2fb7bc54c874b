"""One file a system under measurement; a system's function for a task returns a `Job`.

The files of peers import neither spax nor its dependencies, so that they run in an environment
that has the peer alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Job(NamedTuple):
    """What a worker repeats: ``run`` is timed, and ``read`` turns its last output into arrays."""

    run: Callable[[int], Any]  # the argument numbers the repetition; returns when all is computed
    read: Callable[[Any], dict[str, np.ndarray]]


def other_class(y):
    """For each image the place of the first one of another class: where an attack may start."""
    return np.argmax(y[None, :] != y[:, None], axis=1)
