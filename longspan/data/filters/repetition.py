"""Documents that say the same again and again."""

import re
from typing import Literal

import numpy as np
from pydantic import Field

from longspan.data.filters._windows import LEAST_WORDS, judged_by_windows
from longspan.data.filters._words import covered, runs, words
from longspan.data.filters.base import Filter, Hashes, Judge, Tools

# Rae and others 2021, arXiv:2112.11446, table A1: the most that may be repeated.
LINES, PARAGRAPHS, LINE_CHARACTERS, PARAGRAPH_CHARACTERS = 0.30, 0.30, 0.20, 0.20
COMMONEST_RUN = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_RUNS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


class Repetition(Filter):
    """Drops documents of whose windows more than `most_failing` repeat themselves too much.

    A window of about `window_words` words fails by any of Gopher's limits for repeated lines, paragraphs and runs of
    words. These limits were set for web pages: of whole books they would drop every second one for a few tables, so
    a document is judged by its windows. They are limits of prose: source code repeats its lines and fails them, so name
    the `documents` that are prose. Source: Rae and others 2021, arXiv:2112.11446, section A.1.1.
    """

    kind: Literal["repetition"] = "repetition"
    window_words: int = Field(default=3_000, ge=200)
    most_failing: float = Field(default=0.5, ge=0.0, lt=1.0)

    def judge(self, _: Tools) -> Judge:
        """By the share of windows that fail; the reason is the limit that most of them broke."""
        return judged_by_windows(broken_limit, window_words=self.window_words, most_failing=self.most_failing)


def broken_limit(text: str) -> str:
    """The first of Gopher's limits that a text breaks, or nothing."""
    hashes, places = words(text)
    if len(hashes) < LEAST_WORDS:
        return ""
    for pieces, share, characters, name in (
        (_pieces(text, r"\n+"), LINES, LINE_CHARACTERS, "lines"),
        (_pieces(text, r"\n{2,}"), PARAGRAPHS, PARAGRAPH_CHARACTERS, "paragraphs"),
    ):
        again = _again(pieces)
        if len(again) > share * len(pieces) or sum(map(len, again)) > characters * len(text):
            return f"repeated-{name}"
    return _broken_run(hashes, (places[:, 1] - places[:, 0]).astype(np.int64))


def _pieces(text: str, border: str) -> list[str]:
    return [piece for piece in re.split(border, text.strip()) if piece.strip()]


def _again(pieces: list[str]) -> list[str]:
    """Every piece that stood before already."""
    seen: set[str] = set()
    return [piece for piece in pieces if piece in seen or seen.add(piece)]  # type: ignore[func-returns-value]


def _broken_run(hashes: Hashes, sizes: np.ndarray) -> str:
    total = int(sizes.sum())
    for length, most in COMMONEST_RUN.items():
        found, first, counts = np.unique(runs(hashes, length), return_index=True, return_counts=True)
        commonest = counts == counts.max()
        size = max(int(sizes[at : at + length].sum()) for at in first[commonest])
        if int(counts.max()) > 1 and size * int(counts.max()) > most * total:
            return f"repeated-{length}-words"
    for length, most in REPEATED_RUNS.items():
        found = runs(hashes, length)
        again = np.ones(len(found), dtype=np.bool_)
        again[np.unique(found, return_index=True)[1]] = False
        if int(sizes[covered(again, length, len(hashes))].sum()) > most * total:
            return f"repeated-{length}-words"
    return ""
