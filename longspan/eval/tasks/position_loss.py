"""Loss by position: how well the same held-out text is predicted with little and with much text before it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks._windows import window_row
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents, Ids, whole_windows
from longspan.probes import Context
from longspan.records import PositionBin

FIRST_BIN_TOKENS = 128


class PositionLoss(Task):
    """Loss in bins of position [0, 128), [128, 256), [256, 512) … up to `length`, over whole held-out documents.

    The text scored is the same in every bin, so that bins differ by what stands before the text and by nothing else:
    each of up to `windows` windows of `length` tokens gives the stretch of text in its last bin, and that stretch is
    read again, cut finer, by shorter windows that put it into each earlier bin. (The first token of a window has no
    loss, so the first bin holds 1/128 less.) Windows come from documents of at least `length` tokens only: documents
    joined together would be flat by construction.
    """

    kind: Literal["position_loss"] = "position_loss"
    length: int = Field(ge=2)
    windows: int = Field(default=4, ge=1)

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

    def contexts(self, documents: Documents) -> Counter[int]:
        """All windows of all bins."""
        places = len(self._places(documents))
        return Counter({n: places * count for n, count in Counter(b - a for _, a, b, _ in self._cuts()).items()})

    def check(self, material: Material) -> None:
        """See that a document is long enough."""
        self._places(material.documents)

    def run(self, desk: Desk) -> Findings:
        """Score every window; a row holds the sums of one stretch of text."""
        rows = [self._row(desk, document, start) for document, start in self._places(desk.material.documents)]
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

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The longest window at this place."""
        return Context(tokens=material.documents.read(place["document"], place["start"], self.length), branches=())

    @property
    def _place_tokens(self) -> int:
        return sum(stop - start for _, start, stop, _ in self._cuts())

    def _places(self, documents: Documents) -> list[tuple[int, int]]:
        """(document, start) of up to `windows` windows, evenly spread over all that do not share scored text."""
        return whole_windows(documents, self.length, windows=self.windows, stride=self.length - self.edges[-1][0])

    def _cuts(self) -> Iterator[tuple[int, int, int, int]]:
        """(bin, start, stop, scored): windows inside one of `length` tokens, of which the last `scored` count."""
        first = self.edges[-1][0]
        for index, (low, high) in enumerate(self.edges):
            for begin in range(first, self.length, high - low):
                stop = min(begin + high - low, self.length)
                yield index, begin - low, stop, stop - begin

    def _row(self, desk: Desk, document: int, start: int) -> Row:
        def score(tokens: Ids) -> dict[str, Any]:
            sums, counts = self._score(desk, tokens)
            return {"nll_sums": sums, "tokens": counts}

        name = f"position_loss/{self.length}"
        row = window_row(desk, self, name=name, document=document, start=start, length=self.length, score=score)
        desk.advance(self._place_tokens)
        return row

    def _score(self, desk: Desk, tokens: Ids) -> tuple[list[float], list[int]]:
        sums, counts = [0.0] * len(self.edges), [0] * len(self.edges)
        for index, begin, stop, scored in self._cuts():
            if stop - begin < 2:
                continue  # a lone token has nothing before it
            losses = desk.reader.token_nll(tokens[begin:stop])[-scored:]
            sums[index] += float(losses.sum(dtype=np.float64))
            counts[index] += len(losses)
        return sums, counts
