"""A window of attention that grows and shrinks again and again."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from longspan.data.curricula._windows import WindowedSlots
from longspan.data.curricula.base import Curriculum, Slots, StageText, only_text
from longspan.data.settings import MixPart


class Cyclic(Curriculum):
    """The window is a share of the row: `start`, then over and over divided by `factor` up to 1 and multiplied down.

    The stage's steps are divided equally among `phases`; with the defaults their windows are 1/4, 1/2, 1, 1/2, 1/4 …
    of the row. Source: the length budget of Kesgin and Amasyali 2022, arXiv:2202.05531, without its scores.
    """

    kind: Literal["cyclic"] = "cyclic"
    start: float = Field(default=0.25, gt=0.0, lt=1.0)
    factor: float = Field(default=0.5, gt=0.0, lt=1.0)
    phases: int = Field(default=9, ge=2)

    def check(self, *, length: int, mix: Sequence[MixPart]) -> None:
        """Raise `ValueError` for a start of less than one token, or for probes."""
        if self.start * length < 1:
            raise ValueError(f"curriculum cyclic starts at {self.start} of {length} tokens, which is less than one")
        only_text(self.kind, mix, why="a window would hide the line from its question")

    def shares(self) -> list[float]:
        """The window of each phase, as a share of the row."""
        found, up = [self.start], True
        while len(found) < self.phases:
            found.append(min(found[-1] / self.factor, 1.0) if up else max(found[-1] * self.factor, self.start))
            up = found[-1] < 1.0 if up else found[-1] <= self.start
        return found

    def window(self, step: int, *, steps: int, length: int) -> int:
        """The window of a step, in tokens."""
        return round(self.shares()[step * self.phases // steps] * length)

    def slots(self, text: StageText) -> Slots:
        """The plain rows, cut at the window of their step."""
        return WindowedSlots(text, lambda step: self.window(step, steps=text.steps, length=text.length))
