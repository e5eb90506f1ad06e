"""Needles: named numbers in a text, of which any may be asked for."""

import random
import string
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, names, strings
from longspan.probes.base import Item, PlantedProbe


class Needle(PlantedProbe):
    """Lines such as `The code of silent-harbor is 402913.`; asked by the same words up to the code, which a base model
    completes without having learned to answer questions.
    """

    kind: Literal["needle"] = "needle"
    digits: int = Field(default=6, ge=3, le=12)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` needles with different names and different codes."""
        known = names(count, rng=rng, split=split)
        codes = strings(count, alphabet=string.digits, length=self.digits, rng=rng, split=split)
        return [
            Item(
                line=f"The code of {name} is {code}.",
                question=f"\nThe code of {name} is",
                answer=f" {code}",
            )
            for name, code in zip(known, codes, strict=True)
        ]
