"""Frequent words: words whose counts fall with the square of their rank, as in RULER's fwe."""

import math
import random
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from longspan.probes._words import Split, coined
from longspan.probes.base import Filled, FilledProbe, Item

WORDS_A_LINE = 12
ZETA2 = math.pi**2 / 6


class FrequentWords(FilledProbe):
    """Lines of invented words of which rank k comes n / (k² ζ(2)) times; the `wanted` most frequent are asked for."""

    most_items: ClassVar[int | None] = 1

    kind: Literal["frequent_words"] = "frequent_words"
    wanted: int = Field(default=3, ge=1, le=8)

    def fill(self, lines: int, *, depths: Sequence[float], rng: random.Random, split: Split) -> Filled:
        """The words in random order, and the one question."""
        total = lines * WORDS_A_LINE
        counts: list[int] = []
        while sum(counts) < total:
            share = int(total / ((len(counts) + 1) ** 2 * ZETA2)) or 1
            counts.append(min(share, total - sum(counts)))
        words = coined(len(counts), syllables=4, rng=rng, split=split)
        bag = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
        rng.shuffle(bag)
        mine = words[: self.wanted]
        item = Item(
            question=f"\nThe {self.wanted} most frequent words, the most frequent first, are",
            answer=f" {' '.join(mine)}",
            parts=tuple(mine),
        )
        text = tuple(" ".join(bag[start : start + WORDS_A_LINE]) for start in range(0, total, WORDS_A_LINE))
        return Filled(lines=text, items=(item,) * len(depths), at=(None,) * len(depths))
