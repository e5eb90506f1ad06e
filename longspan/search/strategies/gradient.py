"""Gradient descent on the factors themselves, weights frozen: they grow by increments that are never negative."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field

from longspan.rope.frequencies import Method
from longspan.rope.methods.linear import Linear
from longspan.rope.methods.longrope2 import Longrope2
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.search.desk import Budget, Desk
from longspan.search.judge import Candidate
from longspan.search.strategies.base import Seconds, Strategy

LEAST_STEP = 1e-3  # of a log factor from a pair to the next, at the start: below it softplus hardly moves
DECAYS, EPSILON = (0.9, 0.99), 1e-8  # of Adam


class Gradient(Strategy):
    """ln λ_i is the sum of i + 1 increments softplus(u_j), and Adam moves the u, so factors never fall.

    It starts from the best of the closed formulas. On whole texts it moves the attention factor too, above 1; on rows
    that skip, where few keys dilute nothing, that stays LongRoPE's. One step is one evaluation, forward and backward.
    Source of the rule: Kingma and Ba, arXiv:1412.6980.
    """

    kind: Literal["gradient"] = "gradient"
    steps: int = Field(default=60, ge=1)
    learning_rate: float = Field(default=0.1, gt=0, le=10)
    seconds: Seconds | None = None

    @property
    def budget(self) -> Budget:
        """The closed formulas and its steps, and seconds."""
        return Budget(evaluations=self.steps + len(STARTS), seconds=self.seconds)

    def run(self, desk: Desk) -> None:
        """All steps."""
        losses = desk.losses([Candidate(method=method) for method in STARTS])
        start = STARTS[min(range(len(STARTS)), key=losses.__getitem__)]
        logs = [math.log(factor) for factor in desk.space.stretch(start)]
        heat = math.log(start.frequencies(desk.space.base, desk.space.length).attention_factor)
        heats = [heat] if desk.sheet.kind == "full" else []
        steps = [logs[0], *(b - a for a, b in pairwise(logs)), *heats]
        values = [_inverse_softplus(max(step, LEAST_STEP)) for step in steps]
        adam = _Adam(len(values), self.learning_rate)
        for _ in range(self.steps):
            method = _method(desk, values)
            slope = desk.slope(Candidate(method=method))
            if not math.isfinite(slope.loss):
                return
            by_logs = [*slope.by_log_factors]
            tails = [math.fsum(by_logs[pair:]) for pair in range(len(by_logs))]
            by_values = [*tails, slope.by_log_attention][: len(values)]
            gradient = [g * _sigmoid(u) for g, u in zip(by_values, values, strict=True)]
            values = adam.step(values, gradient)


STARTS: tuple[Method, ...] = (Linear(), Ntk(), ThetaLaw(), Yarn(), Yarn(beta_fast=4.0), Longrope2())


def _method(desk: Desk, values: Sequence[float]) -> Method:
    """The settings of some u: running sums of their softplus, and then the attention factor if it is among them."""
    total, factors = 0.0, []
    for value in values[: desk.space.pairs]:
        total += _softplus(value)
        factors.append(math.exp(total))
    heats = values[desk.space.pairs :]
    return desk.space.longrope(factors, attention_factor=math.exp(_softplus(heats[0])) if heats else None)


class _Adam:
    """Adam over a list of numbers."""

    def __init__(self, size: int, learning_rate: float) -> None:
        self._rate, self._count = learning_rate, 0
        self._mean, self._square = [0.0] * size, [0.0] * size

    def step(self, values: Sequence[float], gradient: Sequence[float]) -> list[float]:
        """The values after one step."""
        self._count += 1
        first, second = DECAYS
        self._mean = [first * m + (1 - first) * g for m, g in zip(self._mean, gradient, strict=True)]
        self._square = [second * v + (1 - second) * g * g for v, g in zip(self._square, gradient, strict=True)]
        scale = self._rate / (1 - first**self._count)
        spread = 1 - second**self._count
        return [
            value - scale * m / (math.sqrt(v / spread) + EPSILON)
            for value, m, v in zip(values, self._mean, self._square, strict=True)
        ]


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(value))
