"""Key-value retrieval: random strings that point at random strings."""

import random
import string
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, strings
from longspan.probes.base import Item, PlantedProbe

HEX = string.digits + "abcdef"


class KeyValue(PlantedProbe):
    """Lines such as `Key 9f03ac: 41d7be.`, asked by the key; lengths in hexadecimal digits."""

    kind: Literal["key_value"] = "key_value"
    key_digits: int = Field(default=6, ge=3, le=64)
    value_digits: int = Field(default=6, ge=3, le=64)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` pairs with different keys and different values."""
        keys = strings(count, alphabet=HEX, length=self.key_digits, rng=rng, split=split)
        values = strings(count, alphabet=HEX, length=self.value_digits, rng=rng, split=split)
        return [
            Item(
                line=f"Key {key}: {value}.",
                question=f"\nKey {key}:",
                answer=f" {value}",
            )
            for key, value in zip(keys, values, strict=True)
        ]
