"""``spax epsilon``: what a training recipe costs, with the assumptions spelled out."""

import argparse
import json
import math
import sys
from typing import NamedTuple

from spax.dp.accounting import gdp, moments, pld, rdp, zcdp

__all__ = ["epsilon"]

_NOISE = (
    "every step adds Gaussian noise of standard deviation {sigma:g} times the clip norm to the sum "
    "of the clipped gradients, freshly drawn, and each unit's gradient is clipped to that norm"
)
_SCOPE = (
    "nothing else looked at the data: choosing settings, early stopping and normalising on private "
    "data cost more",
    "all intermediate models may be seen by the adversary",
)


class _Bounds(NamedTuple):
    """Figures by accountant, with what each is, and what they rest on."""

    figures: dict[str, tuple[float, str]]
    assumptions: tuple[str, ...]


def epsilon(options: argparse.Namespace) -> int:
    """Runs ``spax epsilon``.

    Args:
      options: as the parser of `spax.__main__` reads them.

    Returns:
      The exit code: 0 done, 2 bad input.
    """
    try:
        _check(options)
        bounds = _BOUNDS[options.sampler](options)
    except (TypeError, ValueError) as error:
        print(f"spax epsilon: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    assumptions = (_NOISE.format(sigma=options.noise_multiplier), *bounds.assumptions, *_SCOPE)
    if options.json:
        print(json.dumps(_report(options, bounds, assumptions), indent=2, allow_nan=False))
        return 0
    print(
        f"noise multiplier {options.noise_multiplier:g}, sampling rate {options.sampling_rate:g}, "
        f"{options.steps} steps, delta {options.delta:g}, sampler {options.sampler}\n"
    )
    width = max(map(len, bounds.figures))
    for name, (value, about) in bounds.figures.items():
        print(f"  {name:<{width}}  epsilon {_up(value):>10}   {about}")
    print("\nThis holds if")
    for line in assumptions:
        print(f"  - {line}")
    return 0


def _up(value: float) -> str:
    """Four decimals, rounded up."""
    return f"{math.ceil(value * 1e4) / 1e4:.4f}" if math.isfinite(value) else "inf"


def _report(options: argparse.Namespace, bounds: _Bounds, assumptions: tuple[str, ...]) -> dict:
    return {
        "noise_multiplier": options.noise_multiplier,
        "sampling_rate": options.sampling_rate,
        "steps": options.steps,
        "delta": options.delta,
        "sampler": options.sampler,
        # JSON has no infinity: null is no bound.
        "epsilon": {
            name: value if math.isfinite(value) else None
            for name, (value, _) in bounds.figures.items()
        },
        "accountants": {name: about for name, (_, about) in bounds.figures.items()},
        "assumptions": list(assumptions),
    }


def _check(options: argparse.Namespace) -> None:
    """Raises unless the numbers are in range."""
    for name, value, fine, wanted in (
        ("--noise-multiplier", options.noise_multiplier, options.noise_multiplier > 0, "> 0"),
        ("--sampling-rate", options.sampling_rate, 0 < options.sampling_rate <= 1, "in (0, 1]"),
        ("--steps", options.steps, 0 <= options.steps < 2**31, ">= 0 and below 2^31"),
        ("--delta", options.delta, 0 < options.delta < 1, "in (0, 1)"),
    ):
        if not (fine and math.isfinite(value)):
            raise ValueError(f"{name} must be {wanted} (got {value:g})")


def _by_rdp(options: argparse.Namespace, about: str, **kind: str) -> dict[str, tuple[float, str]]:
    _, state = rdp.update(
        rdp.init(**kind),
        noise_multiplier=options.noise_multiplier,
        sampling_rate=options.sampling_rate,
        steps=options.steps,
    )
    return {
        "rdp": (float(rdp.epsilon(state, options.delta)), f"Renyi divergence{about}"),
        "moments": (
            float(moments.epsilon(state, options.delta)),
            "the moments accountant of 2016, from the same divergence",
        ),
    }


def _poisson(options: argparse.Namespace) -> _Bounds:
    mechanism = pld.gaussian(
        noise_multiplier=options.noise_multiplier, sampling_rate=options.sampling_rate
    )
    _, state = pld.update(pld.init([mechanism]), steps=options.steps)
    found = pld.epsilon_with_error(state, options.delta)
    about = "the RDP bound: the losses fit no grid" if found.from_rdp else "tight"
    figures = {"pld": (float(found.epsilon), f"privacy loss distribution, {about}")}
    return _Bounds(
        figures | _by_rdp(options, ""),
        (
            "each unit takes part in each step on its own, with probability "
            f"{options.sampling_rate:g} (Poisson sampling; not by shuffling, and not in batches of "
            "one size), and no batch was cut off",
            "sums are divided by the expected size of a batch, never by the drawn one",
            "neighbouring data sets differ by one unit, added or removed",
        ),
    )


def _fixed_size(options: argparse.Namespace) -> _Bounds:
    figures = _by_rdp(
        options, " of sampling without replacement", sampler="fixed_size", adjacency="replace"
    )
    return _Bounds(
        figures,
        (
            f"each step draws a share {options.sampling_rate:g} of the units without replacement, "
            "afresh and independently of all other steps",
            "neighbouring data sets differ by one unit replaced (twice the clip norm)",
            "there is no tight account here: the bound is that of Wang, Balle and Kasiviswanathan "
            "(2019)",
        ),
    )


def _full_batch(options: argparse.Namespace) -> _Bounds:
    if options.sampling_rate != 1:
        raise ValueError(
            f"--sampler full_batch has --sampling-rate 1 (got {options.sampling_rate:g})"
        )
    _, state = gdp.update(
        gdp.init(), noise_multiplier=options.noise_multiplier, steps=options.steps
    )
    figures = {"gdp": (float(gdp.epsilon(state, options.delta)), "exact for Gaussian releases")}
    return _Bounds(
        figures | _by_rdp(options, "", sampler="full_batch"),
        (
            "every unit takes part in every step",
            "neighbouring data sets differ by one unit, added or removed",
        ),
    )


def _by_epochs(options: argparse.Namespace, adjacency: str) -> dict[str, tuple[float, str]]:
    """Once an epoch, without amplification: the account of so many full releases."""
    batches = max(1, math.floor(1 / options.sampling_rate + 1e-9))
    epochs = -(-options.steps // batches)
    about = f"{epochs} epochs of {batches} batches, each unit once in each; no amplification"
    noise = options.noise_multiplier
    _, state = gdp.update(gdp.init(adjacency=adjacency), noise_multiplier=noise, steps=epochs)
    _, rho = zcdp.update(zcdp.init(adjacency=adjacency), noise_multiplier=noise, steps=epochs)
    return {
        "gdp": (float(gdp.epsilon(state, options.delta)), about),
        "zcdp": (float(zcdp.epsilon(rho, options.delta)), "the same by zCDP"),
    }


_NO_AMPLIFICATION = (
    "the Poisson figure is no bound here: this one gains nothing from the order being random"
)


def _shuffled(options: argparse.Namespace) -> _Bounds:
    return _Bounds(
        _by_epochs(options, "replace"),
        (
            "each unit is in exactly one batch of each epoch, at a place that does not depend on "
            "the data",
            "neighbouring data sets differ by one unit replaced (twice the clip norm)",
            _NO_AMPLIFICATION,
        ),
    )


def _balls_in_bins(options: argparse.Namespace) -> _Bounds:
    return _Bounds(
        _by_epochs(options, "add_remove"),
        (
            "each unit is in exactly one batch of each epoch, at a place drawn for it alone",
            "neighbouring data sets differ by one unit, added or removed",
            _NO_AMPLIFICATION,
        ),
    )


_BOUNDS = {
    "poisson": _poisson,
    "fixed_size": _fixed_size,
    "full_batch": _full_batch,
    "shuffled": _shuffled,
    "balls_in_bins": _balls_in_bins,
}
