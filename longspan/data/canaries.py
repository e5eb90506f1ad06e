"""Canaries: made-up pairs planted in a stage's rows by a map, to prove what the model saw, how often and how far."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longspan.config import Settings
from longspan.data.curricula._lengths import Lengths
from longspan.data.curricula.base import Slots, StageText
from longspan.data.rows import Row, digest
from longspan.utils.errors import DataError

Group = Literal["near", "far", "first", "last", "middle", "across"]


class CanarySettings(Settings):
    """Which pairs of a key and a value are planted in a stage, each of `tokens` random tokens.

    Of every group in `groups` there are `pairs` for each number in `repeats`: so often each is planted, in as many
    slots.
    In one document are the pairs `near` (the value right after the key), `far` (one for each of `distances`, in tokens
    from key to value), `first` and `last` in their row, and `middle` (the value begins in the middle of the row, where
    ranks that share a row meet). `across` has its key at the end of a document and its value at the beginning of the
    next one in the row: nothing may learn it.
    """

    groups: Annotated[tuple[Group, ...], Field(min_length=1)] = ("near", "far", "first", "last", "middle", "across")
    repeats: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 3, 10)
    distances: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (256,)
    pairs: int = Field(default=4, ge=1)
    tokens: int = Field(default=6, ge=2, le=64)


class Insertion(Settings):
    """One planting: key and value of pair `id`, at these tokens of a row of a slot. `distance` is from key to value."""

    id: int
    group: Group
    repeats: int
    distance: int
    key: tuple[int, ...]
    value: tuple[int, ...]
    slot: int
    row: int
    key_at: int
    value_at: int


def planned(settings: CanarySettings, slots: Slots, text: StageText, *, vocabulary: int) -> tuple[Insertion, ...]:
    """The insertion map of a stage, the same whenever it is made: no slot has more than one.

    Raises `DataError` when the stage has too few slots, or no row with room for a pair.
    """
    rng = random.Random(digest((text.seed, text.stage, -2)))
    free = list(range(text.steps * text.slots_per_step))
    rng.shuffle(free)
    found: list[Insertion] = []
    kinds = [(g, d) for g in settings.groups for d in (settings.distances if g == "far" else (settings.tokens,))]
    wanted = itertools.product(kinds, settings.repeats, range(settings.pairs))
    for number, ((group, distance), repeats, _) in enumerate(wanted):
        pair = _ids(rng, 2 * settings.tokens, vocabulary=vocabulary, separator=text.store.separator)
        key, value = pair[: settings.tokens], pair[settings.tokens :]
        for _ in range(repeats):
            place = _place(group, distance, settings.tokens, slots, free, rng)
            if place is None:
                raise DataError(
                    "data.no-room-for-canary",
                    f"no row is left for a canary of the group {group} at a distance of {distance:,} tokens",
                    where=f"recipe: stages.{text.stage}.canaries",
                    fix="plant fewer, shorten distances, or leave the group out",
                )
            slot, row, key_at, value_at = place
            found.append(
                Insertion(
                    id=number,
                    group=group,
                    repeats=repeats,
                    distance=value_at - key_at,
                    key=key,
                    value=value,
                    slot=slot,
                    row=row,
                    key_at=key_at,
                    value_at=value_at,
                )
            )
    return tuple(found)


def _ids(rng: random.Random, count: int, *, vocabulary: int, separator: int) -> tuple[int, ...]:
    return tuple(token + (token >= separator) for token in (rng.randrange(vocabulary - 1) for _ in range(count)))


def _place(
    group: Group, distance: int, tokens: int, slots: Slots, free: list[int], rng: random.Random
) -> tuple[int, int, int, int] | None:
    """Slot, row, and where key and value go; the slot is taken out of the free ones."""
    for index in range(len(free) - 1, -1, -1):
        rows = slots.slot(free[index])
        for row in rng.sample(range(len(rows)), len(rows)):
            places = _places(group, distance, tokens, rows[row])
            if places:
                key_at = places[rng.randrange(len(places))]
                gap = tokens if group == "across" else distance
                return free.pop(index), row, key_at, key_at + gap
    return None


def _places(group: Group, distance: int, tokens: int, row: Row) -> Sequence[int]:
    """Where in a row the key of a pair can begin."""
    length = row.spans[-1]
    spans = list(itertools.pairwise(row.spans))
    if group == "across":
        return [a[1] - tokens for a, b in itertools.pairwise(spans) if _room(row, a, tokens) and _room(row, b, tokens)]
    wanted = {"first": 0, "last": length - 2 * tokens, "middle": length // 2 - tokens}.get(group)
    found: list[int] = []
    for start, stop in spans:
        last = stop - distance - tokens
        if last < start or not _room(row, (start, stop), distance + tokens):
            continue
        if wanted is None:
            found += range(start, last + 1)
        elif start <= wanted <= last:
            found.append(wanted)
    return found


def _room(row: Row, span: tuple[int, int], tokens: int) -> bool:
    """Whether a document of a row has so many tokens and is text: padding has no weight at all."""
    start, stop = span
    return stop - start >= tokens and bool(row.weights[start : stop - 1].all())


class WithCanaries:
    """The slots of a stage with the pairs of a map in their places, in place of the text that stood there."""

    def __init__(self, slots: Slots, insertions: Iterable[Insertion]) -> None:
        self._slots, self.insertions = slots, tuple(insertions)
        self._by_slot = {entry.slot: entry for entry in self.insertions}

    def slot(self, number: int) -> list[Row]:
        """The rows of the slot; those that the map names are changed."""
        rows = self._slots.slot(number)
        entry = self._by_slot.get(number)
        if entry is not None:
            rows[entry.row] = planted(rows[entry.row], entry)
        return rows

    def check(self) -> None:
        """As without canaries."""
        self._slots.check()

    def first_slots(self) -> dict[int, int]:
        """As without canaries."""
        return self._slots.first_slots()

    def lengths(self) -> Lengths:
        """As without canaries."""
        return self._slots.lengths()

    def repeats(self) -> list[float]:
        """As without canaries."""
        return self._slots.repeats()


def planted(row: Row, entry: Insertion) -> Row:
    """The row with key and value written over its text. Borders, positions and weights stay; targets follow."""
    tokens, targets = row.tokens.copy(), row.targets.copy()
    for at, ids in ((entry.key_at, entry.key), (entry.value_at, entry.value)):
        tokens[at : at + len(ids)] = ids
        first = at if at in row.spans else at - 1  # a document's first token is no one's target
        targets[first : at + len(ids) - 1] = tokens[first + 1 : at + len(ids)]
    return replace(row, tokens=tokens, targets=targets)


def sightings(rows: Iterable[Row], insertions: Iterable[Insertion]) -> dict[int, Counter[tuple[bool, int]]]:
    """What rows show of each pair, found by its tokens alone and not by the map.

    For every pair, how often a value is a target of the loss after a key of the same row: counted by whether both are
    in one document, and by the distance from key to value.
    """
    pairs = {entry.id: (entry.key, entry.value) for entry in insertions}
    found: dict[int, Counter[tuple[bool, int]]] = {number: Counter() for number in pairs}
    for row in rows:
        ends = np.array(row.spans[1:])
        for number, (key, value) in pairs.items():
            for key_at, value_at in itertools.product(_starts(row.tokens, key), _starts(row.tokens, value)):
                if key_at >= value_at:
                    continue
                documents = np.searchsorted(ends, [key_at, value_at], side="right")
                learnt = row.targets[value_at : value_at + len(value) - 1].tolist() == list(value[1:])
                assert learnt, "targets follow what is planted"
                found[number][bool(documents[0] == documents[1]), value_at - key_at] += 1
    return found


def _starts(tokens: NDArray[np.int64], wanted: Sequence[int]) -> Iterator[int]:
    at = np.flatnonzero(tokens[: len(tokens) - len(wanted) + 1] == wanted[0])
    for offset, token in enumerate(wanted[1:], start=1):
        at = at[tokens[at + offset] == token]
    yield from at.tolist()


def foils(entry: Insertion, count: int, *, vocabulary: int) -> list[tuple[int, ...]]:
    """Keys after which this value was never planted, to compare with; the same for every model."""
    rng = random.Random(digest((entry.id, *entry.key)))
    return [tuple(rng.randrange(vocabulary) for _ in entry.key) for _ in range(count)]
