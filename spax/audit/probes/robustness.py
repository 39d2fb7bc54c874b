"""How often the model is right when every input may be moved within a radius."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from spax.audit.budget import Budget
from spax.audit.data import sample
from spax.audit.model import Model, per_architecture
from spax.audit.sections import Measurement, Plot, Section, Series
from spax.datasets import Dataset
from spax.evaluation import Curve, radius_curve, sweep
from spax.evasion import fgsm, pgd
from spax.gradients import eot, exact
from spax.losses import hits
from spax.typing import Array, Gradient, Key, Outputs, Stochastic

__all__ = ["corner", "draws", "hook", "robustness", "wrong"]

_MEANING = {
    "fgsm": "no point found by one gradient step (FGSM)",
    "pgd": "no point found by projected gradient descent from random starts (PGD)",
    "worst": "no point found by FGSM or PGD",
}


def hook(logits_fn: Any, budget: Budget) -> Gradient:
    """How gradients of a model are taken: averaged over a few draws if it draws."""
    return eot(budget.eot_draws) if isinstance(logits_fn, Stochastic) else exact


def draws(model: Model, budget: Budget) -> dict[str, int]:
    """What the settings of a figure say about `hook`."""
    return {"eot_draws": budget.eot_draws} if model.draws else {}


def corner(size: int, norm: str) -> float:
    """Norm of a vector of ones."""
    return {"linf": 1.0, "l2": size**0.5, "l1": float(size)}[norm]


def wrong(outputs: Outputs, y: Array) -> Array:
    """The criterion of an attack: the label is not predicted. NaN logits predict nothing."""
    return ~hits(outputs, y)


def robustness(models: dict[str, Model], data: Dataset, budget: Budget, key: Key) -> Section:
    """Robust accuracy over the grid of radii: under FGSM, PGD, and the worst of both.

    Args:
      models: the models by name.
      data: test examples.
      budget: norm, radii, steps and restarts.
      key: a random key.

    Returns:
      The section "robustness".
    """
    budget = budget.for_bounds(data.bounds)
    key_sample, key_attack = jax.random.split(key)
    x, y = sample(data.x_test, data.y_test, budget.max_examples, key_sample)
    eps = np.asarray(budget.eps, np.float32)
    program = per_architecture(partial(_nearest, budget=budget, bounds=data.bounds))
    measurements: list[Measurement] = []
    series: list[Series] = []
    for i, (name, model) in enumerate(models.items()):
        budget.say(i / len(models), f"attacks on {name} within {len(eps)} radii")
        found = program(model, x, y, key_attack, eps)
        distances = {attack: np.asarray(d, np.float64) for attack, d in found.items()}
        distances["worst"] = np.minimum(distances["fgsm"], distances["pgd"])
        for attack, distance in distances.items():
            # The radii as the attacks had them: a rounded 200.1 may exceed the number by 1e-5.
            curve = radius_curve(distance, [0.0, *eps.astype(np.float64)])
            measurements += _accuracies(name, attack, curve, budget, draws(model, budget))
            if attack == "worst":
                series.append(_series(name, curve))
    return Section(
        "robustness",
        "Robust accuracy",
        text=f"Every test example may be moved by up to eps in the {budget.norm} norm, within the "
        "bounds of the data. The accuracy that remains is an upper bound: a stronger attack may "
        "find more.",
        measurements=tuple(measurements),
        plots=(
            Plot(
                "Robust accuracy",
                f"eps ({budget.norm})",
                "accuracy under the worst attack",
                tuple(series),
                caption=f"{len(x)} test examples; bands are 95 % confidence intervals.",
            ),
        ),
    )


def _nearest(
    logits_fn: Any, x: Array, y: Array, key: Key, eps: Array, *, budget: Budget, bounds: Any
) -> Mapping[str, Array]:
    """Distance ``[N]`` of the nearest point that each attack found over all radii."""
    gradient = hook(logits_fn, budget)
    attacks = {
        "fgsm": partial(fgsm, norm=budget.norm, bounds=bounds, gradient=gradient),
        "pgd": partial(
            pgd,
            norm=budget.norm,
            bounds=bounds,
            criterion=wrong,
            gradient=gradient,
            steps=budget.steps,
            restarts=budget.restarts,
        ),
    }
    return {
        name: sweep(
            attack,
            logits_fn,
            x,
            y,
            key=jax.random.fold_in(key, i),
            eps=eps,
            norm=budget.norm,
            batch_size=budget.batch_size,
            bounds=bounds,
        ).distance
        for i, (name, attack) in enumerate(attacks.items())
    }


def _accuracies(
    name: str, attack: str, curve: Curve, budget: Budget, draws: Mapping[str, int]
) -> list[Measurement]:
    settings: dict[str, Any] = {"attack": attack, "norm": budget.norm, "examples": curve.n, **draws}
    if attack != "fgsm":
        settings |= {"steps": budget.steps, "restarts": budget.restarts, "loss": "cross-entropy"}
        settings |= {"step_size": "2.5 eps / steps"}
    rows = []
    for e, eps in enumerate(budget.eps, start=1):  # entry 0 is the clean accuracy
        headline = attack == "worst" and eps == budget.headline_eps
        rows.append(
            Measurement(
                model=name,
                name="robust_accuracy",
                value=float(curve.accuracy[e]),
                low=float(curve.low[e]),
                high=float(curve.high[e]),
                definition=f"Share of test examples classified correctly with {_MEANING[attack]} "
                "within eps, at this or a smaller radius of the grid, that is not; with its 95 % "
                "Clopper-Pearson interval.",
                settings=settings | {"eps": eps},
                headline=f"robust @ {eps:g}" if headline else "",
                kind="share",
            )
        )
    return rows


def _series(name: str, curve: Curve) -> Series:
    eps, accuracy, low, high = (tuple(map(float, v)) for v in curve[:4])
    return Series(name, eps, accuracy, low, high)
