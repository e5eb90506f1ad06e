"""Rows of many lengths, each a piece of one document, a length a step."""

import bisect
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longspan.data.curricula._lengths import Lengths
from longspan.data.curricula.base import Curriculum, Slots, StageText
from longspan.data.rows import Row, chosen_documents, digest
from longspan.data.settings import MixPart
from longspan.utils.errors import DataError

Odds = Literal["natural", "uniform", "grow_linear", "grow_p2", "grow_p100"]
Pieces = NDArray[np.int64]  # rows of (document, first token)


class Buckets(Curriculum):
    """Documents are cut into pieces whose lengths are powers of two, from `shortest` tokens to the stage's length.

    A step has pieces of one length, as many as make its tokens. The steps of each length are as many as its share of
    all tokens; they are spread evenly over `cycles`, and within a cycle lengths are drawn by `odds` until none is left,
    short ones sooner with the growing odds. The first step of a stage has the longest pieces, so that memory that does
    not suffice shows at once. `shred_long` cuts what is longer than two of the longest pieces at random lengths, as
    the authors' code does: almost only scraps, so it is off. What is left of a document below `shortest` is not used.
    Source: Pouransari and others 2024, arXiv:2405.13226, section 3 and algorithm 1.
    """

    kind: Literal["buckets"] = "buckets"
    shortest: int = Field(default=256, ge=2)
    odds: Odds = "grow_p2"
    cycles: int = Field(default=8, ge=1)
    shred_long: bool = False

    def check(self, *, length: int, mix: Sequence[MixPart]) -> None:
        """Raise `ValueError` for lengths that are no powers of two, or for a mix of more than one part of text."""
        for name, value in (("shortest", self.shortest), ("the stage's length", length)):
            if value & (value - 1):
                raise ValueError(f"curriculum buckets: {name} {value} is no power of two")
        if self.shortest > length:
            raise ValueError(f"curriculum buckets: shortest {self.shortest} is above the stage's length {length}")
        if (
            len(mix) > 1
            or mix[0].probe is not None
            or mix[0].length is not None
            or mix[0].answers
            or not mix[0].borders
        ):
            raise ValueError("curriculum buckets takes a mix of one part of text: its rows are pieces of documents")

    def levels(self, length: int) -> range:
        """The logarithms of the lengths, from the shortest to the stage's."""
        return range(self.shortest.bit_length() - 1, length.bit_length())

    def weights(self, length: int) -> tuple[float, ...]:
        """The odds of each length, the shortest first; 0 each for "natural", which draws by what is left."""
        count = len(self.levels(length))
        down = range(count - 1, -1, -1)
        return {
            "natural": (0.0,) * count,
            "uniform": (1.0,) * count,
            "grow_linear": tuple(n + 1.0 for n in down),
            "grow_p2": tuple(2.0**n for n in down),
            "grow_p100": tuple(100.0**n for n in down),
        }[self.odds]

    def slots(self, text: StageText) -> Slots:
        """The pieces of the mix's documents in the order of the odds."""
        return BucketSlots(self, text)


