"""Loss by position: how well the same held-out text is predicted with little and with much text before it."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from longspan.eval.desk import Desk
from longspan.eval.rows import Row
from longspan.eval.tasks._windows import WindowTask
from longspan.eval.tasks.base import Findings
from longspan.eval.text import Ids
from longspan.records import PositionBin

FIRST_BIN_TOKENS = 128


class PositionLoss(WindowTask):
    """Loss in bins of position [0, 128), [128, 256), [256, 512) … up to `length`, over whole held-out documents.

    The text scored is the same in every bin, so that bins differ by what stands before the text and by nothing else:
    each of up to `windows` windows of `length` tokens gives the stretch of text in its last bin, and that stretch is
    read again, cut finer, by shorter windows that put it into each earlier bin. (The first token of a window has no
    loss, so the first bin holds 1/128 less.) Windows come from documents of at least `length` tokens only: documents
    joined together would be flat by construction.
    """

    kind: Literal["position_loss"] = "position_loss"
    length: int = Field(ge=2)

    @property
    def parts(self) -> tuple[str, ...]:
        """One measure of the whole model."""
        return ("position_loss",)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The bins, as [low, high)."""
        bins = [(0, min(FIRST_BIN_TOKENS, self.length))]
        while bins[-1][1] < self.length:
            low = bins[-1][1]
            bins.append((low, min(2 * low, self.length)))
        return tuple(bins)

    @property
    def measure(self) -> str:
        """By length."""
        return f"position_loss/{self.length}"

    @property
    def apart(self) -> int:
        """Stretches do not share scored text."""
        return self.length - self.edges[-1][0]

    @property
    def reads(self) -> list[int]:
        """All windows of all bins."""
        return [stop - start for _, start, stop, _ in self._cuts()]

    def findings(self, rows: Sequence[Row]) -> Findings:
        """The bins; a row holds the sums of one stretch of text."""
        bins = tuple(
            PositionBin(
                low=low,
                high=high,
                nll_sum=sum(row["nll_sums"][index] for row in rows),
                tokens=sum(row["tokens"][index] for row in rows),
            )
            for index, (low, high) in enumerate(self.edges)
        )
        return Findings(bins=bins, rows=tuple(rows))

    def _cuts(self) -> Iterator[tuple[int, int, int, int]]:
        """(bin, start, stop, scored): windows inside one of `length` tokens, of which the last `scored` count."""
        first = self.edges[-1][0]
        for index, (low, high) in enumerate(self.edges):
            for begin in range(first, self.length, high - low):
                stop = min(begin + high - low, self.length)
                yield index, begin - low, stop, stop - begin

    def score(self, desk: Desk, tokens: Ids) -> dict[str, Any]:
        """Sums and counts of every bin."""
        sums, counts = [0.0] * len(self.edges), [0] * len(self.edges)
        for index, begin, stop, scored in self._cuts():
            if stop - begin < 2:
                continue  # a lone token has nothing before it
            losses = desk.reader.token_nll(tokens[begin:stop])[-scored:]
            sums[index] += float(losses.sum(dtype=np.float64))
            counts[index] += len(losses)
        return {"nll_sums": sums, "tokens": counts}
