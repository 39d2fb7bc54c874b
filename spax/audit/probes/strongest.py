"""The strongest attacks there are, at the radius of the summary; and whose points fool whom."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from spax.audit.budget import Budget
from spax.audit.data import in_batches, sample
from spax.audit.model import Model, closure, per_architecture
from spax.audit.probes.robustness import corner, draws, hook, wrong
from spax.audit.sections import Measurement, Plot, Section, Series
from spax.datasets import Dataset
from spax.evaluation import binomial_interval
from spax.evaluation.judging import examine
from spax.evasion import apgd, autoattack, fab, pgd, square
from spax.gradients import canonical_convolutions, spsa
from spax.losses import dlr, margin
from spax.typing import Array, Key, Stochastic, call

__all__ = ["strongest"]

_STAGES = ("APGD-CE", "APGD-T", "FAB-T", "Square")


def strongest(models: dict[str, Model], data: Dataset, budget: Budget, key: Key) -> Section:
    """Accuracy under AutoAttack and under a black-box attack, and the matrix of transferability.

    AutoAttack, standard version, needs a model without draws, and linf, or l2 on images; elsewhere
    its members that apply are run: APGD with cross-entropy and with the DLR loss, through averaged
    gradients if the model draws, and FAB if it does not. The black-box attack reads scores alone:
    Square, or where that is not defined PGD along gradients estimated from queries (SPSA).

    Args:
      models: the models by name.
      data: test examples.
      budget: the radius ``headline_eps``, and how much to spend.
      key: a random key.

    Returns:
      The section "strongest".
    """
    budget = budget.for_bounds(data.bounds)
    key_sample, key_attack, key_craft, key_look = jax.random.split(key, 4)
    x, y = sample(data.x_test, data.y_test, budget.strong_examples, key_sample)
    given: Any = {"eps": budget.headline_eps, "norm": budget.norm, "bounds": data.bounds}
    by_queries = per_architecture(partial(_black_box, budget=budget, **given))
    by_gradients = per_architecture(partial(_members, budget=budget, **given))
    measurements: list[Measurement] = []
    searches: list[Series] = []
    for i, (name, model) in enumerate(models.items()):
        budget.say(0.8 * i / len(models), f"the strongest attacks on {name}")
        run = partial(in_batches, x=x, y=y, key=key_attack, batch_size=budget.batch_size)
        found = dict(run(partial(by_queries, model)))
        if _has_standard(model, budget.norm, x):
            found |= _standard(model, x, y, key_attack, budget, **given)
        else:
            found |= run(partial(by_gradients, model))
        queries, at_once = found.pop("queries", None), found.pop("wrong")
        # What is wrong as it is, or has no prediction, needs no attack.
        found = {attack: lost | at_once for attack, lost in found.items()}
        measurements += _accuracies(name, found, budget, draws(model, budget))
        if queries is not None:
            searches.append(_search(name, queries, found["Square"], budget.strong_queries))
    if len(models) > 1:
        budget.say(0.8, "whose points fool whom")
        measurements += _transfer(models, x, y, key_craft, key_look, budget, **given)
    return Section(
        "strongest",
        "The strongest attacks",
        text="At the radius of the summary, on fewer examples: AutoAttack, an ensemble without a "
        "number to tune, and an attack that sees nothing but scores. Points made on one model are "
        "tried on the others: who fools a model without its gradients needs none of them.",
        measurements=tuple(measurements),
        plots=(
            Plot(
                "Accuracy while a black-box attack asks",
                "queries for an example",
                "accuracy under Square",
                tuple(searches),
                log="x",
                caption=f"{len(x)} test examples within {budget.headline_eps:g} ({budget.norm}); "
                "no gradient is used.",
            ),
        )
        if searches
        else (),
    )


def _is_image(x: Any) -> bool:
    return x.ndim == 4 and min(x.shape[1:3]) >= 3


def _has_square(norm: str, x: Any) -> bool:
    return norm == "linf" or (norm == "l2" and _is_image(x))


def _has_standard(model: Model, norm: str, x: Any) -> bool:
    return not model.draws and _has_square(norm, x)


def _lost(logits_fn: Any, x: Array, y: Array, key: Key, z: Array, *, eps: Any, **ball: Any) -> Any:
    """Whether a point keeps to the rules and is not classified correctly."""
    seen = examine(
        call(logits_fn, z, key), x, z, y, eps=eps, targeted=False, criterion=None, **ball
    )
    return seen.valid & (seen.fooled | ~seen.predicted)


def _black_box(
    logits_fn: Any, x: Array, y: Array, key: Key, *, budget: Budget, eps: float, **ball: Any
) -> Mapping[str, Array]:
    key_attack, key_look, key_x = jax.random.split(key, 3)
    at_once = wrong(call(logits_fn, x, key_x), y)

    def lost(z: Array) -> Array:
        return _lost(logits_fn, x, y, key_look, z, eps=eps, **ball)

    if _has_square(ball["norm"], x):
        z, info = canonical_convolutions(
            lambda key: square(
                logits_fn,
                x,
                y,
                key=key,
                eps=eps,
                steps=budget.strong_queries,
                criterion=wrong,
                return_info=True,
                **ball,
            )
        )(key_attack)
        return {"Square": lost(z), "queries": info.queries, "wrong": at_once}
    # Two queries a pair.
    steps = max(budget.strong_queries // (2 * budget.query_draws), 1)
    half = eps / (2 * corner(x[0].size, ball["norm"]))
    hidden = spsa(budget.query_draws, half)
    z = canonical_convolutions(
        lambda key: pgd(
            logits_fn,
            x,
            y,
            key=key,
            eps=eps,
            steps=steps,
            loss=margin,
            criterion=wrong,
            gradient=hidden,
            **ball,
        )
    )(key_attack)
    return {"SPSA": lost(z), "wrong": at_once}


def _members(
    logits_fn: Any, x: Array, y: Array, key: Key, *, budget: Budget, eps: float, **ball: Any
) -> Mapping[str, Array]:
    """What of AutoAttack applies where it itself is not defined."""
    keys = jax.random.split(key, 4)
    shape = jax.eval_shape(lambda x: call(logits_fn, x, key), x).shape
    ascent = partial(
        apgd, eps=eps, steps=budget.strong_steps, criterion=wrong, gradient=hook(logits_fn, budget)
    )
    attacks: dict[str, Callable[..., Array]] = {"APGD-CE": ascent}
    if shape[1] >= 3:
        attacks["APGD-DLR"] = partial(ascent, loss=dlr)
    if not isinstance(logits_fn, Stochastic):
        attacks["FAB"] = partial(fab, eps=eps, steps=budget.strong_steps)
    return {
        name: _lost(
            logits_fn,
            x,
            y,
            keys[3],
            canonical_convolutions(partial(attack, logits_fn, x, y, **ball))(key=key),
            eps=eps,
            **ball,
        )
        for (name, attack), key in zip(attacks.items(), keys, strict=False)
    }


def _standard(
    model: Model, x: Any, y: Any, key: Key, budget: Budget, *, eps: float, **ball: Any
) -> dict[str, np.ndarray]:
    """What was lost after each stage of AutoAttack."""
    with warnings.catch_warnings():
        # That its losses are misled is the business of the masking checks.
        warnings.filterwarnings("ignore", message="autoattack: ", category=UserWarning)
        _, info = autoattack(
            closure(model),
            x,
            y,
            key=key,
            eps=eps,
            steps=budget.strong_steps,
            queries=budget.strong_queries,
            n_targets=budget.strong_targets,
            batch_size=budget.batch_size,
            return_info=True,
            **ball,
        )
    stage = np.asarray(info.broken_by)
    found = {" + ".join(_STAGES[:s]): (stage >= 0) & (stage <= s) for s in range(1, len(_STAGES))}
    return found | {"AutoAttack": stage >= 0}


def _accuracies(
    name: str, found: Mapping[str, np.ndarray], budget: Budget, draws: Mapping[str, int]
) -> list[Measurement]:
    worst = np.any(list(found.values()), axis=0)
    settings = {"eps": budget.headline_eps, "norm": budget.norm, "examples": len(worst), **draws}
    sizes = {"steps": budget.strong_steps, "targets": budget.strong_targets}
    queries = {"queries": budget.strong_queries}
    rows = []
    for attack, lost in (*found.items(), ("strongest", worst)):
        spent = {} if attack in ("Square", "SPSA") else sizes
        said = "any attack of this section" if attack == "strongest" else attack
        low, high = binomial_interval(int((~lost).sum()), len(lost))
        rows.append(
            Measurement(
                model=name,
                name="robust_accuracy",
                value=float(1 - lost.mean()),
                low=float(low),
                high=float(high),
                definition=f"Share of test examples classified correctly and not fooled within eps "
                f"by {said}; with its 95 % Clopper-Pearson interval.",
                settings={"attack": attack, **settings, **spent, **queries},
                headline=f"strongest @ {budget.headline_eps:g}" if attack == "strongest" else "",
                kind="share",
            )
        )
    return rows


def _search(name: str, queries: np.ndarray, lost: np.ndarray, most: int) -> Series:
    """Accuracy after every number of queries at which some example was lost."""
    at = np.unique(np.concatenate([[1, most], np.minimum(queries[lost], most)]))
    left = [float(1 - (lost & (queries <= q)).mean()) for q in at]
    return Series(name, tuple(map(float, at)), tuple(left), style="steps")


def _transfer(
    models: dict[str, Model],
    x: np.ndarray,
    y: np.ndarray,
    key_craft: Key,
    key_look: Key,
    budget: Budget,
    *,
    eps: float,
    **ball: Any,
) -> list[Measurement]:
    """A figure for every pair: the model that points were made on, the one they are tried on."""

    def craft(logits_fn: Any, x: Array, y: Array, key: Key) -> Array:
        attack = partial(
            pgd,
            logits_fn,
            eps=eps,
            steps=budget.steps,
            restarts=budget.restarts,
            criterion=wrong,
            gradient=hook(logits_fn, budget),
            **ball,
        )
        return canonical_convolutions(partial(attack, x, y))(key=key)

    look = per_architecture(lambda f, z, y, key: wrong(call(f, z, key), y))
    crafted = per_architecture(craft)
    run = partial(in_batches, y=y, batch_size=budget.batch_size)
    right = {v: ~run(partial(look, model), x, key=key_look) for v, model in models.items()}
    rows = []
    for source, model in models.items():
        z = run(partial(crafted, model), x, key=key_craft)
        for victim in models:
            lost = run(partial(look, models[victim]), z, key=key_look)[right[victim]]
            low, high = binomial_interval(int(lost.sum()), max(len(lost), 1))
            rows.append(
                Measurement(
                    model=victim,
                    name="transfer_success",
                    value=float(lost.mean()) if len(lost) else None,
                    low=float(low) if len(lost) else None,
                    high=float(high) if len(lost) else None,
                    definition="Share of the test examples that this model classifies correctly, "
                    "and no longer does once PGD has moved them within eps on the model named; its "
                    "own name: the white-box rate. With its 95 % Clopper-Pearson interval.",
                    settings={
                        "made on": source,
                        "eps": eps,
                        "norm": ball["norm"],
                        "examples": len(lost),
                        "steps": budget.steps,
                        "restarts": budget.restarts,
                    },
                    kind="share",
                    note="" if len(lost) else "no example is classified correctly",
                )
            )
    return rows
