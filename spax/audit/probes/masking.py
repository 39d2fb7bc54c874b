"""Whether robust accuracy can be believed: signs that the attacks failed and not the defence won.

Each check compares what the gradient attack found with something that must not do better if
gradients are useful (Athalye et al. 2018, arXiv:1802.00420, Section 3.1; Carlini et al. 2019,
arXiv:1902.06705). A sign is reported where chance explains it in less than one case of a hundred.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spax.audit.budget import Budget
from spax.audit.data import in_batches, sample
from spax.audit.model import Model, per_architecture
from spax.audit.probes.robustness import corner, draws, hook, wrong
from spax.audit.sections import Measurement, Plot, Section, Series, Verdict
from spax.checks import are_probabilities
from spax.datasets import Dataset
from spax.evaluation import binomial_interval
from spax.evaluation.judging import examine
from spax.evasion import pgd
from spax.gradients import canonical_convolutions, spsa
from spax.losses import cross_entropy, margin
from spax.norms import sample as sample_ball
from spax.typing import Array, Key, Stochastic, call

__all__ = ["masking"]

_TRUSTED = 0.01
"""Largest probability of a sign by chance, and largest share of examples that may fail a check."""

_RADII = 5

_WORTH = 0.02
"""The share that all attacks together may gain on PGD before it is a sign."""

_STRONGER = {"longer", "query", "transfer", "log"}
"""What is found by attacks within the checked radii alone."""


@dataclasses.dataclass(frozen=True)
class _Check:
    """One check of one model: what it is called, whether it found a sign, and what it says."""

    name: str
    sign: bool
    text: str


def masking(models: dict[str, Model], data: Dataset, budget: Budget, key: Key) -> Section:
    """Checks each model for gradient masking, and gives the verdict on its robust accuracy.

    The signs: a black-box attack (SPSA, or points made on the other models) or a longer attack
    beats the gradient attack; its success stays below 100 % when the ball has grown to the whole
    box; gradients are zero or not finite; the model returns probabilities, so that the loss
    saturates (then ``log(p)`` is attacked too).

    Args:
      models: the models by name.
      data: test examples.
      budget: the radius ``headline_eps``, and the sizes of the attacks.
      key: a random key.

    Returns:
      The section "masking", whose verdict "masking" of a model is "ok" or "failure", or "warning"
      where the examples are too few.
    """
    budget = budget.for_bounds(data.bounds)
    key_sample, key_attacks = jax.random.split(key)
    x, y = sample(data.x_test, data.y_test, budget.masking_examples, key_sample)
    checked, radii = _radii(x, data.bounds, budget)
    measurements: list[Measurement] = []
    verdicts: list[Verdict] = []
    growth: list[Series] = []
    for name, f in _evidence(
        models, x, y, checked, radii, data.bounds, budget, key_attacks
    ).items():
        checks = _checks(f, budget)
        verdicts.append(_overall(name, checks, len(x)))
        verdicts += [Verdict(name, c.name, "failure" if c.sign else "ok", c.text) for c in checks]
        measurements += _measurements(name, f, checked, budget, draws(models[name], budget))
        growth.append(_growth(name, f, radii))
    return Section(
        "masking",
        "Can the robust accuracy be trusted?",
        text="Where gradients are hidden, attacks fail and the model only looks robust. A model "
        "without a sign may still hide them from these checks.",
        measurements=tuple(measurements),
        verdicts=tuple(verdicts),
        plots=(
            Plot(
                "Success of PGD as the ball grows to the whole box",
                f"eps ({budget.norm})",
                "share misclassified",
                tuple(growth),
                log="x",
                caption="The last radius is the diameter of the box: there an attack that is not "
                "misled reaches 100 %.",
            ),
        ),
    )


def _evidence(
    models: dict[str, Model],
    x: np.ndarray,
    y: np.ndarray,
    checked: tuple[float, ...],
    radii: tuple[float, ...],
    bounds: tuple[float, float],
    budget: Budget,
    key: Key,
) -> dict[str, dict[str, np.ndarray]]:
    """What every attack found on each model: which examples are wrong after it, and the like.

    ``[N, R]`` for the attacks within the checked radii and for ``pgd``, which is the attack of the
    robust accuracy there; ``growing`` is the same attack at all ``radii``.
    """
    key_attack, key_log, key_transfer = jax.random.split(key, 3)
    program = per_architecture(
        partial(_attack, checked=checked, radii=radii, budget=budget, bounds=bounds)
    )
    of_log = per_architecture(partial(_attack_log, checked=checked, budget=budget, bounds=bounds))
    look = per_architecture(lambda f, x, y, key: wrong(call(f, x, key), y))
    run = partial(in_batches, y=y, batch_size=budget.batch_size)

    found: dict[str, dict[str, np.ndarray]] = {}
    for i, (name, model) in enumerate(models.items()):
        budget.say(i / len(models), f"masking checks of {name}")
        found[name] = dict(run(partial(program, model), x, key=key_attack))
        if are_probabilities(found[name]["outputs"]):
            found[name]["log"] = run(partial(of_log, model), x, key=key_log)
    if len(models) > 1:
        for name, model in models.items():
            there = [f["x_adv"] for other, f in found.items() if other != name]
            found[name]["transfer"] = np.stack(
                [
                    np.any([run(partial(look, model), z[:, r], key=key_transfer) for z in there], 0)
                    for r in range(len(checked))
                ],
                axis=1,
            )
    for f in found.values():
        # What is wrong as it is needs no attack, and one that starts elsewhere may miss it.
        for attack in {"growing"} | _STRONGER & f.keys():
            f[attack] = f[attack] | f["wrong"][:, None]
        f["pgd"] = f["growing"][:, [radii.index(r) for r in checked]]
    return found


def _radii(
    x: np.ndarray, bounds: tuple[float, float], budget: Budget
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The headline's radius and the largest; and those up to the diameter, in geometric steps."""
    diameter = corner(x[0].size, budget.norm) * (bounds[1] - bounds[0])
    checked = sorted({min(e, diameter) for e in (budget.headline_eps, budget.eps[-1])})
    steps = map(float, np.geomspace(checked[0], diameter, _RADII)[1:])
    return tuple(checked), tuple(sorted({*checked, *steps}))


