"""How often the model is right when nobody attacks it."""

from functools import partial
from typing import Any

import jax
import numpy as np

from spax.audit.budget import Budget
from spax.audit.data import sample
from spax.audit.model import Model, per_architecture
from spax.audit.sections import Measurement, Section
from spax.datasets import Dataset
from spax.evaluation import Accuracy, accuracy
from spax.typing import Key, Stochastic, call

__all__ = ["accuracies", "clean"]


def accuracies(
    models: dict[str, Model], x: np.ndarray, y: np.ndarray, budget: Budget, key: Key
) -> dict[str, Accuracy]:
    """Accuracy by model, on at most ``max_scored`` of the examples."""
    forward = per_architecture(call)
    key_sample, key_model = jax.random.split(key)
    # They stay on the host: `accuracy` takes batch by batch.
    examples: tuple[Any, Any] = sample(x, y, budget.max_scored, key_sample)
    found = {}
    for i, (name, model) in enumerate(models.items()):
        budget.say(i / len(models), f"clean accuracy of {name}")
        # Marked so that the key reaches the compiled program; who does not draw ignores it.
        logits_fn = Stochastic(partial(forward, model))
        found[name] = accuracy(logits_fn, *examples, key=key_model, batch_size=budget.batch_size)
    return found


def clean(models: dict[str, Model], data: Dataset, budget: Budget, key: Key) -> Section:
    """Accuracy on test and training examples, with confidence intervals.

    Args:
      models: the models by name.
      data: test examples; training examples where they are known.
      budget: ``max_scored`` and ``batch_size`` are used.
      key: a random key.

    Returns:
      The section "clean".
    """
    parts = {"test": (data.x_test, data.y_test)}
    if data.x_train is not None and data.y_train is not None:
        parts["training"] = (data.x_train, data.y_train)
    measurements = []
    for part, (x, y) in parts.items():
        on_test = part == "test"
        for name, share in accuracies(models, x, y, budget, key).items():
            measurements.append(
                Measurement(
                    model=name,
                    name="clean_accuracy" if on_test else "training_accuracy",
                    value=share.value,
                    low=share.low,
                    high=share.high,
                    definition=f"Share of {part} examples classified correctly, with its 95 % "
                    "Clopper-Pearson interval.",
                    settings={"examples": share.n},
                    headline="clean" if on_test else "",
                    kind="share",
                )
            )
    return Section("clean", "Clean accuracy", measurements=tuple(measurements))
