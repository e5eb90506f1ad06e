"""Which tokens of a batch a rank holds, and which of its queries meet which keys of others: whole numbers only.

Pieces are runs of tokens in ascending order, never empty, counted over the whole batch. A rank's own tensors hold its
pieces one after another; *local* places are counted there.
"""

import functools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from longspan.attention.documents import Runs

Pieces = tuple[tuple[int, int], ...]


def tokens_of(pieces: Pieces) -> int:
    """How many tokens the pieces hold."""
    return sum(stop - start for start, stop in pieces)


def zigzag(length: int, *, ranks: int, rank: int) -> Pieces:
    """Of 2·ranks chunks the one at `rank` from the start and the one at `rank` from the end: equal causal work."""
    chunks = [(i * length // (2 * ranks), (i + 1) * length // (2 * ranks)) for i in (rank, 2 * ranks - 1 - rank)]
    return _joined(chunks)


def share(pieces: Pieces, *, parts: int, part: int) -> Pieces:
    """One of `parts` consecutive and nearly equal parts of the tokens of `pieces`."""
    total = tokens_of(pieces)
    low, high = part * total // parts, (part + 1) * total // parts
    found, offset = [], 0
    for start, stop in pieces:
        found.append((start + max(low - offset, 0), min(start + high - offset, stop)))
        offset += stop - start
    return _joined(found)


def _joined(pieces: Sequence[tuple[int, int]]) -> Pieces:
    """Without the empty ones, and neighbours as one."""
    found: list[tuple[int, int]] = []
    for start, stop in pieces:
        if found and found[-1][1] == start < stop:
            found[-1] = (found[-1][0], stop)
        elif start < stop:
            found.append((start, stop))
    return tuple(found)


def gaps(pieces: Pieces, length: int) -> Pieces:
    """The tokens of the batch that the pieces leave out."""
    edges = [0, *(edge for piece in pieces for edge in piece), length]
    return _joined(list(zip(edges[::2], edges[1::2], strict=True)))


@dataclass(frozen=True)
class Placed:
    """A piece of a rank: tokens `start` to `stop` of the batch are at `offset` of the rank's own."""

    rank: int
    offset: int
    start: int
    stop: int

    @property
    def local(self) -> slice:
        """The piece among the rank's own tokens."""
        return slice(self.offset, self.offset + self.stop - self.start)


def placed(pieces: Pieces, *, rank: int = 0) -> tuple[Placed, ...]:
    """The pieces with their local places."""
    found, offset = [], 0
    for start, stop in pieces:
        found.append(Placed(rank, offset, start, stop))
        offset += stop - start
    return tuple(found)


def in_order(layouts: Sequence[Pieces]) -> tuple[Placed, ...]:
    """The pieces of all ranks from the batch's first token to its last: the way back from the layouts."""
    found = [place for rank, pieces in enumerate(layouts) for place in placed(pieces, rank=rank)]
    return tuple(sorted(found, key=lambda place: place.start))


# -- documents -------------------------------------------------------------------------------------------------------


def hiding(window: int | None, runs: Runs) -> int | None:
    """The window, if some document is longer."""
    longest = max((stop - start for start, stop in runs), default=0)
    return window if window is not None and window < longest else None


def document_of(token: int, runs: Runs) -> tuple[int, int]:
    """The run that holds a token."""
    return runs[bisect_right(runs, token, key=lambda run: run[0]) - 1]


@functools.lru_cache(maxsize=64)
def local_runs(pieces: Pieces, runs: Runs) -> Runs:
    """The documents among a rank's own tokens, by local place; one that goes on in the next piece is one run."""
    found: list[tuple[int, int]] = []
    last = None
    for place in placed(pieces):
        first = bisect_right(runs, place.start, key=lambda run: run[0]) - 1
        for index in range(first, len(runs)):
            start, stop = max(runs[index][0], place.start), min(runs[index][1], place.stop)
            if start >= stop:
                break
            low, high = (edge - place.start + place.offset for edge in (start, stop))
            if index == last:
                low = found.pop()[0]
            found.append((low, high))
            last = index
    return tuple(found)


@dataclass(frozen=True)
class Rectangle:
    """Own queries of which each sees each of another rank's keys, by local places."""

    queries: slice
    keys: slice


@functools.lru_cache(maxsize=256)
def rectangles(own: Pieces, others: Pieces, runs: Runs) -> tuple[Rectangle, ...]:
    """All that the queries of `own` see of the keys of `others`, which are other tokens.

    A piece of keys that ends before a piece of queries meets it in one document at most: the one of its last key. The
    queries of that document after it are neighbours in the order of `own`.
    """
    found: list[Rectangle] = []
    for keys in placed(others):
        first, end = document_of(keys.stop - 1, runs)
        seeing = [piece for piece in placed(own) if keys.stop <= piece.start < end]
        if not seeing:
            continue
        last = seeing[-1]
        queries = slice(seeing[0].offset, last.offset + min(last.stop, end) - last.start)
        seen = slice(keys.offset + max(first - keys.start, 0), keys.local.stop)
        if found and found[-1].queries == queries and found[-1].keys.stop == seen.start:
            seen = slice(found.pop().keys.start, seen.stop)
        found.append(Rectangle(queries, seen))
    return tuple(found)
