"""How much an audit may spend, and on which radii."""

import dataclasses
import math
from collections.abc import Callable

from spax.audit.errors import AuditError

__all__ = ["BUDGETS", "FULL", "QUICK", "STANDARD_BUDGET", "Budget"]

NORMS = ("linf", "l2", "l1")

# For inputs in [0, 1]; wider bounds scale them. Nothing but a starting point: which change of an
# input must not change its label is known to whoever knows the data.
_EPS = {
    "linf": (0.05, 0.1, 0.15, 0.2),
    "l2": (0.25, 0.5, 0.75, 1.0),
    "l1": (1.0, 2.0, 3.0, 4.0),
}


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an audit may spend: all static numbers of its attacks.

    Args:
      name: what the report calls it.
      norm: of the attacks' ball: ``"linf"``, ``"l2"`` or ``"l1"``.
      eps: radii of the grid, ascending, each > 0, in the units of the inputs; empty: the norm's
        default grid, scaled by the width of the data's bounds (`for_bounds`).
      max_examples: test examples attacked, at most, by the grid of radii.
      batch_size: examples at a time, at most: what bounds the memory.
      steps: of PGD.
      restarts: of PGD.
      distance_examples: examples that Carlini and Wagner's attack is run on, at most.
      distance_steps: its steps a round.
      distance_rounds: its rounds of bisection.
      masking_examples: examples that the masking checks look at, at most.
      long_steps: steps of their long attack.
      long_restarts: its restarts.
      query_steps: steps of their black-box attack.
      query_draws: pairs of queries in each of these steps.
      strong_examples: examples that the strongest attacks are run on, at the headline's radius, at
        most.
      strong_steps: steps of their gradient attacks (the published AutoAttack: 100).
      strong_targets: classes that these aim at (there: 9).
      strong_queries: queries of their black-box attack (there: 5,000).
      eot_draws: draws a gradient, for a model that is Stochastic.
      robust_share: of the test examples, in (0, 1], that has to stay right at the headline's radius
        for a model to be called robust.
      max_scored: examples of each part that are only looked at (accuracy, membership), at most.
      tell: ``tell(share, text)`` is called by a probe as it goes: the share of it that is done,
        and what it does next. Says nothing about the result and is not compared.

    Raises:
      AuditError: if a number is out of range or the norm unknown.

    Example:
      >>> Budget(norm="l2", eps=(0.5,)).headline_eps
      0.5
    """

    name: str = "quick"
    norm: str = "linf"
    eps: tuple[float, ...] = ()
    max_examples: int = 600
    batch_size: int = 200
    steps: int = 20
    restarts: int = 3
    distance_examples: int = 100
    distance_steps: int = 200
    distance_rounds: int = 8
    masking_examples: int = 200
    long_steps: int = 100
    long_restarts: int = 5
    query_steps: int = 20
    query_draws: int = 32
    strong_examples: int = 100
    strong_steps: int = 50
    strong_targets: int = 3
    strong_queries: int = 1000
    eot_draws: int = 4
    robust_share: float = 0.5
    max_scored: int = 20_000
    tell: Callable[[float, str], None] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise AuditError(f"norm must be one of {', '.join(NORMS)} (got {self.norm!r})")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (isinstance(value, int) and value >= 1):
                raise AuditError(f"{field.name} must be a whole number >= 1 (got {value!r})")
        if not (isinstance(self.robust_share, float) and 0 < self.robust_share <= 1):
            raise AuditError(f"robust_share must be in (0, 1] (got {self.robust_share!r})")
        try:
            eps = tuple(sorted({float(e) for e in self.eps}))
        except (TypeError, ValueError) as error:
            raise AuditError(f"eps must be a sequence of numbers > 0 (got {self.eps!r})") from error
        if not all(math.isfinite(e) and e > 0 for e in eps):
            raise AuditError(f"every eps must be a number > 0 (got {list(self.eps)})")
        object.__setattr__(self, "eps", eps)

    @property
    def headline_eps(self) -> float:
        """The radius of the summary table: the middle of the grid, the upper of two."""
        if not self.eps:
            raise AuditError("the budget has no radii yet; call for_bounds(bounds) first")
        return self.eps[len(self.eps) // 2]

    def for_bounds(self, bounds: tuple[float, float]) -> "Budget":
        """The budget with the norm's default radii, scaled to the bounds, if it has none.

        Example:
          >>> Budget().for_bounds((0.0, 2.0)).eps
          (0.1, 0.2, 0.3, 0.4)
        """
        if self.eps:
            return self
        width = bounds[1] - bounds[0]
        return dataclasses.replace(self, eps=tuple(e * width for e in _EPS[self.norm]))

    def settings(self) -> dict[str, object]:
        """Everything that decides the result, for the report."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}

    def say(self, share: float, text: str) -> None:
        """Says that a share of the probe is done and what comes next."""
        if self.tell is not None:
            self.tell(share, text)


QUICK = Budget()
STANDARD_BUDGET = Budget(
    name="standard",
    max_examples=2000,
    steps=50,
    restarts=5,
    distance_examples=500,
    distance_steps=1000,
    distance_rounds=9,
    masking_examples=500,
    long_steps=500,
    long_restarts=10,
    query_steps=50,
    query_draws=128,
    strong_examples=500,
    strong_steps=100,
    strong_targets=9,
    strong_queries=5000,
    eot_draws=16,
    max_scored=100_000,
)
FULL = Budget(
    name="full",
    max_examples=10_000,
    steps=100,
    restarts=10,
    distance_examples=1000,
    distance_steps=1000,
    distance_rounds=9,
    masking_examples=1000,
    long_steps=1000,
    long_restarts=10,
    query_steps=50,
    query_draws=256,
    strong_examples=1000,
    strong_steps=100,
    strong_targets=9,
    strong_queries=5000,
    eot_draws=32,
    max_scored=1_000_000,
)
BUDGETS = {budget.name: budget for budget in (QUICK, STANDARD_BUDGET, FULL)}
