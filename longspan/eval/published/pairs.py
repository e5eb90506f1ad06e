"""All adjective-noun pairs in order, without holding them: six million strings would take half a gigabyte."""

import bisect
import itertools
import random
from collections.abc import Sequence
from typing import overload


class Pairs(Sequence[str]):
    """What sorted({f"{adjective}-{noun}"}) is as a list: a length, and the pair at each place.

    Pairs of one adjective stand together, in the order of nouns, except where one adjective with its hyphen begins
    another: those are few, and are sorted out one by one.
    """

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        self._nouns = sorted(set(nouns))
        self._blocks: list[tuple[str, list[str]]] = []  # a prefix and what may follow it, or "" and whole pairs
        heads = sorted({f"{word}-" for word in adjectives})
        first = 0
        while first < len(heads):
            last = first + 1
            while last < len(heads) and heads[last].startswith(heads[first]):
                last += 1
            mine = heads[first:last]
            if len(mine) == 1:
                self._blocks.append((mine[0], self._nouns))
            else:
                self._blocks.append(("", sorted({head + noun for head in mine for noun in self._nouns})))
            first = last
        self._starts = [0, *itertools.accumulate(len(tails) for _, tails in self._blocks)]

    def __len__(self) -> int:
        """How many different pairs there are."""
        return self._starts[-1]

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        """The pair at a place of the order, counted from 0, or those at some places."""
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        block = bisect.bisect_right(self._starts, place) - 1
        head, tails = self._blocks[block]
        return head + tails[place - self._starts[block]]

    def choice(self, rng: random.Random) -> str:
        """One at random, as `rng.choice` of the list would draw it: that asks for a length and a place only."""
        return rng.choice(self)
