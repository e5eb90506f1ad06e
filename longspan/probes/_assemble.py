"""Putting probes into a text token by token: rows to train on and contexts to ask, each of an exact length."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.probes._weave import inside
from longspan.probes.base import Encode, Filled, FilledProbe, Ids, Item, PlantedProbe, Probe, WovenProbe
from longspan.utils.errors import DataError

Weights = NDArray[np.float32]

REACH_TOKENS = 32  # how far a line moves to stand at a line start; beyond it any token border will do
SAMPLE_LINES = 64  # of a text that a probe makes: how long its lines are is told by so many


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One question after a context. `question` + `answer` are the ids to append; `depth` is 0 at the start of the
    text and 1 at its end; `offset_tokens` is where the planted piece, its leading newline included, begins. With
    `reply_tokens` there is no one right text: so many tokens are decoded and searched for what is wanted; greedily, or
    drawn at a `temperature` from the stream of a `seed`.
    """

    item: Item
    depth: float
    offset_tokens: int
    question: tuple[int, ...]
    answer: tuple[int, ...]
    reply_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Context:
    """A text with planted lines, and the questions that may follow it, one at a time."""

    tokens: Ids
    branches: tuple[Branch, ...]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """The token ids of one item; `lines[main]` is the line at the depth that is asked for."""

    item: Item
    lines: list[list[int]]
    main: int
    question: list[int]
    answer: list[int]

    @property
    def planted(self) -> int:
        return sum(map(len, self.lines))

    @property
    def asked(self) -> int:
        return len(self.question) + len(self.answer)


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
    if isinstance(probe, PlantedProbe):
        text, pieces = _planted_row(probe, haystack, room=length + 1, items=wanted, encode=encode, rng=rng)
    elif isinstance(probe, FilledProbe):
        depths = [(index + rng.random()) / wanted for index in range(wanted)]
        filled = _filled(probe, depths, split="train", encode=encode, rng=rng)
        text, pieces, _ = filled(haystack, length + 1, lambda pieces: sum(piece.asked for piece in pieces))
    else:
        assert isinstance(probe, WovenProbe)
        woven = probe.weave(_cut(haystack, length + 1), length=length + 1, depth=rng.random(), rng=rng, encode=encode)
        item = Item(question="", answer="")
        ask = (list(woven.question), list(woven.answer))
        text, pieces = woven.text, [_Piece(item=item, lines=[], main=0, question=ask[0], answer=ask[1])]
    ids, weights = [text], [np.ones(len(text), dtype=np.float32)]
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
    """A context with one question for each depth, in the same order; what it asks about stands at that depth.

    Context and longest branch together are exactly `length` tokens. A haystack of `length` tokens always suffices.
    Raises `DataError` when the lines do not fit, the haystack is too short, or the probe cannot carry so many.
    """
    if probe.most_items is not None and len(depths) > probe.most_items:
        raise DataError(
            "probe.too-many-lines",
            f"{len(depths)} lines are to be planted where this probe allows {probe.most_items}",
            fix="plant fewer lines in one context",
        )
    if isinstance(probe, PlantedProbe):
        tokens, pieces, offsets = _planted_context(probe, haystack, length, depths, encode=encode, rng=rng)
    elif isinstance(probe, FilledProbe):
        filled = _filled(probe, depths, split="evaluate", encode=encode, rng=rng)
        tokens, pieces, offsets = filled(haystack, length, lambda pieces: max(piece.asked for piece in pieces))
    else:
        assert isinstance(probe, WovenProbe)
        text = _cut(haystack, length)
        woven = probe.weave(text, length=length, depth=depths[0], rng=rng, encode=encode)
        item, ask = Item(question="", answer=""), (list(woven.question), list(woven.answer))
        pieces = [_Piece(item=item, lines=[], main=0, question=ask[0], answer=ask[1])]
        tokens, offsets = woven.text, [woven.at]
    assert len(tokens) + max(piece.asked for piece in pieces) == length
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


# -- lines planted in a text -----------------------------------------------------------------------------------------


def _planted_row(
    probe: PlantedProbe, haystack: NDArray[Any], *, room: int, items: int, encode: Encode, rng: random.Random
) -> tuple[Ids, list[_Piece]]:
    length, pieces = room - 1, []
    for item in probe.items(items, rng=rng, split="train"):
        piece = _encode_item(item, encode)
        if piece.planted + piece.asked > room:
            break
        pieces.append(piece)
        room -= piece.planted + piece.asked
    if not pieces:
        raise _too_short(length)
    text = _cut(haystack, room)
    depths = [(index + rng.random()) / len(pieces) for index in range(len(pieces))]
    planted, _ = _plant_all(text, pieces, depths=depths, encode=encode, rng=rng)
    return planted, pieces


