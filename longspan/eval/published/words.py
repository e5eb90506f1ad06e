"""Variable tracking, common words and frequent words as published."""

import functools
import json
import math
import random
import string
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from longspan.eval.published.archives import member, word_list
from longspan.eval.published.maker import SEED, Maker
from longspan.eval.published.templates import CWE, CWE_PREFIX, FWE, FWE_PREFIX, NOISE, REPLY_TOKENS, VT, VT_PREFIX
from longspan.probes import Encode


class VariableMaker(Maker):
    """A chain of five variables in one sentence over and over; units are sentences."""

    reply_tokens = REPLY_TOKENS["vt"]
    hops = 4

    def __init__(self, files: Sequence[Path], length: int, encode: Encode) -> None:
        self._example = ""
        super().__init__(files, length, encode)

    def make(self, units: int, index: int) -> tuple[str, Sequence[str]]:  # noqa: ARG002
        """The example with new names, then the task."""
        text, names = self._plain(units, letters=5)
        return self._example_anew() + "\n" + text, names

    def _most(self) -> int:
        """First the example, a text of at most 500 tokens of its own; then the most that fits beside it."""
        wanted, self.reply_tokens, self.length = (self.reply_tokens, self.length), 0, 500
        self._letters, self.step = 3, 5
        self.units = super()._most()
        example = self._fitting(functools.partial(self._plain, letters=3))
        self._example = f"{example.text} {' '.join(example.wanted)}\n"
        self.reply_tokens, self.length = wanted
        self._letters, self.step = 5, 10 if self.length >= 4096 else 5
        each = self._count(self.step) / self.step
        return self._search(int(self.length / each * 3), beside_tokens=len(self._encode(self._example)))

    def _count(self, units: int) -> int:
        return len(self._encode(self._plain(units, letters=self._letters)[0]))

    def _plain(self, units: int, *, letters: int) -> tuple[str, list[str]]:
        names = [self._name(letters) for _ in range(self.hops + 1)]
        while len(set(names)) < self.hops + 1:
            names.append(self._name(letters))
        value = "12345" if letters == 3 else str(self.numbers.randint(10000, 99999))
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {after} = VAR {before} " for before, after in pairwise(names[: self.hops + 1])]
        if len(names) > self.hops + 1:
            self.numbers.randint(10000, 99999)
            raise IndexError("two names were alike: upstream begins a second chain, for which there are too few")
        lines = [NOISE] * units
        places = sorted(self.rng.sample(range(units), len(chain)))
        for at, (place, line) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + at, line)
        context = "\n".join(lines).replace(". \n", ".\n")
        return (VT + VT_PREFIX).format(context=context, query=value, count=self.hops + 1), names

    def _example_anew(self) -> str:
        """The example with other names and another value."""
        text = self._example
        for name in text.strip().split()[-self.hops - 1 :]:
            text = text.replace(name, self._name(len(name)))
        return text.replace("12345", str(self.numbers.randint(10000, 99999)))

    def _name(self, letters: int) -> str:
        return "".join(self.rng.choices(string.ascii_uppercase, k=letters))


class CommonMaker(Maker):
    """A numbered list of words, ten of them common; units are different words."""

    reply_tokens = REPLY_TOKENS["cwe"]

    def make(self, units: int, index: int) -> tuple[str, Sequence[str]]:  # noqa: ARG002
        """An example, answered, and the task."""
        short = self.length < 4096
        example, often = self._numbered(*((20, 3, 1) if short else (40, 10, 3)))
        context, wanted = self._numbered(units, *((6, 1) if short else (30, 3)))
        template = CWE + CWE_PREFIX
        answered = " ".join(f"{place}. {word}" for place, word in enumerate(often, start=1))
        return f"{template.format(context=example)} {answered}\n{template.format(context=context)}", wanted

    def _most(self) -> int:
        each = self._count(4096) / 4096
        return self._search(int(self.length // each) * 2)

    def _numbered(self, count: int, often: int, seldom: int) -> tuple[str, list[str]]:
        known = _known_words(self.files)
        words = self.rng.sample(known if count <= len(known) else _many_words(self.files), count)
        bag = words[:10] * often + words[10:] * seldom
        random.Random(SEED).shuffle(bag)
        return " ".join(f"{place}. {word}" for place, word in enumerate(bag, start=1)), words[:10]


@functools.cache
def _known_words(files: tuple[Path, ...]) -> list[str]:
    lists = (word_list(files, f"{name}list.txt") for name in ("noun", "adjective", "verb"))
    words = sorted({word for words in lists for word in words})
    random.Random(SEED).shuffle(words)
    return words


@functools.cache
def _many_words(files: tuple[Path, ...]) -> list[str]:
    found = json.loads(member(files, "english_words.json", from_="the folder scripts/data/synthetic/json of RULER"))
    return list(found.values())


class FrequentMaker(Maker):
    """Coded words whose counts fall with the square of their rank; units are words."""

    reply_tokens = REPLY_TOKENS["fwe"]

    def make(self, units: int, index: int) -> tuple[str, Sequence[str]]:  # noqa: ARG002
        """One vocabulary; so many words of it, less where they do not fit."""
        vocabulary = self._vocabulary()
        text = self._text(vocabulary, units)
        while self.tokens(text) > self.length:
            units -= self.step
            text = self._text(vocabulary, units)
        return text, vocabulary[1:4]

    def _most(self) -> int:
        """More and more words of one vocabulary until they do not fit, and one step back."""
        room = self.length - self.reply_tokens
        self.step, units = room // 32, room // 6
        vocabulary = self._vocabulary()
        while self.tokens(self._text(vocabulary, units)) < self.length:
            units += self.step
        return units - self.step

    def _vocabulary(self) -> list[str]:
        count = (self.length - self.reply_tokens) // 50
        found = {self._word() for _ in range(count)}
        while len(found) < count:
            found.add(self._word())
        words = sorted(found)
        random.Random(SEED).shuffle(words)
        words[0] = "..."
        return words

    def _word(self) -> str:
        return "".join(self.rng.choices(string.ascii_lowercase, k=6))

    def _text(self, vocabulary: Sequence[str], units: int) -> str:
        counts = units * np.arange(1, len(vocabulary) + 1) ** -2.0 / (math.pi**2 / 6)
        bag = [word for word, count in zip(vocabulary, counts.astype(int), strict=True) for _ in range(count)]
        random.Random(SEED).shuffle(bag)
        return (FWE + FWE_PREFIX).format(context=" ".join(bag))
