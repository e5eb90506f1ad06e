"""Long output after a plan: many numbered sections, some with code words of their own. After LongGenBench's idea."""

import random
import string
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents
from longspan.probes import Branch, Context, Item, names, strings
from longspan.utils.longform import distinct, longest_repeat, packed_ratio, section_scores


class Sections(Task):
    """`sections` floors of a building are to be written one by one; some must name a code word. No judge is needed.

    Facts are the means of completion, STIC-1, STIC-2 and their product, how often the reply ended by itself, and how
    much it repeats itself.
    """

    kind: Literal["sections"] = "sections"
    sections: int = Field(default=20, ge=2, le=1000)
    checks: int = Field(default=8, ge=1)
    reply_tokens: int = Field(default=2048, ge=32)
    samples: int = Field(default=4, ge=1)

    @property
    def parts(self) -> tuple[str, ...]:
        """One measure for each number of sections."""
        return (f"sections/{self.sections}",)

    def contexts(self, documents: Documents) -> dict[int, int]:  # noqa: ARG002 - as many whatever the text
        """The reply is what costs."""
        return {self.reply_tokens: self.samples}

    def asked(self) -> dict[str, tuple[int, int]]:
        """One reply a context."""
        return {self.parts[0]: (self.samples, self.samples)}

    def check(self, material: Material) -> None:
        """Build the first prompt."""
        self._prompt(material, sample=0)

    def run(self, desk: Desk) -> Findings:
        """Every prompt in turn; means over samples are facts."""
        rows: list[Row] = []
        for sample in range(self.samples):
            context, codes = self._prompt(desk.material, sample=sample)
            cluster = f"sections/{self.sections}/{sample}"
            length = len(context.tokens) + 1 + self.reply_tokens
            name, spec = f"sections/{self.sections}", self.spec(sample=sample)
            cost = self.reply_tokens
            found = desk.ask(context, task=name, length=length, cluster=cluster, spec=spec, cost_tokens=cost)
            rows += [{**row, **self._scored(row["prediction"], codes)} for row in found]
        means = {key: float(np.mean([row[key] for row in rows])) for key in self._scored("", {1: ["x"]})}
        facts = {f"sections_{self.sections}_{key}": value for key, value in means.items()}
        facts[f"sections_{self.sections}_stopped"] = float(np.mean([row["stop"] == "eos" for row in rows]))
        return Findings(rows=tuple(rows), facts=facts)

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The prompt of this sample."""
        return self._prompt(material, sample=place["sample"])[0]

    def _scored(self, reply: str, codes: Mapping[int, list[str]]) -> dict[str, float]:
        text = f"Floor 1:{reply}"  # the prompt ends with the head of the first section
        scores = section_scores(text, kind="Floor", count=self.sections, codes=codes)
        repeated = {"distinct_3": distinct(reply, 3), "packed_ratio": packed_ratio(reply)}
        return {**scores, **repeated, "longest_repeat_words": float(longest_repeat(reply))}

    def _prompt(self, material: Material, *, sample: int) -> tuple[Context, dict[int, list[str]]]:
        rng = random.Random(f"{material.seed}/sections/{self.sections}/{sample}")
        tower = names(1, rng=rng, split="evaluate")[0]
        words = strings(self.checks, alphabet=string.ascii_uppercase, length=7, rng=rng, split="evaluate")
        codes: dict[int, list[str]] = {}
        for word in words:
            codes.setdefault(rng.randrange(1, self.sections + 1), []).append(word)
        told = "\n".join(f"- Floor {n} has the code word {word}." for n in sorted(codes) for word in codes[n])
        text = (
            f"The tower {tower} has {self.sections} floors. Describe every floor, from the first to the last, in a few "
            f"sentences each. Begin each with its number, such as `Floor 3:`, and name its code words.\n{told}\n\n"
            "Floor 1"
        )
        ids = material.encode(text)
        tail = material.encode(":")
        branch = Branch(
            item=Item(question=":", answer="", parts=tuple(words)),
            depth=1.0,
            offset_tokens=len(ids),
            question=tuple(tail),
            answer=(),
            reply_tokens=self.reply_tokens,
        )
        return Context(tokens=np.array(ids, dtype=np.int64), branches=(branch,)), codes
