"""Sliding-window perplexity, to compare with published figures at short lengths. Source: Press et al., ALiBi, 2022."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from longspan.eval.desk import Desk, Material
from longspan.eval.tasks._windows import window_row
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents, Ids, whole_windows
from longspan.probes import Context


class Sliding(Task):
    """Every token of stretches of `length` tokens scored once, with at least `window - stride` tokens before it.

    Tokens weigh alike (published figures often average means of windows instead). It reads length / stride windows of
    `window` tokens, so keep `length` short: by position the same text costs one pass.
    """

    kind: Literal["sliding"] = "sliding"
    length: int = Field(ge=4)
    window: int = Field(ge=2)
    stride: int = Field(default=256, ge=1)
    windows: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if not self.stride < self.window <= self.length:
            raise ValueError(f"stride {self.stride} < window {self.window} <= length {self.length} does not hold")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """One measure for each window and stride."""
        return (f"sliding/{self.window}/{self.stride}",)

    def contexts(self, documents: Documents) -> Counter[int]:
        """Every window of every stretch."""
        places = len(self._places(documents))
        return Counter({n: places * count for n, count in Counter(b - a for a, b, _ in self._cuts()).items()})

    def check(self, material: Material) -> None:
        """See that a document is long enough."""
        self._places(material.documents)

    def run(self, desk: Desk) -> Findings:
        """Perplexity over all tokens."""
        rows = []
        for document, start in self._places(desk.material.documents):
            row = window_row(
                desk,
                self,
                name=f"sliding/{self.length}/{self.window}/{self.stride}",
                document=document,
                start=start,
                length=self.length,
                score=lambda tokens: self._score(desk, tokens),
            )
            rows.append(row)
            desk.advance(sum(stop - begin for begin, stop, _ in self._cuts()))
        loss = sum(row["nll_sum"] for row in rows) / sum(row["tokens"] for row in rows)
        name = f"sliding_perplexity_{self.window}_stride_{self.stride}"
        return Findings(rows=tuple(rows), facts={name: math.exp(min(loss, 700.0))})

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The stretch at this place."""
        return Context(tokens=material.documents.read(place["document"], place["start"], self.length), branches=())

    def _places(self, documents: Documents) -> list[tuple[int, int]]:
        return whole_windows(documents, self.length, windows=self.windows, stride=self.length)

    def _cuts(self) -> list[tuple[int, int, int]]:
        """(begin, stop, first): windows, and the first token of each that no window before has scored."""
        found = [(0, self.window, 1)]
        while found[-1][1] < self.length:
            done = found[-1][1]
            stop = min(done + self.stride, self.length)
            found.append((stop - self.window, stop, done))
        return found

    def _score(self, desk: Desk, tokens: Ids) -> dict[str, Any]:
        total, count = 0.0, 0
        for begin, stop, first in self._cuts():
            losses = desk.reader.token_nll(tokens[begin:stop])[first - begin - 1 :]
            total += float(losses.sum(dtype=np.float64))
            count += len(losses)
        return {"nll_sum": total, "tokens": count}
