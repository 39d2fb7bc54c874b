"""Reports to render, made by hand: one as an audit's, one whose names want to break the page."""

import math

import numpy as np

from spax.audit import AuditReport, Images, Measurement, Plot, Section, Series, Verdict

NAMES = ("plain", "robust", "private")

HOSTILE = (
    '<script>alert("1")</script>',
    "\"quoted' & <b>bold</b>",
    "[bold red]markup[/]",
    "\x1b[31mred\x1b[0m\x07\r",
    "\u202egnp.exe\u2066",  # written from the right
    "two\nlines\tand a tab",
    "\ud800",  # half of a pair of surrogates
    "long" * 60,
    "模型" * 30,
    "]]>--><!--</style></svg></title>",
    "javascript:alert(1)//http://example.org/x.js",
    " ",
)


def measurements(names=NAMES):
    for i, name in enumerate(names):
        share = 0.9777 - 0.1 * i
        yield Measurement(
            name,
            "clean_accuracy",
            share,
            f"Share of test examples that {name} classifies correctly.",
            share - 0.0151,
            min(share + 0.0151, 1.0),
            {"examples": 540},
            headline="clean",
            kind="share",
        )
        for eps in (0.05, 0.1):
            yield Measurement(
                name,
                "robust_accuracy",
                share - eps,
                "Share not fooled within eps.",
                share - eps - 0.03,
                share - eps + 0.03,
                {"attack": "pgd", "eps": eps, "steps": 20},
                headline="robust @ 0.1" if eps == 0.1 else "",
                kind="share",
                note="" if i else "not trustworthy: gradients are masked",
            )
        yield Measurement(
            name,
            "epsilon",
            4.7341 if i == 2 else math.inf,
            "Epsilon of the training.",
            settings={"delta": 1e-5} if i == 2 else {},
            headline="epsilon",
            note="at delta = 1e-05" if i == 2 else "no promise",
        )
        yield Measurement(
            name, "membership_tpr", None, "Share found.", kind="share", note="too few examples"
        )


def section(names=NAMES):
    rng = np.random.default_rng(0)
    found = tuple(measurements(names))
    curves = tuple(Series(n, (0.0, 0.1), (0.9, 0.5), (0.8, 0.4), (1.0, 0.6)) for n in names)
    points = tuple(
        Series(m.model, (m.value,), (0.9,), (0.88,), (0.92,), style="points")
        for m in found
        if m.name == "epsilon"
    )
    return Section(
        "all",
        "All at once",
        text="First paragraph.\n\nSecond paragraph.",
        measurements=found,
        verdicts=(
            Verdict(names[0], "robustness", "failure", "robustness not trustworthy: gradients die"),
            *(Verdict(n, "robustness", "ok", "no sign of gradient masking") for n in names[1:]),
            Verdict(names[0], "gradients", "failure", "zero on 90 % of the examples"),
        ),
        plots=(
            Plot("Robust accuracy", "eps", "accuracy", curves, caption="Bands are intervals."),
            Plot("Privacy against utility", "epsilon", "accuracy", points),
        ),
        images=(
            Images(
                "Images",
                rng.uniform(size=(len(names), 2, 4, 4, 1)),
                tuple(names),
                tuple((f"{n} is 3", "none found") for n in names),
            ),
        ),
    )


def report(names=NAMES, seconds=1.5, **changes):
    fields = {
        "title": "Security and privacy audit",
        "models": tuple(names),
        "data": {"name": "digits", "test_examples": 540, "bounds": [0.0, 1.0]},
        "settings": {"seed": 0, "budget": {"norm": "linf", "eps": (0.05, 0.1)}},
        "versions": {"spax": "0.1.0", "jax": "0.10.2"},
        "sections": (section(names),),
        "timings": {"finished": "2026-01-02T03:04:05+00:00", "seconds": {"all": seconds}},
    }
    return AuditReport(**(fields | changes))


def hostile():
    """Every text of it is one of those names."""
    bad = HOSTILE[0] + HOSTILE[1]
    sneaky = Section(
        bad,
        bad,
        text=bad,
        measurements=(Measurement(bad, bad, 0.5, bad, settings={bad: {bad: bad}}, note=bad),),
        verdicts=(Verdict(bad, bad, bad, bad),),
        plots=(Plot(bad, bad, bad, (Series(bad, (0.0,), (1.0,)),), caption=bad),),
        images=(Images(bad, np.zeros((1, 1, 2, 2, 3)), (bad,), ((bad,),), caption=bad),),
    )
    texts = {name: {name: name} for name in HOSTILE}
    return report(
        HOSTILE,
        title=bad,
        data={"name": bad, **texts},
        settings=texts,
        versions={"spax": bad, **dict(zip(HOSTILE, HOSTILE, strict=True))},
        timings={"finished": bad, **texts},
        sections=(section(HOSTILE), sneaky),
    )
