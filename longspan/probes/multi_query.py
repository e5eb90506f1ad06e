"""Several needles that one question asks for at once. The idea of RULER's multi-query task."""

import random
import string
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, names, strings
from longspan.probes.base import Item, PlantedProbe


class MultiQuery(PlantedProbe):
    """`queries` needles anywhere in the text; the question names them and the answer gives their numbers in turn."""

    kind: Literal["multi_query"] = "multi_query"
    queries: int = Field(default=4, ge=2, le=16)
    digits: int = Field(default=7, ge=3, le=12)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` questions, each about needles of its own."""
        n = self.queries
        known = names(count * n, rng=rng, split=split)
        codes = strings(count * n, alphabet=string.digits, length=self.digits, rng=rng, split=split)
        lines = [f"The number of {name} is {code}." for name, code in zip(known, codes, strict=True)]
        return [
            Item(
                line=lines[start],
                question=f"\nThe numbers of {', '.join(known[start : start + n])} are",
                answer=f" {', '.join(codes[start : start + n])}",
                elsewhere=tuple(lines[start + 1 : start + n]),
                parts=tuple(codes[start : start + n]),
            )
            for start in range(0, count * n, n)
        ]
