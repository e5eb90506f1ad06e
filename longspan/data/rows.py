"""Rows of a stage as a pure function of (seed, stage, sample): nothing is carried along, so resume is exact."""

import hashlib
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from longspan.data.settings import MixPart
from longspan.data.shares import Shares
from longspan.data.store import TokenStore
from longspan.probes import Encode, Probe, training_row
from longspan.utils.errors import DataError, LongspanError

Answers = Callable[[NDArray[Any]], NDArray[np.bool_]]  # which ids of a conversation are answers

ITEMS = 8  # lines planted in a probe's text, at most, when a recipe does not say how many
PIECES = 2  # between which positions jump, when a recipe does not say how many


@dataclass(frozen=True, eq=False)
class Row:
    """One row of S tokens, ready for training.

    `targets[i]` follows `tokens[i]` in its document; where nothing follows, the weight is 0. `positions` count from 0
    in every span, and jump where the part of the mix has a `reach`; `spans` are the borders (0, …, S) that no token
    attends across.
    """

    tokens: Int64[np.ndarray, " S"]
    targets: Int64[np.ndarray, " S"]
    weights: Float32[np.ndarray, " S"]
    positions: Int64[np.ndarray, " S"]
    spans: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Window:
    """A part of a row: ids, targets, weights, and the lengths of its spans."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    span_lengths: list[int]


class StageRows:
    """All rows of one stage: `row(sample)` for sample 0, 1, 2, … without end.

    Over any first n samples each part of the mix has its share of n to within 2. A text part takes its rows from
    epochs: in each, every pair of neighbouring tokens of every document is trained on exactly once. Raises
    `DataError` when there is too little text.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        length: int,
        mix: Sequence[MixPart],
        seed: int,
        stage: int,
        encode: Encode,
        answers: Answers | None = None,
    ) -> None:
        self._length, self._seed, self._stage = length, seed, stage
        self._mix, self._shares = tuple(mix), Shares([part.share for part in mix])
        self._parts: list[_TextPart | _ProbePart | _ChatPart] = []
        for index, part in enumerate(mix):
            own, key = part.length or length, (seed, stage, index)
            if part.probe is not None:
                self._parts.append(_ProbePart(store, part.probe, part=part, length=own, encode=encode))
            elif part.answers:
                assert answers is not None, "a job with conversations knows their answers"
                self._parts.append(_ChatPart(store, part=part, length=own, key=key, answers=answers))
            else:
                self._parts.append(_TextPart(store, part=part, length=own, key=key))
        assert all(length % part.length == 0 for part in self._parts), "a recipe's stage checks that parts fill rows"

    def row(self, sample: int) -> Row:
        """The row with this number; the same in every process, whatever was asked before."""
        part, index = self._shares.place(sample)
        return self._row(part, sample, index)

    def repeats(self, samples: int) -> list[float]:
        """How often each part goes through its documents in the first `samples` rows; 0 for probes."""
        parts = zip(self._parts, self._shares.shares, strict=True)
        return [
            0.0 if isinstance(part, _ProbePart) else samples * float(share) * self._length / part.tokens
            for part, share in parts
        ]

    def check(self) -> None:
        """Build one row of each part, so that a stage that cannot work is found before long work.

        Raises what building it raises, such as `DataError` for a probe that does not fit; `where` names the part.
        """
        for number in range(len(self._parts)):
            try:
                self._row(number, 0, 0)
            except LongspanError as error:
                error.where = error.where or f"mix.{number}"
                raise

    def _row(self, number: int, sample: int, index: int) -> Row:
        """The row of part `number` that has this sample number in the stage, and `index` among the rows of the part."""
        source, part = self._parts[number], self._mix[number]
        packed = self._length // source.length
        if not isinstance(source, _ProbePart):
            windows = [source.window(index * packed + slot) for slot in range(packed)]
        else:
            windows = [source.window(_random((self._seed, self._stage, sample, slot))) for slot in range(packed)]
        if part.reach is None:
            return _joined(windows, lambda count: np.arange(count, dtype=np.int64))
        rng, reach = np.random.Generator(np.random.PCG64(digest((self._seed, self._stage, sample, -3)))), part.reach
        return _joined(windows, lambda count: jumping(count, reach=reach, pieces=part.pieces or PIECES, rng=rng))


