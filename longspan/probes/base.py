"""What every probe is: lines to plant in a text, a text of its own or a text rearranged; questions and answers."""

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from longspan.config import Settings
from longspan.probes._words import Split

Encode = Callable[[str], list[int]]  # text to token ids, without special tokens
Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. `question` starts with a newline and ends without a space; `answer` starts with a space, so that
    they join at places where tokenizers cut.

    `line`, without newline, is planted at the depth that is asked for; `before` and `after` stand before and behind it,
    each in its order, and `elsewhere` anywhere. A probe that makes its own text plants nothing. `parts` is what a free
    reply must hold, all of them or, with `one_part`, any; empty means the whole answer.
    """

    line: str = ""
    question: str
    answer: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    one_part: bool = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """What a free reply must hold to be right."""
        return self.parts or (self.answer.strip(),)


class Probe(Settings):
    """A generated task: a frozen value whose fields are its settings. One file in `probes/` each."""

    most_items: ClassVar[int | None] = None  # how many questions one text can carry; None: as many as fit

    kind: str  # the name of the file


class PlantedProbe(Probe):
    """A probe that plants lines in any text."""

    @abstractmethod
    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` items with different keys and different answers; the two splits share no word and no answer.

        Raises `DataError` when the probe has fewer different items.
        """


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A text of lines, the questions about it, and for each the line that holds its answer, or None where many do."""

    lines: tuple[str, ...]
    items: tuple[Item, ...]
    at: tuple[int | None, ...]


class FilledProbe(Probe):
    """A probe that makes a whole text of its own."""

    least_lines: ClassVar[int] = 8

    @abstractmethod
    def fill(self, lines: int, *, depths: Sequence[float], rng: random.Random, split: Split) -> Filled:
        """About so many lines, and a question for each depth, 0 being the start.

        Raises `DataError` when the probe has fewer different items.
        """


@dataclass(frozen=True, kw_only=True)
class Woven:
    """A text rearranged, a question and its answer, which follow it; `at` is where in `text` the answer lies."""

    text: Ids
    question: tuple[int, ...]
    answer: tuple[int, ...]
    at: int


class WovenProbe(Probe):
    """A probe that rearranges a text, or asks for a part of it."""

    most_items: ClassVar[int | None] = 1

    @abstractmethod
    def weave(self, text: Ids, *, length: int, depth: float, rng: random.Random, encode: Encode) -> Woven:
        """Text, question and answer of exactly `length` tokens together, made from at least as many of `text`.

        Raises `DataError` when `length` is too short.
        """
