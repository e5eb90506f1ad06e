"""Aggregation: numbers all over the text that belong to one name, and their sum."""

import random
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, names, split_of
from longspan.probes.base import Item, PlantedProbe
from longspan.utils.errors import DataError


class Aggregate(PlantedProbe):
    """`deliveries` lines with small numbers for one name; asked is their sum, which is never the same twice."""

    kind: Literal["aggregate"] = "aggregate"
    deliveries: int = Field(default=3, ge=2, le=16)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` names with their numbers. Raises `DataError` when there are fewer different sums."""
        if count > 100 * self.deliveries:  # about a fifth of those that belong to the split: the draw must end soon
            raise DataError(
                "probe.too-many-items",
                f"{count} different sums are asked of a probe that gives {100 * self.deliveries}",
                fix="ask for fewer items, or for more deliveries",
            )
        found, sums = [], set()
        for name in names(count, rng=rng, split=split):
            numbers: list[int] = []
            while not numbers or sum(numbers) in sums or split_of(f"sum {sum(numbers)}") != split:
                numbers = [rng.randrange(10, 1000) for _ in range(self.deliveries)]
            sums.add(sum(numbers))
            lines = [f"On that day {name} delivered {number} barrels." for number in numbers]
            found.append(
                Item(
                    line=lines[0],
                    question=f"\nOn all days together the barrels delivered by {name} were",
                    answer=f" {sum(numbers)}",
                    elsewhere=tuple(lines[1:]),
                )
            )
        return found