def chosen_documents(store: TokenStore, part: MixPart) -> NDArray[np.int64]:
    """The documents of a store that a part of a mix takes its text from.

    Raises `DataError` when there are none.
    """
    tokens = store.lengths - 1  # without the separator
    wanted = (tokens >= part.least_tokens) & (tokens <= (part.most_tokens or tokens.max(initial=0)))
    if part.documents:
        named = (any(fnmatchcase(name, glob) for glob in part.documents) for name in store.documents)
        wanted &= np.fromiter(named, dtype=np.bool_, count=len(store))
    found = np.flatnonzero(wanted)
    if not len(found) and len(store):
        raise DataError(
            "data.mix-empty",
            f"no document matches {', '.join(part.documents) or 'any name'} with {part.least_tokens:,} to "
            f"{'any number of' if part.most_tokens is None else format(part.most_tokens, ',')} tokens",
            fix="choose other globs or lengths; longspan data tells what there is",
        )
    return found


class _TextPart:
    """Windows of the chosen documents' tokens.

    The documents of an epoch, in random order, are one stream of tokens. It is cut into windows of `length`, and the
    windows are visited in random order. The last one is filled up with separators of weight 0.
    """

    def __init__(self, store: TokenStore, *, part: MixPart, length: int, key: tuple[int, ...]) -> None:
        self._documents = chosen_documents(store, part)
        self.tokens = int(store.lengths[self._documents].sum())
        if self.tokens < length:
            raise DataError(
                "data.text-short",
                f"rows of {length:,} tokens need that much text, and {length - self.tokens:,} tokens are missing",
                where=str(store.folder),
                fix="give more text, or a shorter length",
            )
        self.length, self._borders = length, part.borders
        self._store, self._key = store, key
        self._windows = -(-self.tokens // length)
        self._epoch = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of one epoch: the documents' order, where each ends in the stream, and the windows' order."""
        generator = np.random.Generator(np.random.PCG64(digest((*self._key, epoch))))
        documents = self._documents[generator.permutation(len(self._documents))]
        return documents, np.cumsum(self._store.lengths[documents]), generator.permutation(self._windows)

    def window(self, number: int) -> _Window:
        epoch, visit = divmod(number, self._windows)
        documents, ends, windows = self._epoch(epoch)
        start = int(windows[visit]) * self.length
        stop = min(start + self.length, self.tokens)
        tokens = np.full(self.length, self._store.separator, dtype=np.int64)
        targets = tokens.copy()
        weights = np.zeros(self.length, dtype=np.float32)
        span_lengths: list[int] = []
        at = start
        for index in itertools.count(int(np.searchsorted(ends, start, side="right"))):
            if at == stop:
                break
            document, end = int(documents[index]), int(ends[index])
            count = min(end, stop) - at
            first = at - (end - int(self._store.lengths[document]))
            followed = count - (at + count == end)  # the last token of a document has no target
            ids = self._store.read(document, first, followed + 1)
            here = at - start
            tokens[here : here + count] = ids[:count]
            targets[here : here + followed] = ids[1:]
            weights[here : here + followed] = 1.0
            span_lengths.append(count)
            at += count
        if not self._borders:
            ends = np.cumsum(span_lengths)[:-1] - 1  # of the documents that another one follows here
            targets[ends], weights[ends] = tokens[ends + 1], 1.0
            span_lengths = [stop - start]
        if stop - start < self.length:
            span_lengths.append(self.length - (stop - start))
        return _Window(tokens, targets, weights, span_lengths)


class _ChatPart:
    """Windows of whole conversations, of which only the answers are learnt.

    Conversations in random order fill a window until the next one does not fit, which opens a new one; separators of
    weight 0 fill what is left. A stage keeps its windows; each epoch visits them in an order of its own.
    """

    def __init__(
        self, store: TokenStore, *, part: MixPart, length: int, key: tuple[int, ...], answers: Answers
    ) -> None:
        documents = chosen_documents(store, part)
        long = documents[store.lengths[documents] > length]
        if len(long) or not len(documents):
            first = f", such as {store.documents[int(long[0])]}" if len(long) else ""
            raise DataError(
                "data.chat-long" if len(long) else "data.text-short",
                f"{len(long):,} conversations are longer than {length:,} tokens{first}; none is ever cut"
                if len(long)
                else "there are no conversations",
                where=str(store.folder),
                fix=f"set most_tokens = {length - 1} in this part of the mix, or a greater length",
            )
        self.length, self._store, self._key, self._answers = length, store, key, answers
        order = documents[np.random.Generator(np.random.PCG64(digest((*key, -1)))).permutation(len(documents))]
        self._bins = _packed(order, store.lengths, length)
        self.tokens = len(self._bins) * length
        self._epoch = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64(digest((*self._key, epoch)))).permutation(len(self._bins))

    def window(self, number: int) -> _Window:
        epoch, visit = divmod(number, len(self._bins))
        tokens = np.full(self.length, self._store.separator, dtype=np.int64)
        targets = tokens.copy()
        weights = np.zeros(self.length, dtype=np.float32)
        span_lengths: list[int] = []
        at = 0
        for document in self._bins[int(self._epoch(epoch)[visit])]:
            ids = self._store.read(document, 0, int(self._store.lengths[document]))
            stop = at + len(ids)
            tokens[at:stop] = ids
            targets[at : stop - 1] = ids[1:]
            weights[at : stop - 1] = self._answers(ids)[1:]  # a target is learnt where it is part of an answer
            span_lengths.append(len(ids))
            at = stop
        if at < self.length:
            span_lengths.append(self.length - at)
        return _Window(tokens, targets, weights, span_lengths)


def _packed(order: NDArray[np.int64], lengths: NDArray[np.int64], length: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room = 0
    for document in order.tolist():
        tokens = int(lengths[document])
        if tokens > room:
            bins.append([])
            room = length
        bins[-1].append(document)
        room -= tokens
    return bins


class _ProbePart:
    """Windows of text in which a probe has planted its lines, with its questions and answers at the end."""

    def __init__(self, store: TokenStore, probe: Probe, *, part: MixPart, length: int, encode: Encode) -> None:
        self.length = length
        self._store, self._probe, self._encode = store, probe, encode
        self._items = ITEMS if part.items is None else part.items
        self._answer_weight = 1.0 if part.answer_weight is None else part.answer_weight
        self._documents = chosen_documents(store, part)
        self._text_lengths = store.lengths[self._documents] - 1  # a haystack has no separators inside
        self._text_ends = np.cumsum(self._text_lengths)
        available = int(self._text_ends[-1]) if len(self._text_ends) else 0
        if available < length + 1:
            raise DataError(
                "data.haystack-short",
                f"probes at {length:,} tokens need that much text, and there are {available:,} tokens of it",
                where=str(store.folder),
                fix="give more text, or a shorter length",
            )

    def window(self, rng: random.Random) -> _Window:
        ids, weights = training_row(
            self._probe,
            self._haystack(rng.randrange(int(self._text_ends[-1]))),
            length=self.length,
            items=self._items,
            answer_weight=self._answer_weight,
            encode=self._encode,
            rng=rng,
        )
        return _Window(ids[:-1], ids[1:], weights[1:], [self.length])

    def _haystack(self, start: int) -> NDArray[np.int64]:
        """length + 1 tokens from a place in all text, document after document, going on at the first after the last."""
        place = int(np.searchsorted(self._text_ends, start, side="right"))
        first = start - int(self._text_ends[place] - self._text_lengths[place])
        parts, wanted = [], self.length + 1
        while wanted:
            count = min(wanted, int(self._text_lengths[place]) - first)
            parts.append(self._store.read(int(self._documents[place]), first, count))
            wanted -= count
            place, first = (place + 1) % len(self._documents), 0
        return np.concatenate(parts)


def jumping(count: int, *, reach: int, pieces: int, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Positions of `count` tokens that jump `pieces` - 1 times, at random places, and stay below `reach`.

    What is left out in all is uniform up to the whole of `reach`, and so is its division among the jumps: any distance
    up to `reach` comes up. They begin at 0. Source: Zhu and others 2023, arXiv:2309.10400 (PoSE), section 3.2, which
    has two pieces.
    """
    places = rng.permutation(count - 1)[: pieces - 1] if count > 1 else np.zeros(0, dtype=np.int64)
    left_out = int(rng.integers(max(0, reach - count) + 1))
    borders = [0, *np.sort(rng.integers(left_out + 1, size=max(0, len(places) - 1))).tolist(), left_out]
    steps = np.ones(count, dtype=np.int64)
    steps[:1] = 0
    for place, (low, high) in zip(places.tolist(), itertools.pairwise(borders), strict=False):
        steps[place + 1] += high - low
    return np.cumsum(steps)


def _joined(windows: list[_Window], positions: Callable[[int], NDArray[np.int64]]) -> Row:
    span_lengths = [n for window in windows for n in window.span_lengths]
    return Row(
        tokens=np.concatenate([window.tokens for window in windows]),
        targets=np.concatenate([window.targets for window in windows]),
        weights=np.concatenate([window.weights for window in windows]),
        positions=np.concatenate([positions(n) for n in span_lengths]),
        spans=(0, *itertools.accumulate(span_lengths)),
    )


def digest(key: tuple[int | str, ...]) -> int:
    """A number of 128 bits that a key decides: the seed of everything that is drawn for it."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")


def _random(key: tuple[int, ...]) -> random.Random:
    return random.Random(digest(key))
