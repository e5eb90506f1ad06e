"""Stretches of text that an evaluation asks about."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longspan.data.filters._words import covered, runs, word_hashes, words
from longspan.data.filters.base import Filter, Hashes, Judge, Tools, Verdict

SEAM = "\n\n"


class Contamination(Filter):
    """Takes out what training text shares with the held-out documents and with the texts `against`.

    Shared is every run of `run_words` words, case and punctuation aside. It goes with `margin_words` on both sides; a
    document goes whole when more than `most_share` of its words are shared. One common run (a licence, a quotation)
    costs a long document a few lines only.
    """

    kind: Literal["contamination"] = "contamination"
    run_words: int = Field(default=12, ge=5, le=100)
    margin_words: int = Field(default=10, ge=0)
    most_share: float = Field(default=0.3, ge=0.0, lt=1.0)
    against: tuple[Path, ...] = ()

    def protected(self, texts: Iterable[str]) -> Hashes:
        """The sorted hashes of all runs of words of the evaluation texts, for `Tools.protected`."""
        found = [runs(word_hashes(text), self.run_words) for text in texts]
        return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *found]))

    def judge(self, tools: Tools) -> Judge:
        """By the share of words in shared runs, counted before anything is taken out."""
        protected = tools.protected
        assert protected is not None, "curation collects the evaluation texts for this filter"

        def judged(_id: str, text: str) -> Verdict:
            hit, places = _shared(text, protected, self.run_words)
            share = float(hit.mean()) if len(hit) else 0.0
            if not hit.any():
                return Verdict(text=text)
            if share > self.most_share:
                return Verdict(text=None, reason="evaluation-text", scores={"shared": share})
            while hit.any():  # what is left on both sides of a cut may make a new run
                text = _without(text, hit, places, margin=self.margin_words)
                hit, places = _shared(text, protected, self.run_words)
            kept = text if text.strip() else None
            return Verdict(text=kept, reason="shared-runs" if kept else "evaluation-text", scores={"shared": share})

        return judged


def _shared(text: str, protected: Hashes, run_words: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which words lie in a protected run, and where each word stands."""
    hashes, places = words(text)
    found = runs(hashes, run_words)
    if not len(protected) or not len(found):
        return np.zeros(len(hashes), dtype=np.bool_), places
    at = np.minimum(np.searchsorted(protected, found), len(protected) - 1)
    return covered(protected[at] == found, run_words, len(hashes)), places


def _without(text: str, hit: NDArray[np.bool_], places: NDArray[np.int64], *, margin: int) -> str:
    """The text without the marked words and `margin` more on both sides."""
    total = len(hit)
    starts = np.zeros(total, dtype=np.bool_)
    starts[np.maximum(np.flatnonzero(hit) - margin, 0)] = True
    wide = covered(starts, 2 * margin + 1, total) | hit
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wide, [False]]).astype(np.int8)))
    kept: list[str] = []
    done = 0
    for first, stop in edges.reshape(-1, 2).tolist():
        kept.append(text[done : int(places[first, 0])])
        done = int(places[stop - 1, 1])
    kept.append(text[done:])
    return SEAM.join(part for part in kept if part.strip())
