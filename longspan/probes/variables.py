"""Variable tracking: a value that is handed on from name to name. The idea of RULER's vt task."""

import itertools
import random
import string
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, strings
from longspan.probes.base import Item, PlantedProbe


class Variables(PlantedProbe):
    """A chain of `hops` assignments behind the first; asked for are all names that hold the value, in order."""

    kind: Literal["variables"] = "variables"
    hops: int = Field(default=4, ge=1, le=32)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` chains with different values."""
        each = self.hops + 1
        known = strings(count * each, alphabet=string.ascii_uppercase, length=5, rng=rng, split=split)
        values = strings(count, alphabet=string.digits, length=5, rng=rng, split=split)
        found = []
        for index, value in enumerate(values):
            chain = known[index * each : (index + 1) * each]
            found.append(
                Item(
                    line=f"VAR {chain[0]} = {value}",
                    question=f"\nThe variables with the value {value} are",
                    answer=f" {' '.join(chain)}",
                    after=tuple(f"VAR {b} = VAR {a}" for a, b in itertools.pairwise(chain)),
                    parts=tuple(chain),
                )
            )
        return found
