"""Sliding-window perplexity, to compare with published figures at short lengths. Source: Press et al., ALiBi, 2022."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from longspan.eval.desk import Desk
from longspan.eval.rows import Row
from longspan.eval.tasks._windows import WindowTask
from longspan.eval.tasks.base import Findings
from longspan.eval.text import Ids


class Sliding(WindowTask):
    """Every token of stretches of `length` tokens scored once, with at least `window - stride` tokens before it.

    Tokens weigh alike (published figures often average means of windows instead). It reads length / stride windows of
    `window` tokens, so keep `length` short: by position the same text costs one pass.
    """

    kind: Literal["sliding"] = "sliding"
    length: int = Field(ge=4)
    window: int = Field(ge=2)
    stride: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if not self.stride < self.window <= self.length:
            raise ValueError(f"stride {self.stride} < window {self.window} <= length {self.length} does not hold")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """One measure for each window and stride."""
        return (f"sliding/{self.window}/{self.stride}",)

    @property
    def measure(self) -> str:
        """By stretch, window and stride."""
        return f"sliding/{self.length}/{self.window}/{self.stride}"

    @property
    def reads(self) -> list[int]:
        """Every window."""
        return [stop - begin for begin, stop, _ in self._cuts()]

    def findings(self, rows: Sequence[Row]) -> Findings:
        """Perplexity over all tokens."""
        loss = sum(row["nll_sum"] for row in rows) / sum(row["tokens"] for row in rows)
        name = f"sliding_perplexity_{self.window}_stride_{self.stride}"
        return Findings(rows=tuple(rows), facts={name: math.exp(min(loss, 700.0))})

    def _cuts(self) -> list[tuple[int, int, int]]:
        """(begin, stop, first): windows, and the first token of each that no window before has scored."""
        found = [(0, self.window, 1)]
        while found[-1][1] < self.length:
            done = found[-1][1]
            stop = min(done + self.stride, self.length)
            found.append((stop - self.window, stop, done))
        return found

    def score(self, desk: Desk, tokens: Ids) -> dict[str, Any]:
        """Loss of each token with its window before it."""
        total, count = 0.0, 0
        for begin, stop, first in self._cuts():
            losses = desk.reader.token_nll(tokens[begin:stop])[first - begin - 1 :]
            total += float(losses.sum(dtype=np.float64))
            count += len(losses)
        return {"nll_sum": total, "tokens": count}
