"""Held-out text as evaluation sees it, and the windows that are cut from it."""

import random
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longspan.utils.errors import DataError

Ids = NDArray[np.int64]


class Documents(Protocol):
    """Held-out documents as token ids; `data.TokenStore` is one."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every document, the separator at its end included."""

    def read(self, document: int, start: int, length: int) -> NDArray[np.int64]:
        """`length` ids of one document from its token `start` on."""


def text_lengths(documents: Documents) -> list[int]:
    """Tokens of every document without its separator, which would tell a model to forget what stands before it."""
    lengths: list[int] = (documents.lengths - 1).tolist()
    return lengths


def window(documents: Documents, length: int, *, index: int, windows: int, rng: random.Random) -> Ids:
    """Window `index` of `windows` that are spread evenly over all documents, joined end to end in an order by `rng`.

    Every window begins at another token; inside one no text stands twice, and no separator stands. Give the same
    fresh `rng` for every window of a set.
    Raises `DataError` with the number of missing tokens when the documents together are shorter than `length`.
    """
    lengths = text_lengths(documents)
    total = sum(lengths)
    if total < max(length, windows):
        raise DataError(
            "eval.text-short",
            f"{windows} contexts of {length} tokens need {max(length, windows)} tokens of held-out text; "
            f"{max(length, windows) - total} are missing, and text is never repeated",
            where=f"{len(lengths)} held-out documents, {total} tokens",
            fix="hold out more documents, or evaluate at shorter lengths",
        )
    order = list(range(len(lengths)))
    rng.shuffle(order)
    start = (int(rng.random() * total) + index * total // windows) % total
    parts: list[Ids] = []
    have = 0
    # Twice round the ring of documents: the window may begin late in the last and go on in the first.
    for document in order * 2:
        skip = min(start, lengths[document])
        take = min(lengths[document] - skip, length - have)
        start -= skip
        if take:
            parts.append(documents.read(document, skip, take))
            have += take
    assert have == length
    return np.concatenate(parts)


def whole_windows(documents: Documents, length: int, *, windows: int, stride: int) -> list[tuple[int, int]]:
    """(document, start) of up to `windows` windows, each inside one document, evenly spread over all of a stride.

    Documents joined together would not show what a long context does.
    Raises `DataError` when no document has `length` tokens.
    """
    lengths = text_lengths(documents)
    places = [
        (document, start) for document, tokens in enumerate(lengths) for start in range(0, tokens - length + 1, stride)
    ]
    if not places:
        raise DataError(
            "eval.document-short",
            f"no held-out document has the {length} tokens that a loss is asked for; "
            f"the longest has {max(lengths, default=0)}",
            fix="hold out a longer document, or ask for a shorter length",
        )
    if len(places) <= windows:
        return places
    return [places[int((index + 0.5) * len(places) / windows)] for index in range(windows)]
