"""The verdict on each model's robustness, from what all probes found."""

from collections.abc import Sequence

from spax.audit.budget import Budget
from spax.audit.sections import Measurement, Section, Verdict

__all__ = ["conclude"]


def conclude(models: Sequence[str], sections: Sequence[Section], budget: Budget) -> Section | None:
    """Robust, not robust, or not to be trusted: one verdict a model, with its reasons.

    A model is robust where at least ``budget.robust_share`` of the test examples survives every
    attack at the headline's radius: the lower end of the 95 % interval of the smallest figure.
    No figure counts where a masking check failed.

    Args:
      models: their names.
      sections: what the probes found.
      budget: the radius, and the share that is asked for.

    Returns:
      The section "verdict"; None where no probe measured robust accuracy at that radius.

    Example:
      >>> m = Measurement("a", "robust_accuracy", 0.9, "", 0.8, 0.95, {"attack": "pgd", "eps": 0.1})
      >>> found = conclude(["a"], [Section("robustness", "", measurements=(m,))],
      ...                  Budget(eps=(0.1,)))
      >>> found.verdicts[0].level, found.verdicts[0].text[:10]
      ('warning', 'not known:')
    """
    checked = {
        v.model: [c for c in s.verdicts if c.model == v.model]
        for s in sections
        for v in s.verdicts
        if v.name == "masking"
    }
    verdicts = []
    for model in models:
        figures = [
            m
            for s in sections
            for m in s.measurements
            if m.model == model
            and m.name == "robust_accuracy"
            and m.value is not None
            and m.settings.get("eps") == budget.headline_eps
        ]
        if figures:
            least = min(figures, key=lambda m: m.value or 0.0)
            verdicts.append(_verdict(model, least, checked.get(model), budget))
    if not verdicts:
        return None
    return Section(
        "verdict",
        "Verdict",
        text=f"Robust is called what keeps at least {100 * budget.robust_share:g} % of the test "
        f"examples right at eps {budget.headline_eps:g} ({budget.norm}) under every attack of this "
        "audit, and shows no sign of gradient masking. Stronger attacks may exist.",
        verdicts=tuple(verdicts),
    )


def _verdict(
    model: str, least: Measurement, checks: Sequence[Verdict] | None, budget: Budget
) -> Verdict:
    value, low = least.value or 0.0, least.low or 0.0
    found = (
        f"{100 * value:.1f} % stay right under {least.settings['attack']} at eps "
        f"{budget.headline_eps:g}"
    )
    if checks and checks[0].level == "failure":
        failed = [c.name.replace("_", " ") for c in checks[1:] if c.level == "failure"]
        return Verdict(
            model,
            "robustness",
            "failure",
            f"robustness not trustworthy: {found}, but these masking checks failed: "
            f"{', '.join(failed)}",
        )
    asked = f"{100 * budget.robust_share:g} % are asked for"
    if low < budget.robust_share:
        doubt = "" if value < budget.robust_share else f" (at least {100 * low:.1f} % surely)"
        return Verdict(model, "robustness", "warning", f"not robust: {found}{doubt}; {asked}")
    if checks is None or checks[0].level != "ok":
        return Verdict(
            model,
            "robustness",
            "warning",
            f"not known: {found}, but "
            + ("no masking check ran" if checks is None else checks[0].text),
        )
    return Verdict(model, "robustness", "ok", f"robust: {found}; {asked}")
