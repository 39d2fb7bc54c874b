"""How often the model is right when nobody attacks it."""

import jax

from spax.audit.budget import Budget
from spax.audit.data import sample
from spax.audit.model import Model, per_architecture
from spax.audit.sections import Measurement, Section
from spax.datasets import Dataset
from spax.evaluation import accuracy
from spax.typing import Key, Stochastic, call

__all__ = ["clean"]


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
    forward = per_architecture(lambda logits_fn, x, key: call(logits_fn, x, key))
    parts = {"test": (data.x_test, data.y_test)}
    if data.x_train is not None and data.y_train is not None:
        parts["training"] = (data.x_train, data.y_train)
    key_sample, key_model = jax.random.split(key)
    measurements = []
    for i, (name, model) in enumerate(models.items()):
        budget.say(i / len(models), f"clean accuracy of {name}")
        logits_fn = Stochastic(lambda x, key, model=model: forward(model, x, key))
        for part, (x, y) in parts.items():
            x, y = sample(x, y, budget.max_scored, key_sample)
            share = accuracy(logits_fn, x, y, key=key_model, batch_size=budget.batch_size)
            on_test = part == "test"
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
