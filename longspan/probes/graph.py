"""Graph walks: edges of a graph all over the text, and the place that a walk ends at. The idea of GraphWalks."""

import itertools
import random
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, coined
from longspan.probes.base import Item, PlantedProbe


class Graph(PlantedProbe):
    """A walk over `hops` roads, each told on a line of its own, among `decoys` roads between other places."""

    kind: Literal["graph"] = "graph"
    hops: int = Field(default=3, ge=1, le=32)
    decoys: int = Field(default=6, ge=0, le=64)

    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` walks that share no place."""
        each = self.hops + 1 + 2 * self.decoys
        places = coined(count * each, syllables=4, rng=rng, split=split)
        found = []
        for start in range(0, count * each, each):
            walk, others = places[start : start + self.hops + 1], places[start + self.hops + 1 : start + each]
            roads = [_road(a, b) for a, b in itertools.pairwise(walk)]
            roads += [_road(a, b) for a, b in zip(others[::2], others[1::2], strict=True)]
            steps = f"{self.hops} road{'s' * (self.hops > 1)}"
            found.append(
                Item(
                    line=roads[0],
                    question=f"\nWhoever starts in {walk[0]} and follows {steps} comes to",
                    answer=f" {walk[-1]}",
                    elsewhere=tuple(roads[1:]),
                )
            )
        return found


def _road(a: str, b: str) -> str:
    return f"The road from {a} leads to {b}."
