"""Putting probes into a text token by token: rows to train on and contexts to ask, each of an exact length."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.probes.base import Encode, Item, Probe
from longspan.utils.errors import DataError

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]

REACH_TOKENS = 32  # how far a line moves to stand at a line start; beyond it any token border will do


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One question after a context. `question` + `answer` are the ids to append; `depth` is 0 at the start of the
    text and 1 at its end; `offset_tokens` is where the planted piece, its leading newline included, begins.
    """

    item: Item
    depth: float
    offset_tokens: int
    question: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Context:
    """A text with planted lines, and the questions that may follow it, one at a time."""

    tokens: Ids
    branches: tuple[Branch, ...]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """The token ids of one item."""

    item: Item
    line: list[int]
    question: list[int]
    answer: list[int]


def training_row(
    probe: Probe,
    haystack: NDArray[Any],
    *,
    length: int,
    items: int,
    answer_weight: float = 1.0,
    encode: Encode,
    rng: random.Random,
) -> tuple[Ids, Weights]:
    """A row of exactly `length` + 1 ids: text with planted lines, then all questions with answers, shuffled.

    The second array weighs each id as a target: `answer_weight` in answers, 1 elsewhere. Depths are
    stratified: one line, at a uniform depth, in each of `items` equal parts of the text. A row too short for all
    `items`, or a probe that allows fewer, gets as many as fit. A haystack of `length` + 1 tokens is always long enough.
    Raises `DataError` when not even one item fits, or when the haystack is too short.
    """
    wanted = items if probe.most_items is None else min(items, probe.most_items)
    pieces: list[_Piece] = []
    room = length + 1
    for item in probe.items(wanted, rng=rng, split="train"):
        piece = _encode_item(item, encode)
        used = len(piece.line) + len(piece.question) + len(piece.answer)
        if used > room:
            break
        pieces.append(piece)
        room -= used
    if not pieces:
        raise _too_short(length)
    text = _cut(haystack, room)
    depths = [(index + rng.random()) / len(pieces) for index in range(len(pieces))]
    planted, _ = _plant(text, [piece.line for piece in pieces], depths=depths, encode=encode)
    ids, weights = [planted], [np.ones(len(planted), dtype=np.float32)]
    rng.shuffle(pieces)
    for piece in pieces:
        ids += [_array(piece.question), _array(piece.answer)]
        weights += [
            np.ones(len(piece.question), dtype=np.float32),
            np.full(len(piece.answer), answer_weight, dtype=np.float32),
        ]
    row = np.concatenate(ids)
    assert len(row) == length + 1
    return row, np.concatenate(weights)


def evaluation_context(
    probe: Probe, haystack: NDArray[Any], *, length: int, depths: Sequence[float], encode: Encode, rng: random.Random
) -> Context:
    """A context with one line at each depth, and one branch a line in the same order.

    Context and longest branch together are exactly `length` tokens. A haystack of `length` tokens always suffices.
    Raises `DataError` when the lines do not fit, the haystack is too short, or the probe cannot carry so many.
    """
    if probe.most_items is not None and len(depths) > probe.most_items:
        raise DataError(
            "probe.too-many-lines",
            f"{len(depths)} lines are to be planted where this probe allows {probe.most_items}",
            fix="plant fewer lines in one context",
        )
    pieces = [_encode_item(item, encode) for item in probe.items(len(depths), rng=rng, split="evaluate")]
    longest = max(len(piece.question) + len(piece.answer) for piece in pieces)
    room = length - longest - sum(len(piece.line) for piece in pieces)
    if room < 1:
        raise _too_short(length)
    tokens, offsets = _plant(_cut(haystack, room), [piece.line for piece in pieces], depths=depths, encode=encode)
    assert len(tokens) + longest == length
    branches = tuple(
        Branch(
            item=piece.item,
            depth=depth,
            offset_tokens=offset,
            question=tuple(piece.question),
            answer=tuple(piece.answer),
        )
        for piece, depth, offset in zip(pieces, depths, offsets, strict=True)
    )
    return Context(tokens=tokens, branches=branches)


def _encode_item(item: Item, encode: Encode) -> _Piece:
    question = _inside(item.question, encode)
    both = _inside(item.question + item.answer, encode)
    # Some tokenizers merge over the border: then the answer begins where the two readings part.
    border = next((i for i, (a, b) in enumerate(zip(question, both, strict=False)) if a != b), len(question))
    line = _inside(f"\n{item.line}\n", encode)
    return _Piece(item=item, line=line, question=both[:border], answer=both[border:])


def _inside(text: str, encode: Encode) -> list[int]:
    """Ids of `text` as they stand inside a longer text: some tokenizers put a space before whatever comes first."""
    anchor = encode("x")
    both = encode("x" + text)
    return both[len(anchor) :] if both[: len(anchor)] == anchor else encode(text)


def _plant(text: Ids, lines: list[list[int]], *, depths: Sequence[float], encode: Encode) -> tuple[Ids, list[int]]:
    """Put each line into `text` at its depth; returns the ids and where each line begins, in the order given."""
    newline = _inside("\n", encode)[-1]
    starts = np.concatenate([[0], np.flatnonzero(text == newline) + 1, [len(text)]])
    places = [_nearest(starts, round(depth * len(text))) for depth in depths]
    offsets = [0] * len(lines)
    parts: list[Ids] = []
    done = grown = 0
    for index in sorted(range(len(lines)), key=places.__getitem__):
        parts += [text[done : places[index]], _array(lines[index])]
        offsets[index] = places[index] + grown
        done = places[index]
        grown += len(lines[index])
    return np.concatenate([*parts, text[done:]]), offsets


def _nearest(starts: Ids, place: int) -> int:
    """The line start nearest to `place`, or `place` itself when none is within reach."""
    after = int(np.searchsorted(starts, place))
    near = min((int(starts[i]) for i in (after - 1, after) if 0 <= i < len(starts)), key=lambda s: abs(s - place))
    return near if abs(near - place) <= REACH_TOKENS else place


def _cut(haystack: NDArray[Any], tokens: int) -> Ids:
    if len(haystack) < tokens:
        raise DataError(
            "probe.haystack-short",
            f"the text has {len(haystack)} tokens where {tokens} are needed; it is never repeated",
            fix="give more text, or ask for a shorter length",
        )
    return haystack[:tokens].astype(np.int64)


def _array(ids: list[int]) -> Ids:
    return np.array(ids, dtype=np.int64)


def _too_short(length: int) -> DataError:
    return DataError(
        "probe.length-short",
        f"{length} tokens are too few for the lines and the question of this probe",
        fix="ask for a greater length or for fewer lines",
    )
