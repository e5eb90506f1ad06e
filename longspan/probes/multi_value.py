"""One name with several numbers, all of which are asked for. The idea of RULER's multi-value task."""

import random
import string
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, names, strings
from longspan.probes.base import Item, PlantedProbe


class MultiValue(PlantedProbe):
    """`values` lines that give numbers to one name, asked for in the order in which they stand."""

    kind: Literal["multi_value"] = "multi_value"
    values: int = Field(default=4, ge=2, le=16)
    digits: int = Field(default=7, ge=3, le=12)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` names with their numbers."""
        known = names(count, rng=rng, split=split)
        codes = strings(count * self.values, alphabet=string.digits, length=self.digits, rng=rng, split=split)
        found = []
        for index, name in enumerate(known):
            mine = codes[index * self.values : (index + 1) * self.values]
            lines = [f"One of the numbers of {name} is {code}." for code in mine]
            found.append(
                Item(
                    line=lines[0],
                    question=f"\nThe numbers of {name}, in the order of the text, are",
                    answer=f" {', '.join(mine)}",
                    after=tuple(lines[1:]),
                    parts=tuple(mine),
                )
            )
        return found
