"""Several needles, one of them asked for: the others distract. The idea of RULER's multi-key tasks."""

import random
import string
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, names, strings
from longspan.probes.base import Item, PlantedProbe


class MultiKey(PlantedProbe):
    """A needle of which one is asked for, and `distractors` more of the same form anywhere in the text."""

    kind: Literal["multi_key"] = "multi_key"
    distractors: int = Field(default=3, ge=1, le=64)
    digits: int = Field(default=7, ge=3, le=12)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` needles, each with its own distractors."""
        each = 1 + self.distractors
        known = names(count * each, rng=rng, split=split)
        codes = strings(count * each, alphabet=string.digits, length=self.digits, rng=rng, split=split)
        lines = [f"The number of {name} is {code}." for name, code in zip(known, codes, strict=True)]
        return [
            Item(
                line=lines[start],
                question=f"\nThe number of {known[start]} is",
                answer=f" {codes[start]}",
                elsewhere=tuple(lines[start + 1 : start + each]),
            )
            for start in range(0, count * each, each)
        ]
