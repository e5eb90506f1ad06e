"""Ordinal retrieval: of several notes on one subject the n-th is asked for. The idea of OpenAI's MRCR."""

import random
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, names, vocabulary
from longspan.probes.base import Item, PlantedProbe

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


class Ordinal(PlantedProbe):
    """`notes` lines on one subject that differ in their words alone; which of them is asked for is drawn."""

    kind: Literal["ordinal"] = "ordinal"
    notes: int = Field(default=4, ge=2, le=8)
    words: int = Field(default=5, ge=2, le=32)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` subjects with their notes."""
        nouns, found, seen = vocabulary(split)[1], [], set()
        for subject in names(count, rng=rng, split=split):
            texts: list[str] = []
            while len(texts) < self.notes:
                text = " ".join(rng.sample(nouns, self.words))
                if text not in seen:
                    seen.add(text)
                    texts.append(text)
            lines = [f"Note on {subject}: {text}." for text in texts]
            nth = rng.randrange(self.notes)
            found.append(
                Item(
                    line=lines[nth],
                    question=f"\nThe {ORDINALS[nth]} note on {subject}:",
                    answer=f" {texts[nth]}",
                    before=tuple(lines[:nth]),
                    after=tuple(lines[nth + 1 :]),
                )
            )
        return found
