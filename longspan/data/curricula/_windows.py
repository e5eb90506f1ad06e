"""Rows whose attention is cut into windows that change from step to step."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from longspan.data.curricula._lengths import Lengths
from longspan.data.curricula.base import StageText
from longspan.data.rows import Row


class WindowedSlots:
    """The plain rows of a stage, with a border at every multiple of `window(step)` tokens beside the documents' own.

    Borders move no token and no target: what a window hides is context alone.
    """

    def __init__(self, text: StageText, window: Callable[[int], int]) -> None:
        self._text, self._window, self._rows = text, window, text.plain()

    def slot(self, number: int) -> list[Row]:
        """The row with this number, cut as its step demands."""
        return [cut(self._rows.row(number), self._window(number // self._text.slots_per_step))]

    def check(self) -> None:
        """Make one row of each part of the mix."""
        self._rows.check()

    def first_slots(self) -> dict[int, int]:
        """All rows have the stage's length."""
        return {self._text.length: 0}

    def lengths(self) -> Lengths:
        """Of rows evenly spread over the stage."""
        return Lengths.of_spans(row.spans for number in self._text.sampled() for row in self.slot(number))

    def repeats(self) -> list[float]:
        """As without windows."""
        return self._rows.repeats(self._text.steps * self._text.slots_per_step)


def cut(row: Row, window: int) -> Row:
    """The row with a border at every multiple of `window`; positions count from 0 after each."""
    length = row.spans[-1]
    if window >= length:
        return row
    spans = tuple(sorted({*row.spans, *range(0, length, window)}))
    counted = [np.arange(stop - start, dtype=np.int64) for start, stop in itertools.pairwise(spans)]
    return replace(row, spans=spans, positions=np.concatenate(counted))