class BucketSlots:
    """The slots of a stage in buckets: which length a step has, and which pieces, follow from their numbers alone."""

    def __init__(self, settings: Buckets, text: StageText) -> None:
        self._settings, self._text = settings, text
        documents = chosen_documents(text.store, text.mix[0])
        self._key = (text.seed, text.stage)
        levels = settings.levels(text.length)
        draw = np.random.Generator(np.random.PCG64(digest((*self._key, -1)))) if settings.shred_long else None
        self._pieces = decompose(text.store.lengths[documents], documents, levels, draw)
        tokens = [len(pieces) << level for pieces, level in zip(self._pieces, levels, strict=True)]
        if not sum(tokens):
            raise DataError(
                "data.no-pieces",
                f"no document has a piece of {settings.shortest:,} tokens",
                where=str(text.store.folder),
                fix="give longer documents, or a smaller shortest of the curriculum",
            )
        self._tokens = sum(tokens)
        self._steps = apportioned(text.steps, tokens)
        self.order = drawn_order(self._steps, settings.weights(text.length), cycles=settings.cycles, key=self._key)
        self._uses = [[step for step, bucket in enumerate(self.order) if bucket == b] for b in range(len(levels))]
        self._permutation = lru_cache(maxsize=2 * len(levels))(self._permuted)

    def _permuted(self, bucket: int, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(digest((*self._key, bucket, epoch))))
        return generator.permutation(len(self._pieces[bucket]))

    def piece(self, number: int, row: int) -> tuple[int, int, int]:
        """Document, first token and length of a row of a slot."""
        step, place = divmod(number, self._text.slots_per_step)
        bucket = self.order[step]
        size = self._settings.shortest << bucket
        rows = self._text.length // size
        earlier = bisect.bisect_left(self._uses[bucket], step) * self._text.slots_per_step + place
        epoch, index = divmod(earlier * rows + row, len(self._pieces[bucket]))
        document, start = self._pieces[bucket][self._permutation(bucket, epoch)[index]].tolist()
        return document, start, size

    def slot(self, number: int) -> list[Row]:
        """Pieces of one length that make up the slot's tokens."""
        size = self._settings.shortest << self.order[number // self._text.slots_per_step]
        return [self._row(*self.piece(number, row)) for row in range(self._text.length // size)]

    def _row(self, document: int, start: int, size: int) -> Row:
        ids = self._text.store.read(document, start, size + 1)
        return Row(
            tokens=ids[:-1],
            targets=ids[1:],
            weights=np.ones(size, dtype=np.float32),
            positions=np.arange(size, dtype=np.int64),
            spans=(0, size),
        )

    def check(self) -> None:
        """Make a slot of every length that is used."""
        for steps in self._uses:
            for step in steps[:1]:
                self.slot(step * self._text.slots_per_step)

    def first_slots(self) -> dict[int, int]:
        """From the order of the steps."""
        sizes = [(self._settings.shortest << bucket, steps) for bucket, steps in enumerate(self._uses)]
        return {size: steps[0] * self._text.slots_per_step for size, steps in reversed(sizes) if steps}

    def lengths(self) -> Lengths:
        """Of the whole stage."""
        tokens = self._text.slots_per_step * self._text.length
        sizes = [self._settings.shortest << bucket for bucket in range(len(self._steps))]
        return Lengths(counts={s: n * tokens / s for s, n in zip(sizes, self._steps, strict=True) if n})

    def repeats(self) -> list[float]:
        """How often the stage goes through all pieces."""
        return [self._text.steps * self._text.slots_per_step * self._text.length / self._tokens]


def decompose(
    lengths: NDArray[np.int64],
    documents: NDArray[np.int64],
    levels: range,
    draw: np.random.Generator | None = None,
) -> list[Pieces]:
    """The pieces of documents by level, each (document, first token).

    A document of n tokens has n - 1 pairs of a token and its target. They are cut, left to right, into as many of the
    longest pieces as fit, then into the powers of two of what is left. A piece's last target is the next one's first
    token, so no pair is lost but those of the tail below the lowest level. With `draw`, what is longer than two of the
    longest pieces is cut at levels drawn with odds that halve from level to level.
    """
    top = levels[-1]
    pairs = np.maximum(lengths - 1, 0)
    starts = np.zeros_like(pairs)
    found: list[list[Pieces]] = [[] for _ in levels]
    if draw is not None:
        _shred(pairs, starts, documents, levels, draw, found)
    whole = pairs >> top
    owner = np.repeat(np.arange(len(pairs)), whole)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(whole) - whole, whole)
    found[-1].append(np.stack([documents[owner], starts[owner] + (nth << top)], axis=1))
    at = starts + (whole << top)
    for level in reversed(levels[:-1]):
        has = np.flatnonzero((pairs >> level) & 1)
        found[level - levels[0]].append(np.stack([documents[has], at[has]], axis=1))
        at[has] += 1 << level
    return [np.concatenate(pieces) for pieces in found]


def _shred(
    pairs: NDArray[np.int64],
    starts: NDArray[np.int64],
    documents: NDArray[np.int64],
    levels: range,
    draw: np.random.Generator,
    found: list[list[Pieces]],
) -> None:
    """Cut random pieces off long documents, in place, until none is longer than two of the longest pieces."""
    odds = np.array([2.0 ** (levels[-1] - level) for level in levels])
    for place in np.flatnonzero(pairs >= 2 << levels[-1]):
        while pairs[place] >= 2 << levels[-1]:
            level = int(draw.choice(len(levels), p=odds / odds.sum()))
            size = 1 << levels[level]
            found[level].append(np.array([[documents[place], starts[place]]], dtype=np.int64))
            starts[place] += size
            pairs[place] -= size


def apportioned(steps: int, tokens: Sequence[int]) -> list[int]:
    """Steps divided by shares of tokens, whole numbers of which none is off by 1 or more."""
    total = sum(tokens)
    found = [steps * entry // total for entry in tokens]
    left = sorted(range(len(tokens)), key=lambda b: (-(steps * tokens[b] % total), -b))
    for bucket in left[: steps - sum(found)]:
        found[bucket] += 1
    return found


def drawn_order(steps: Sequence[int], odds: Sequence[float], *, cycles: int, key: tuple[int, ...]) -> list[int]:
    """The bucket of every step: in each cycle, draws by the odds among those of which steps are left.

    The first step is the longest that there is. Source: arXiv:2405.13226, algorithm 1.
    """
    order: list[int] = []
    for cycle in range(cycles):
        left = [(cycle + 1) * count // cycles - cycle * count // cycles for count in steps]
        while any(left):
            weights = [odd * (n > 0) if any(odds) else n for odd, n in zip(odds, left, strict=True)]
            rng = random.Random(digest((*key, cycle, len(order))))
            bucket = rng.choices(range(len(left)), weights=weights)[0]
            left[bucket] -= 1
            order.append(bucket)
    longest = order.index(max(order))
    order[0], order[longest] = order[longest], order[0]
    return order
