"""Few numbers instead of one a pair: CMA-ES over a family of methods."""

import importlib
import importlib.util
from typing import Any, Literal

import numpy as np
from pydantic import Field

from longspan.search.desk import Budget, Desk
from longspan.search.families import FAMILIES
from longspan.search.judge import Candidate
from longspan.search.strategies.base import Seconds, Strategy
from longspan.utils.errors import ConfigError

SPREAD = 0.2  # of the box: the first generation's standard deviation


class Structured(Strategy):
    """CMA-ES (Hansen 2016, arXiv:1604.00772; package `cmaes`) over the numbers of a family, from its best known point.

    `family` "longrope2" holds what LongRoPE2 searches pair by pair in six numbers: where the ramp begins and ends and
    how it bends, how far slow pairs go beyond the factor, their slope, and the attention factor. "yarn" tunes YaRN,
    "ntk" and "theta_law" a theta; "window" shrinks an extended model's factors for its original window. On rows that
    skip, the attention factor stays that of its formula.
    """

    kind: Literal["structured"] = "structured"
    family: Literal["longrope2", "yarn", "ntk", "theta_law", "window"] = "longrope2"
    evaluations: int = Field(default=64, ge=1)
    seconds: Seconds | None = None
    population: int = Field(default=8, ge=2)

    @property
    def name(self) -> str:
        """`structured`, or the family that is tuned."""
        return self.kind if self.family == "longrope2" else self.family

    @property
    def tunes_a_formula(self) -> bool:
        """Three families hold closed formulas."""
        return self.family in ("yarn", "ntk", "theta_law")

    @property
    def budget(self) -> Budget:
        """Its evaluations and seconds."""
        return Budget(evaluations=self.evaluations, seconds=self.seconds)

    def require(self) -> None:
        """Raises `ConfigError` when `cmaes` is missing."""
        if importlib.util.find_spec("cmaes") is None:
            raise ConfigError(
                "search.no-package",
                "the structured search needs the package cmaes",
                where="recipe: search",
                fix='pip install "longspan[search]"',
            )

    def run(self, desk: Desk) -> None:
        """Known points first, then generations around the best of them, until the budget is spent."""
        self.require()
        family = FAMILIES[self.family](desk.space)
        if desk.sheet.kind == "skip":
            family = family.without_heat
        known = desk.losses([Candidate(method=family.method(point)) for point in family.starts])
        start = family.starts[int(np.argmin(known))]
        optimizer: Any = importlib.import_module("cmaes").CMA(
            mean=np.array(start),
            sigma=SPREAD,
            bounds=np.array([[0.0, 1.0]] * family.size),
            seed=desk.seed % 2**32,
            population_size=self.population,
        )
        while not optimizer.should_stop():
            points = [np.clip(optimizer.ask(), 0.0, 1.0) for _ in range(self.population)]
            methods = [family.method([float(number) for number in point]) for point in points]
            losses = desk.losses([Candidate(method=method) for method in methods])
            worst = max((loss for loss in losses if np.isfinite(loss)), default=0.0)
            finite = [loss if np.isfinite(loss) else worst + 1.0 for loss in losses]
            optimizer.tell(list(zip(points, finite, strict=True)))
