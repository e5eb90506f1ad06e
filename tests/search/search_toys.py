"""A judge without a model: the loss is how far the factors are from a set that it has in mind."""

import contextlib
import math

from longspan.rope.frequencies import RopeBase
from longspan.search.desk import Budget, Desk, Spent
from longspan.search.judge import Sheet, Slope
from longspan.search.space import Space
from longspan.search.strategies.base import Strategy
from longspan.utils.lines import Lines

SMOLLM2 = RopeBase(rotary_dim=64, theta=1e5, trained_length=8192)


def space_of(factor: float = 8.0, base: RopeBase = SMOLLM2) -> Space:
    return Space(own=base, trained_length=base.trained_length, length=round(base.trained_length * factor))


class ToyJudge:
    """Mean squared distance of ln λ from a hidden set that keeps fast pairs and bends; full sheets add a little."""

    def __init__(self, space: Space, *, at_once: int = 4, nan_above: float = math.inf) -> None:
        self.identity, self.asked = "toy", 0
        self._space, self._at_once, self._nan_above = space, at_once, nan_above
        top, pairs = math.log(space.factor), space.pairs
        self.goal = [top * min(max((pair - 8) / 14, 0.0), 1.1) ** 1.4 for pair in range(pairs)]

    def together(self, sheet: Sheet) -> int:
        return self._at_once

    def losses(self, sets, sheet: Sheet) -> list[float]:
        self.asked += len(sets)
        return [
            self._loss(frequencies, kept) + 0.01 * (sheet.number + (sheet.kind == "full")) for frequencies, kept in sets
        ]

    def slope(self, frequencies, sheet: Sheet) -> Slope:
        self.asked += 1
        away = self._away(frequencies)
        by_logs = tuple(2 * a / len(away) for a in away)
        heat = 0.2 * (math.log(frequencies.attention_factor) - 0.05)
        return Slope(loss=self._loss(frequencies, 0), by_log_factors=by_logs, by_log_attention=heat)

    def _away(self, frequencies) -> list[float]:
        growth = frequencies.theta / self._space.own.theta
        logs = [math.log(f * growth ** (i / self._space.pairs)) for i, f in enumerate(frequencies.factors)]
        return [a - b for a, b in zip(logs, self.goal, strict=True)]

    def _loss(self, frequencies, kept: int) -> float:
        if max(frequencies.factors) > self._nan_above:
            return math.nan
        away = self._away(frequencies)
        heat = math.log(frequencies.attention_factor) - 0.05
        return sum(a * a for a in away) / len(away) + 0.1 * heat * heat + 1e-5 * abs(kept - 8)


def desk_of(strategy: Strategy, path, *, space: Space | None = None, judge=None, seed: int = 3, **changes) -> Desk:
    space = space or space_of()
    settings = {
        "space": space,
        "judge": judge or ToyJudge(space),
        "lines": Lines(path),
        "budget": strategy.budget,
        "seed": seed,
        "sheet": Sheet(kind="skip"),
        "poll": lambda: None,
        "told": lambda desk: None,
    }
    return Desk(**settings | changes)


def explored(strategy: Strategy, path, **changes) -> Desk:
    """A desk at which the strategy is done."""
    desk = desk_of(strategy, path, **changes)
    with contextlib.suppress(Spent):
        strategy.run(desk)
    return desk


def budget(evaluations: int, seconds: float | None = None) -> Budget:
    return Budget(evaluations=evaluations, seconds=seconds)
