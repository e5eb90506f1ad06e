"""A window of attention that grows, step by step, to the whole row."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from longspan.data.curricula._windows import WindowedSlots
from longspan.data.curricula.base import Curriculum, Slots, StageText, only_text
from longspan.data.settings import MixPart


class Ladder(Curriculum):
    """The window is `start` + floor(a · step), up to the row; a is such that `growth` of the steps bring it there.

    Source: Zhu and others 2025, arXiv:2503.15450 (SkyLadder), section 3; there the start is 8 to 32, the growth 0.6.
    """

    kind: Literal["ladder"] = "ladder"
    start: int = Field(default=32, ge=1)
    growth: float = Field(default=0.6, gt=0.0, le=1.0)

    def check(self, *, length: int, mix: Sequence[MixPart]) -> None:
        """Raise `ValueError` for a start that is no window of the rows, or for probes."""
        if self.start >= length:
            raise ValueError(f"curriculum ladder starts at {self.start} tokens, and the rows have {length}")
        only_text(self.kind, mix, why="a window would hide the line from its question")

    def window(self, step: int, *, steps: int, length: int) -> int:
        """The window of a step, in tokens."""
        return min(length, self.start + int((length - self.start) * step / (self.growth * steps)))

    def slots(self, text: StageText) -> Slots:
        """The plain rows, cut at the window of their step."""
        return WindowedSlots(text, lambda step: self.window(step, steps=text.steps, length=text.length))