def _attack(
    logits_fn: Any,
    x: Array,
    y: Array,
    key: Key,
    *,
    checked: tuple[float, ...],
    radii: tuple[float, ...],
    budget: Budget,
    bounds: Any,
) -> Mapping[str, Array]:
    """What each attack achieves on one batch, at the checked radii, or at all (``growing``)."""
    keys = iter(jax.random.split(key, 5))
    norm = budget.norm
    ball = {"norm": norm, "bounds": bounds}
    gradient = hook(logits_fn, budget)
    attack = partial(pgd, logits_fn, x, y, criterion=wrong, gradient=gradient, **ball)

    @canonical_convolutions
    def grown(given: tuple[Array, Key]) -> Array:
        eps, key = given
        key_attack, key_look = jax.random.split(key)
        z = attack(key=key_attack, eps=eps, steps=budget.steps, restarts=budget.restarts)
        return _wrong_within(logits_fn, x, z, y, key_look, eps=eps, **ball)

    @canonical_convolutions
    def stronger(given: tuple[Array, Key]) -> Mapping[str, Array]:
        eps, key = given
        keys = jax.random.split(key, 4)
        longer = attack(
            key=keys[0], eps=eps, steps=budget.long_steps, restarts=budget.long_restarts
        )
        # Directions of signs whose length is half the radius: fine structure is averaged out.
        half = eps / (2 * corner(x[0].size, norm))
        query = attack(
            key=keys[1],
            eps=eps,
            steps=budget.query_steps,
            loss=margin,
            gradient=spsa(budget.query_draws, half),
        )
        return {
            "longer": _wrong_within(logits_fn, x, longer, y, keys[2], eps=eps, **ball),
            "query": _wrong_within(logits_fn, x, query, y, keys[3], eps=eps, **ball),
            "x_adv": longer,
        }

    def at(program: Any, radii: tuple[float, ...], key: Key) -> Any:
        given = jnp.asarray(radii, x.dtype), jax.random.split(key, len(radii))
        return jax.tree.map(lambda v: jnp.moveaxis(v, 0, 1), lax.map(program, given))

    # Where PGD starts: at x itself a symmetry may make a gradient zero.
    key_start, key_look = jax.random.split(next(keys))
    start = jnp.clip(x + sample_ball(key_start, x, checked[0], norm), *bounds)

    def loss(z: Array, key: Key) -> tuple[Array, Array]:
        outputs = call(logits_fn, z, key)
        return cross_entropy(outputs, y), outputs

    _, grad, outputs = gradient(Stochastic(loss), start, key_look)
    flat = grad.reshape(len(x), -1)
    return {
        "wrong": wrong(call(logits_fn, x, next(keys)), y),
        "growing": at(grown, radii, next(keys)),
        **at(stronger, checked, next(keys)),
        "dead": ~jnp.isfinite(flat).all(axis=1) | (flat == 0).all(axis=1),
        "outputs": outputs,
    }


