"""Documents that are nearly the same as another one."""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longspan.data.filters._words import MULTIPLIER, mixed, runs, word_hashes
from longspan.data.filters.base import CorpusFilter, Hashes, Sketched

RUN_WORDS = 5
BANDS, ROWS = 14, 8  # alike with probability 1 - (1 - s^8)^14 at similarity s: one half at 0.69, 0.92 at 0.8
SEED = 20_240_000
LEAST_CHUNK, MOST_CHUNK, CHUNK_ONE_IN = 100, 1_600, 400  # words


class Minhash(CorpusFilter):
    """Drops a document of whose words `most_share` or more lie in chunks that kept documents hold already.

    Long documents are compared chunk by chunk, so a book inside a larger collection is found, and one shared chapter
    costs no book. Chunks end where the words say so, hence at the same places in every copy. The longest of several
    alike is kept. Source: Broder 1997, with the bands of datatrove's defaults (14 of 8 minima over runs of 5 words).
    """

    kind: Literal["minhash"] = "minhash"
    most_share: float = Field(default=0.5, gt=0.0, le=1.0)

    def sketch(self, text: str) -> Hashes:
        """A row for each chunk: its number of words, then 14 numbers of which two alike chunks share one or more."""
        found = runs(word_hashes(text), RUN_WORDS)
        rows = [
            np.concatenate([np.array([stop - start], dtype=np.uint64), _bands(found[start:stop])])
            for start, stop in _chunks(found)
        ]
        return np.stack(rows) if rows else np.empty((0, BANDS + 1), dtype=np.uint64)

    def surplus(self, documents: Sequence[Sketched]) -> dict[int, str]:
        """By descending length: what a kept document covers already goes."""
        seen: list[set[int]] = [set() for _ in range(BANDS)]
        dropped: dict[int, str] = {}
        for place in sorted(range(len(documents)), key=lambda index: documents[index].rank):
            rows = documents[place].sketch.tolist()
            total = sum(row[0] for row in rows)
            known = sum(row[0] for row in rows if any(row[1 + band] in seen[band] for band in range(BANDS)))
            if rows and known >= self.most_share * total:
                dropped[place] = "near-duplicate"
                continue
            for row in rows:
                for band in range(BANDS):
                    seen[band].add(row[1 + band])
        return dropped


def _chunks(found: Hashes) -> list[tuple[int, int]]:
    """Where chunks of runs begin and end: at about one run in 400, by the run itself."""
    if not len(found):
        return []
    borders = np.flatnonzero(mixed(found) % np.uint64(CHUNK_ONE_IN) == 0) + 1
    cuts = [0]
    for border in [*borders.tolist(), len(found)]:
        while border - cuts[-1] > MOST_CHUNK:
            cuts.append(cuts[-1] + MOST_CHUNK)
        if border - cuts[-1] >= LEAST_CHUNK:
            cuts.append(border)
    if cuts[-1] < len(found):  # what is left is too short for a chunk of its own
        if len(cuts) > 1:
            cuts[-1] = len(found)
        else:
            cuts.append(len(found))
    return list(itertools.pairwise(cuts))


def _factors() -> tuple[Hashes, Hashes]:
    """Multipliers (odd) and offsets of the hash functions, the same for ever."""
    numbers = mixed(np.arange(SEED, SEED + 2 * BANDS * ROWS, dtype=np.uint64) * MULTIPLIER)
    return numbers[: BANDS * ROWS] | np.uint64(1), numbers[BANDS * ROWS :]


FACTORS, OFFSETS = _factors()


def _bands(found: Hashes) -> Hashes:
    """Fourteen numbers of a chunk: each stands for eight minima."""
    distinct = np.unique(found)
    table: NDArray[np.uint64] = distinct[:, None] * FACTORS + OFFSETS
    minima = (table >> np.uint64(16)).min(axis=0).reshape(BANDS, ROWS)
    total = np.zeros(BANDS, dtype=np.uint64)
    for row in range(ROWS):
        total = mixed(total * MULTIPLIER + minima[:, row])
    return total
