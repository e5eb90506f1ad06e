"""Long output after a plan: many numbered sections, some with code words of their own. After LongGenBench's idea."""

import random
import string
from collections.abc import Mapping
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks._replies import Replies, shape
from longspan.eval.tasks.base import Findings
from longspan.eval.text import Documents
from longspan.probes import Context, names, strings
from longspan.utils.longform import section_scores


class Sections(Replies):
    """`sections` floors of a building are to be written one by one; some must name a code word. No judge is needed.

    Facts are the means of completion, STIC-1, STIC-2 and their product, and what all long replies have.
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
        return {self.reply_tokens: self.samples * self.seeds}

    def asked(self) -> dict[str, tuple[int, int]]:
        """The replies of a context are not independent."""
        return {self.parts[0]: (self.samples * self.seeds, self.samples)}

    def check(self, material: Material) -> None:
        """Build the first prompt."""
        self._prompt(material, sample=0)

    def run(self, desk: Desk) -> Findings:
        """Every prompt in turn; means over samples are facts."""
        rows: list[Row] = []
        for sample in range(self.samples):
            context, codes = self._prompt(desk.material, sample=sample)
            name, spec = f"sections/{self.sections}", self.spec(sample=sample)
            found = self.replies(desk, context, name=name, cluster=f"{name}/{sample}", spec=spec)
            rows += [{**row, **self._scored(row["prediction"], codes)} for row in found]
        name = f"sections_{self.sections}"
        facts = {f"{name}_{key}": fmean(row[key] for row in rows) for key in self._scored("", {1: ["x"]})}
        facts |= shape(name, rows)
        return Findings(rows=tuple(rows), facts=facts)

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The prompt of this sample."""
        return self._prompt(material, sample=place["sample"])[0]

    def _scored(self, reply: str, codes: Mapping[int, list[str]]) -> dict[str, float]:
        text = f"Floor 1:{reply}"  # the prompt ends with the head of the first section
        return section_scores(text, kind="Floor", count=self.sections, codes=codes)

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
        return self.prompt(material, text, ":", reply_tokens=self.reply_tokens, parts=tuple(words)), codes