def _wrong_within(
    logits_fn: Any, x: Array, z: Array, y: Array, key: Key, *, eps: Any, norm: str, bounds: Any
) -> Array:
    """Whether points that keep to ball and box are not classified correctly."""
    seen = examine(
        call(logits_fn, z, key),
        x,
        z,
        y,
        norm=norm,
        eps=eps,
        bounds=bounds,
        targeted=False,
        criterion=None,
    )
    return seen.valid & (seen.fooled | ~seen.predicted)


def _attack_log(
    logits_fn: Any,
    x: Array,
    y: Array,
    key: Key,
    *,
    checked: tuple[float, ...],
    budget: Budget,
    bounds: Any,
) -> Array:
    """Success against a model of probabilities of PGD on their logarithms, the lost logits."""

    def log(p: Array) -> Array:
        return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))

    if isinstance(logits_fn, Stochastic):
        log_fn: Any = Stochastic(lambda x, key: log(call(logits_fn, x, key)))
    else:
        log_fn = lambda x: log(logits_fn(x))  # noqa: E731
    ball = {"norm": budget.norm, "bounds": bounds}

    @canonical_convolutions
    def within(given: tuple[Array, Key]) -> Array:
        eps, key = given
        key_attack, key_judge = jax.random.split(key)
        x_adv = pgd(
            log_fn,
            x,
            y,
            key=key_attack,
            eps=eps,
            steps=budget.steps,
            restarts=budget.long_restarts,
            criterion=wrong,
            gradient=hook(logits_fn, budget),
            **ball,
        )
        return _wrong_within(logits_fn, x, x_adv, y, key_judge, eps=eps, **ball)

    given = jnp.asarray(checked, x.dtype), jax.random.split(key, len(checked))
    return lax.map(within, given).T


def _beats(rival: np.ndarray, base: np.ndarray) -> bool:
    """McNemar's exact test, one-sided: the rival succeeds where the other fails, not by chance."""
    from scipy.stats import binomtest

    gained, lost = int((rival & ~base).sum()), int((base & ~rival).sum())
    if not gained:
        return False
    return bool(binomtest(gained, gained + lost, alternative="greater").pvalue < _TRUSTED)


def _frequent(bad: np.ndarray) -> bool:
    """Whether more than a hundredth of all examples is bad, with confidence 97.5 %."""
    return bool(binomial_interval(int(bad.sum()), len(bad))[0] > _TRUSTED)


def _percent(*successes: np.ndarray) -> str:
    """The share at each checked radius."""
    columns = np.concatenate([s.reshape(len(s), -1) for s in successes], axis=1)
    return " and ".join(f"{100 * share:.0f} %" for share in columns.mean(axis=0))


def _gain(rivals: np.ndarray, base: np.ndarray) -> bool:
    """Whether they succeed on a share worth mentioning where it fails, with confidence 97.5 %."""
    gained = int((rivals & ~base).sum())
    return bool(binomial_interval(gained, len(base))[0] > _WORTH)


