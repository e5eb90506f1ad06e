"""Scores of continuations of given contexts: a context that several of them share is read once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from longspan.eval.desk import Reader, Score
from longspan.probes import Branch, Item

T = TypeVar("T")
Ask = Callable[[tuple[int, ...], list[int]], Sequence[T]]


def each_context_once(contexts: Sequence[Sequence[int]], ask: Ask[T]) -> list[T]:
    """What `ask` says of each place, in order: it gets every different context once, with the places that share it."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, context in enumerate(contexts):
        places.setdefault(tuple(context), []).append(place)
    found = {
        place: said for context, mine in places.items() for place, said in zip(mine, ask(context, mine), strict=True)
    }
    return [found[place] for place in range(len(contexts))]


def scores_behind(reader: Reader, head: Sequence[int], last: int, answers: Sequence[Sequence[int]]) -> list[Score]:
    """Teacher-forced scores of answers behind one reading of `head`, after which the token `last` asks."""
    reading = reader.read(np.array(head, dtype=np.int64), room_tokens=1 + max(map(len, answers)))
    item = Item(question="", answer="")
    return reading.score(
        [Branch(item=item, depth=1.0, offset_tokens=0, question=(last,), answer=tuple(answer)) for answer in answers]
    )
