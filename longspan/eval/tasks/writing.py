"""Length following: texts of a given number of words, scored as LongBench-Write, LonGen and TLG score them."""

import random
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents
from longspan.probes import Branch, Context, Item, names
from longspan.utils.longform import (
    distinct,
    length_score,
    longen_score,
    packed_ratio,
    tlg_match,
    words_longen,
    words_longwriter,
    words_tlg,
)

TOKENS_A_WORD = 2  # of room, and half as much again


class Writing(Task):
    """For each number of `words` a text of that length is asked for, `samples` times; replies end where the model ends.

    Each published score counts words as its paper does. A reply may take four times the tokens that the words need, so
    that one that never ends is told apart from one that is too long.
    """

    kind: Literal["writing"] = "writing"
    words: Annotated[tuple[Annotated[int, Field(ge=10)], ...], Field(min_length=1)] = (50, 150, 500, 1000)
    samples: int = Field(default=4, ge=1)

    @property
    def parts(self) -> tuple[str, ...]:
        """One measure a length."""
        return tuple(f"writing/{count}" for count in self.words)

    def contexts(self, documents: Documents) -> dict[int, int]:  # noqa: ARG002 - as many whatever the text
        """The replies are what costs."""
        return {4 * TOKENS_A_WORD * count: self.samples for count in dict.fromkeys(self.words)}

    def asked(self) -> dict[str, tuple[int, int]]:
        """One reply a context."""
        return dict.fromkeys(self.parts, (self.samples, self.samples))

    def check(self, material: Material) -> None:
        """Build a prompt."""
        self._prompt(material, words=self.words[0], sample=0)

    def run(self, desk: Desk) -> Findings:
        """Every prompt in turn; means by length are facts."""
        rows: list[Row] = []
        facts: dict[str, Any] = {}
        for words in self.words:
            mine: list[Row] = []
            for sample in range(self.samples):
                context = self._prompt(desk.material, words=words, sample=sample)
                length = len(context.tokens) + len(context.branches[0].question) + 4 * TOKENS_A_WORD * words
                cluster, spec = f"writing/{words}/{sample}", self.spec(words=words, sample=sample)
                name, cost = f"writing/{words}", 4 * TOKENS_A_WORD * words
                found = desk.ask(context, task=name, length=length, cluster=cluster, spec=spec, cost_tokens=cost)
                mine += [{**row, **scored(words, row["prediction"])} for row in found]
            for key in scored(words, ""):
                facts[f"writing_{words}_{key}"] = float(np.mean([row[key] for row in mine]))
            facts[f"writing_{words}_stopped"] = float(np.mean([row["stop"] == "eos" for row in mine]))
            rows += mine
        return Findings(rows=tuple(rows), facts=facts)

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The prompt of this sample."""
        return self._prompt(material, words=place["words"], sample=place["sample"])

    def _prompt(self, material: Material, *, words: int, sample: int) -> Context:
        rng = random.Random(f"{material.seed}/writing/{words}/{sample}")
        (subject,) = names(1, rng=rng, split="evaluate")
        about = subject.replace("-", " and ")
        ids = material.encode(f"A text of exactly {words} words about {about}, and nothing else.\n")
        branch = Branch(
            item=Item(question="\n", answer=""),
            depth=1.0,
            offset_tokens=len(ids),
            question=tuple(material.encode("\n")),
            answer=(),
            reply_tokens=4 * TOKENS_A_WORD * words,
        )
        return Context(tokens=np.array(ids, dtype=np.int64), branches=(branch,))


def scored(words: int, reply: str) -> dict[str, float]:
    """Every score of one reply."""
    return {
        "words": float(words_tlg(reply)),
        "length_score": length_score(words, words_longwriter(reply)),
        "longen": longen_score(round(0.8 * words), round(1.2 * words), words_longen(reply)),
        "precise_match": float(tlg_match(words, words_tlg(reply), flexible=False)),
        "flexible_match": float(tlg_match(words, words_tlg(reply), flexible=True)),
        "distinct_3": distinct(reply, 3),
        "packed_ratio": packed_ratio(reply),
    }
