"""What every probe is: lines to plant in a text, the questions about them, and the answers."""

import random
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from longspan.config import Settings
from longspan.probes._words import Split

Encode = Callable[[str], list[int]]  # text to token ids, without special tokens


@dataclass(frozen=True, kw_only=True)
class Item:
    """One planted fact. `line` has no newline; `question` starts with one and ends without a space; `answer` starts
    with a space, so that the three join at places where tokenizers cut.
    """

    line: str
    question: str
    answer: str


class Probe(Settings):
    """A generated task: a frozen value whose fields are its settings. One file in `probes/` each."""

    most_items: ClassVar[int | None] = None  # how many lines one text can carry; None: as many as fit

    kind: str  # the name of the file

    @abstractmethod
    def items(self, count: int, *, rng: random.Random, split: Split) -> list[Item]:
        """`count` items with different keys and different answers; the two splits share no word and no answer.

        Raises `DataError` when the probe has fewer different items.
        """
