"""Passkey: the classic single number hidden in a long text. Source: Mohtashami and Jaggi, arXiv:2305.16300."""

import random
import string
from typing import ClassVar, Literal

from pydantic import Field

from longspan.probes._words import Split, strings
from longspan.probes.base import Item, PlantedProbe


class Passkey(PlantedProbe):
    """One line with a pass key, said twice, and the question for it; a text carries one only."""

    most_items: ClassVar[int | None] = 1

    kind: Literal["passkey"] = "passkey"
    digits: int = Field(default=5, ge=3, le=12)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` pass keys that all differ; the question is the same for all, so plant one in a text."""
        keys = strings(count, alphabet=string.digits, length=self.digits, rng=rng, split=split)
        return [
            Item(
                line=f"The pass key is {key}. Remember it. {key} is the pass key.",
                question="\nWhat is the pass key? The pass key is",
                answer=f" {key}",
            )
            for key in keys
        ]