def _planted_context(
    probe: PlantedProbe,
    haystack: NDArray[Any],
    length: int,
    depths: Sequence[float],
    *,
    encode: Encode,
    rng: random.Random,
) -> tuple[Ids, list[_Piece], list[int]]:
    pieces = [_encode_item(item, encode) for item in probe.items(len(depths), rng=rng, split="evaluate")]
    room = length - max(piece.asked for piece in pieces) - sum(piece.planted for piece in pieces)
    if room < 1:
        raise _too_short(length)
    tokens, offsets = _plant_all(_cut(haystack, room), pieces, depths=depths, encode=encode, rng=rng)
    return tokens, pieces, offsets


def _encode_item(item: Item, encode: Encode) -> _Piece:
    question = inside(item.question, encode)
    both = inside(item.question + item.answer, encode)
    # Some tokenizers merge over the border: then the answer begins where the two readings part.
    border = next((i for i, (a, b) in enumerate(zip(question, both, strict=False)) if a != b), len(question))
    lines = [*item.before, item.line, *item.after, *item.elsewhere] if item.line else []
    return _Piece(
        item=item,
        lines=[inside(f"\n{line}\n", encode) for line in lines],
        main=len(item.before),
        question=both[:border],
        answer=both[border:],
    )


def _plant_all(
    text: Ids, pieces: Sequence[_Piece], *, depths: Sequence[float], encode: Encode, rng: random.Random
) -> tuple[Ids, list[int]]:
    """Every line of every piece in its place; where each piece's main line begins."""
    lines: list[list[int]] = []
    places: list[float] = []
    main: list[int] = []
    for piece, depth in zip(pieces, depths, strict=True):
        before, after, elsewhere = (len(piece.item.before), len(piece.item.after), len(piece.item.elsewhere))
        main.append(len(lines) + piece.main)
        lines += piece.lines
        places += sorted(rng.random() * depth for _ in range(before))
        places.append(depth)
        places += sorted(depth + rng.random() * (1 - depth) for _ in range(after))
        places += [rng.random() for _ in range(elsewhere)]
    planted, offsets = _plant(text, lines, depths=places, encode=encode)
    return planted, [offsets[index] for index in main]


# -- texts that a probe makes itself ---------------------------------------------------------------------------------


def _filled(
    probe: FilledProbe, depths: Sequence[float], *, split: Any, encode: Encode, rng: random.Random
) -> Callable[[NDArray[Any], int, Callable[[Sequence[_Piece]], int]], tuple[Ids, list[_Piece], list[int]]]:
    """A function of haystack, length and what the questions take: as many lines as fit, behind a bit of haystack."""
    seed = rng.getrandbits(64)

    def made(lines: int) -> tuple[Filled, Ids, list[_Piece]]:
        filled = probe.fill(lines, depths=depths, rng=random.Random(seed), split=split)
        text = _array(inside("\n" + "\n".join(filled.lines) + "\n", encode))
        return filled, text, [_encode_item(item, encode) for item in filled.items]

    def fit(
        haystack: NDArray[Any], length: int, asked: Callable[[Sequence[_Piece]], int]
    ) -> tuple[Ids, list[_Piece], list[int]]:
        lines = SAMPLE_LINES
        best: tuple[Filled, Ids, list[_Piece]] | None = None
        for _ in range(12):
            found = made(lines)
            over = len(found[1]) + asked(found[2]) - length
            if over <= 0 and (best is None or len(found[1]) > len(best[1])):
                best = found
            per_line = len(found[1]) / lines
            if 0 <= -over < 2 * per_line:
                break
            wanted = lines - int(over / per_line) - (1 if over > 0 else 0)
            lines = max(probe.least_lines, wanted) if wanted != lines else lines - 1
        if best is None:
            raise _too_short(length)
        filled, text, pieces = best
        rest = _cut(haystack, length - asked(pieces) - len(text))
        newline = inside("\n", encode)[-1]
        starts = [0, *(np.flatnonzero(text == newline)[1:] if len(filled.lines) > 1 else [])]
        offsets = [len(rest) + (int(starts[line]) if line is not None else 0) for line in filled.at]
        return np.concatenate([rest, text]), pieces, offsets

    return fit


# -- shared ----------------------------------------------------------------------------------------------------------


def _plant(text: Ids, lines: list[list[int]], *, depths: Sequence[float], encode: Encode) -> tuple[Ids, list[int]]:
    """Put each line into `text` at its depth; returns the ids and where each line begins, in the order given."""
    newline = inside("\n", encode)[-1]
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
