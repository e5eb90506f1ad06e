"""What all makers of published prompts share: sizes by halving, one stream of random numbers, samples in order."""

import functools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.probes import Encode
from longspan.utils.errors import DataError

SEED = 42
TRIES = 100  # of one sample that does not fit at the smallest size; upstream has no end


@dataclass(frozen=True)
class Published:
    """One prompt, its answer's prefix included, what it asks for, and how often its text is repeated."""

    text: str
    wanted: tuple[str, ...]
    repeats: float


class Maker(ABC):
    """One task at one length: how a text of so many units is made, from two streams of random numbers.

    `files` are searched for what it needs. It is tuned to the length when it is made; both streams go on from there, so
    sample i exists only behind the samples before it.
    """

    reply_tokens: int
    step = 10  # units; a sample that does not fit is made again with so many fewer

    def __init__(self, files: Sequence[Path], length: int, encode: Encode) -> None:
        self.files, self.length, self._encode = tuple(files), length, encode
        self.rng, self.numbers = random.Random(SEED), np.random.RandomState(SEED)
        self.units = self._most()
        self._start = self._state()
        self._made = 0
        self._last: Published | None = None

    @abstractmethod
    def make(self, units: int, index: int) -> tuple[str, Sequence[str]]:
        """The text of a sample of so many units, and its answers. Raises `ValueError` or `IndexError` as upstream."""

    def repeats(self, units: int) -> float:  # noqa: ARG002
        """How often the text that units come from is gone through; 1 when nothing is repeated."""
        return 1.0

    def sample(self, index: int) -> Published:
        """Sample `index` of the published order. Raises `DataError` when it never fits."""
        if index < self._made - 1:
            self.rng.setstate(self._start[0])
            self.numbers.set_state(self._start[1])
            self._made, self._last = 0, None
        while self._made <= index:
            self._last = self._fitting(functools.partial(self.make, index=self._made))
            self._made += 1
        assert self._last is not None
        return self._last

    def tokens(self, text: str) -> int:
        """Tokens of a text with its reply."""
        return len(self._encode(text)) + self.reply_tokens

    def _fitting(self, make: Callable[[int], tuple[str, Sequence[str]]]) -> Published:
        """What `make` gives for the most units, or for fewer when that is too long this time."""
        units = self.units
        for _ in range(TRIES + units // self.step):
            try:
                text, wanted = make(units)
                if self.tokens(text) <= self.length:
                    return Published(text, tuple(wanted), self.repeats(units))
            except (ValueError, IndexError):
                pass  # upstream makes it again too
            units -= self.step if units > self.step else 0
        raise DataError(
            "eval.ruler-short",
            f"{self.length} tokens are too few for this task of RULER with its reply",
            fix="ask for a greater length",
        )

    def _most(self) -> int:
        """The most units that fit, by halving, from an estimate by one text."""
        each = self._count(self.step) / self.step
        return self._search(int(self.length / each * 3))

    def _count(self, units: int) -> int:
        return len(self._encode(self.make(units, 0)[0]))

    def _search(self, high: int, *, beside_tokens: int = 0) -> int:
        low, high, best = self.step, max(high, 2 * self.step), self.step
        while low <= high:
            middle = (low + high) // 2
            if self._count(middle) + beside_tokens + self.reply_tokens <= self.length:
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best

    def _state(self) -> tuple[Any, Any]:
        return self.rng.getstate(), self.numbers.get_state()
