"""Common words: a long list in which a few words come much more often than all others. The idea of RULER's cwe."""

import random
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from longspan.probes._words import Split, coined
from longspan.probes.base import Filled, FilledProbe, Item

WORDS_A_LINE = 12


class CommonWords(FilledProbe):
    """Lines of invented words: `common` of them come ten times as often as all others, 30 times against 3.

    Where the text is too short for that they come as often as fills a third of it, and all others once.
    """

    most_items: ClassVar[int | None] = 1

    kind: Literal["common_words"] = "common_words"
    common: int = Field(default=10, ge=1, le=50)

    def fill(self, lines: int, *, depths: Sequence[float], rng: random.Random, split: Split) -> Filled:
        """The words in random order, and the one question."""
        total = lines * WORDS_A_LINE
        often, seldom = 30, 3
        if total < 3 * self.common * often:
            often, seldom = max(2, total // (3 * self.common)), 1
        rare = -(-(total - self.common * often) // seldom)
        words = coined(self.common + rare, syllables=4, rng=rng, split=split)
        bag = words[: self.common] * often + (words[self.common :] * seldom)[: total - self.common * often]
        rng.shuffle(bag)
        first = {word: place for place, word in reversed(list(enumerate(bag)))}
        wanted = sorted(words[: self.common], key=first.__getitem__)
        item = Item(
            question=f"\nThe {self.common} words that come most often, in the order in which they first come, are",
            answer=f" {' '.join(wanted)}",
            parts=tuple(wanted),
        )
        starts = range(0, total, WORDS_A_LINE)
        text = tuple(" ".join(bag[start : start + WORDS_A_LINE]) for start in starts)
        return Filled(lines=text, items=(item,) * len(depths), at=(None,) * len(depths))
