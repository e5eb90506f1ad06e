"""Long identifiers that point at long identifiers: every digit must be copied right."""

import itertools
import random
from typing import Literal

from longspan.probes._words import Split, strings
from longspan.probes.base import Item, PlantedProbe
from longspan.probes.key_value import HEX

BORDERS = (0, 8, 12, 16, 20, 32)  # of the five groups of hexadecimal digits


class Uuid(PlantedProbe):
    """Lines that give one identifier of 32 hexadecimal digits for another."""

    kind: Literal["uuid"] = "uuid"

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` pairs with different keys and different values."""
        drawn = strings(2 * count, alphabet=HEX, length=32, rng=rng, split=split)
        ids = ["-".join(text[a:b] for a, b in itertools.pairwise(BORDERS)) for text in drawn]
        return [
            Item(line=f"The value of {key} is {value}.", question=f"\nThe value of {key} is", answer=f" {value}")
            for key, value in zip(ids[:count], ids[count:], strict=True)
        ]
