"""Length following: texts of a given number of words, scored as LongBench-Write, LonGen and TLG score them."""

import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks._replies import Replies, shape
from longspan.eval.tasks.base import Findings
from longspan.eval.text import Documents
from longspan.probes import Context, names
from longspan.utils.longform import (
    length_score,
    longen_score,
    tlg_match,
    words_longen,
    words_longwriter,
    words_tlg,
)

TOKENS_A_WORD = 2  # of room, and half as much again


class Writing(Replies):
    """For each number of `words`, `samples` prompts ask for texts of that length; they end where the model ends.

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
        return {4 * TOKENS_A_WORD * count: self.samples * self.seeds for count in dict.fromkeys(self.words)}

    def asked(self) -> dict[str, tuple[int, int]]:
        """The replies of a context are not independent."""
        return dict.fromkeys(self.parts, (self.samples * self.seeds, self.samples))

    def check(self, material: Material) -> None:
        """Build a prompt."""
        self._prompt(material, words=self.words[0], sample=0)

    def run(self, desk: Desk) -> Findings:
        """Every prompt in turn."""
        rows: list[Row] = []
        for words in self.words:
            for sample in range(self.samples):
                context, name = self._prompt(desk.material, words=words, sample=sample), f"writing/{words}"
                spec = self.spec(words=words, sample=sample)
                rows += self.replies(desk, context, name=name, cluster=f"{name}/{sample}", spec=spec)
        return self.findings(rows)

    def findings(self, rows: Sequence[Row]) -> Findings:
        """Means by length are facts."""
        facts: dict[str, Any] = {}
        for words in self.words:
            mine = [row for row in rows if row["spec"]["place"]["words"] == words]
            if mine:
                each = [scored(words, row["prediction"]) for row in mine]
                facts |= {f"writing_{words}_{key}": fmean(scores[key] for scores in each) for key in each[0]}
                facts |= shape(f"writing_{words}", mine)
        return Findings(rows=tuple(rows), facts=facts)

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The prompt of this sample."""
        return self._prompt(material, words=place["words"], sample=place["sample"])

    def _prompt(self, material: Material, *, words: int, sample: int) -> Context:
        rng = random.Random(f"{material.seed}/writing/{words}/{sample}")
        (subject,) = names(1, rng=rng, split="evaluate")
        about = subject.replace("-", " and ")
        told = f"A text of exactly {words} words about {about}, and nothing else.\n"
        return self.prompt(material, told, "\n", reply_tokens=4 * TOKENS_A_WORD * words)


def scored(words: int, reply: str) -> dict[str, float]:
    """Every score of one reply."""
    return {
        "length_score": length_score(words, words_longwriter(reply)),
        "longen": longen_score(round(0.8 * words), round(1.2 * words), words_longen(reply)),
        "precise_match": float(tlg_match(words, words_tlg(reply), flexible=False)),
        "flexible_match": float(tlg_match(words, words_tlg(reply), flexible=True)),
    }