def _together(found: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.any([found[a] for a in ("pgd", *sorted(_STRONGER)) if a in found], axis=0)


def _checks(found: Mapping[str, np.ndarray], budget: Budget) -> list[_Check]:
    base, box = found["pgd"], found["growing"][:, -1]
    queries, how, dead = found["query"], "SPSA", found["dead"]
    if "transfer" in found:
        queries, how = queries | found["transfer"], "SPSA or points made on the other models"
    radii = range(base.shape[1])
    checks = [
        _Check(
            "black_box",
            any(_beats(queries[:, r], base[:, r]) for r in radii),
            f"without gradients ({how}) {_percent(queries)} are misclassified, "
            f"with gradients (PGD) {_percent(base)}",
        ),
        _Check(
            "longer_attack",
            any(_beats(found["longer"][:, r], base[:, r]) for r in radii),
            f"after {budget.long_restarts} x {budget.long_steps} steps "
            f"{_percent(found['longer'])} are misclassified, "
            f"after {budget.restarts} x {budget.steps} {_percent(base)}",
        ),
        _Check(
            "all_attacks",
            any(_gain(_together(found)[:, r], base[:, r]) for r in radii),
            f"by any of the attacks {_percent(_together(found))} are misclassified, "
            f"by PGD {_percent(base)}",
        ),
        _Check(
            "whole_box",
            _frequent(~box),
            f"{_percent(box)} are misclassified when the ball is the whole box",
        ),
        _Check(
            "gradients",
            _frequent(dead),
            f"the gradient is zero or not finite on {_percent(dead)} of the examples",
        ),
    ]
    if "log" in found:
        checks.append(
            _Check(
                "probabilities",
                True,
                "the model returns probabilities, where the loss saturates; after PGD on log(p) "
                f"{_percent(found['log'])} are misclassified, on p {_percent(base)}; "
                "return the logits",
            )
        )
    return checks


def _overall(name: str, checks: list[_Check], examples: int) -> Verdict:
    signs = [check.text for check in checks if check.sign]
    if signs:
        text = "gradients are masked: " + "; ".join(signs)
        return Verdict(name, "masking", "failure", text)
    if 0.5**examples >= _TRUSTED:
        return Verdict(
            name, "masking", "warning", f"{examples} examples are too few to see masking by"
        )
    return Verdict(name, "masking", "ok", f"no sign of gradient masking in {len(checks)} checks")


def _measurements(
    name: str,
    found: Mapping[str, np.ndarray],
    checked: tuple[float, ...],
    budget: Budget,
    draws: Mapping[str, int],
) -> list[Measurement]:
    sizes = {"norm": budget.norm, "examples": len(found["dead"]), **draws}
    as_there = {"steps": budget.steps, "restarts": budget.restarts}
    attacks = {
        "pgd": (found["pgd"], "PGD as in the robust accuracy", as_there),
        "longer": (
            found["longer"],
            "a longer PGD with restarts",
            {"steps": budget.long_steps, "restarts": budget.long_restarts},
        ),
        "spsa": (
            found["query"],
            "PGD along gradients estimated from queries (SPSA) of the margin",
            {"steps": budget.query_steps, "draws": budget.query_draws},
        ),
    }
    if "transfer" in found:
        attacks["transfer"] = (found["transfer"], "the longer PGD's points on the other models", {})
    if "log" in found:
        attacks["log"] = (
            found["log"],
            "PGD on the logarithm of the probabilities",
            {"steps": budget.steps, "restarts": budget.long_restarts},
        )
    attacks["all"] = (_together(found), "any of the attacks of this section", {})
    rows = [
        _share(
            name,
            "checked_robust_accuracy",
            ~success[:, r],
            f"Share of test examples classified correctly and not fooled within eps by {what}.",
            sizes | {"eps": eps, "attack": attack} | numbers,
        )
        for r, eps in enumerate(checked)
        for attack, (success, what, numbers) in attacks.items()
    ]
    rows.append(
        _share(
            name,
            "whole_box_success",
            found["growing"][:, -1],
            "Share of test examples that PGD makes misclassified when the ball is the whole box.",
            sizes | {"attack": "pgd"} | as_there,
        )
    )
    rows.append(
        _share(
            name,
            "dead_gradients",
            found["dead"],
            "Share of test examples, each moved to a random point of the ball, where the gradient "
            "of the cross-entropy is zero or not finite.",
            sizes | {"eps": checked[0]},
        )
    )
    return rows


def _share(
    model: str, name: str, yes: np.ndarray, definition: str, settings: Mapping[str, Any]
) -> Measurement:
    low, high = binomial_interval(int(yes.sum()), len(yes))
    return Measurement(
        model,
        name,
        float(yes.mean()),
        definition + " With its 95 % Clopper-Pearson interval.",
        float(low),
        float(high),
        settings,
        kind="share",
    )


def _growth(name: str, found: Mapping[str, np.ndarray], radii: tuple[float, ...]) -> Series:
    share = found["growing"].mean(axis=0)
    low, high = binomial_interval(found["growing"].sum(axis=0), len(found["growing"]))
    y, below, above = (tuple(map(float, v)) for v in (share, low, high))
    return Series(name, radii, y, below, above)
