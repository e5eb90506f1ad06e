"""What tasks of long output share: replies greedy or drawn from seeds, their lengths and loops, a judge if wanted."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from longspan.eval.desk import Desk, Material
from longspan.eval.judge import Judge, quality
from longspan.eval.rows import Row, key_of
from longspan.eval.tasks.base import Task
from longspan.probes import Branch, Context, Item
from longspan.utils.longform import distinct, longest_repeat, loops, packed_ratio, words_tlg, worst_distinct


class Replies(Task):
    """A task whose answers are long texts: one greedy reply to a prompt, or `seeds` of them drawn at a `temperature`.

    Drawn replies of a prompt go through the model side by side. With a `judge` each reply is marked too.
    """

    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    seeds: int = Field(default=1, ge=1, le=1000)
    judge: Judge | None = None

    @model_validator(mode="after")
    def _seeds_make_a_difference(self) -> Self:
        if self.seeds > 1 and not self.temperature:
            raise ValueError("greedy replies do not depend on a seed: set temperature, or leave seeds out")
        return self

    def prompt(
        self, material: Material, told: str, question: str, *, reply_tokens: int, parts: tuple[str, ...] = ()
    ) -> Context:
        """A prompt, and a branch for each reply to it."""
        ids = material.encode(told)
        branches = tuple(
            Branch(
                item=Item(question=question, answer="", parts=parts),
                depth=1.0,
                offset_tokens=len(ids),
                question=tuple(material.encode(question)),
                answer=(),
                reply_tokens=reply_tokens,
                temperature=self.temperature,
                seed=material.seed * 1000 + index,
            )
            for index in range(self.seeds)
        )
        return Context(tokens=np.array(ids, dtype=np.int64), branches=branches)

    def replies(self, desk: Desk, context: Context, *, name: str, cluster: str, spec: Mapping[str, Any]) -> list[Row]:
        """The rows of a prompt, with the judge's marks where one is asked."""
        branch = context.branches[0]
        length = len(context.tokens) + len(branch.question) + branch.reply_tokens
        cost = branch.reply_tokens * self.seeds
        found = desk.ask(context, task=name, length=length, cluster=cluster, spec=spec, cost_tokens=cost)
        if self.judge is None:
            return found
        told = desk.material.decode(context.tokens.tolist())
        return [{**row, "marks": self._marks(desk, row, told, self.judge)} for row in found]

    @staticmethod
    def _marks(desk: Desk, row: Row, told: str, judge: Judge) -> dict[str, int] | None:
        """The marks of one reply, asked for once: they have a row of their own."""
        key = key_of("judge", judge.name, row["key"])
        marked = desk.rows.get(key)
        if marked is None:
            desk.poll()
            same = ("model", "length", "cluster", "context", "spec", "question", "gold_tokens")
            marks = judge.marks(told, row["prediction"])
            marked = {"key": key, "task": f"judge/{row['task']}", "judge": judge.name, "marks": marks}
            marked |= {name: row[name] for name in same} | {"seconds": 0.0}
            desk.rows.append(marked)
        marks = marked["marks"]
        assert marks is None or isinstance(marks, dict)
        return marks


def repetition(reply: str) -> dict[str, float]:
    """How much a reply repeats itself."""
    return {
        "distinct_3": distinct(reply, 3),
        "worst_distinct_3": worst_distinct(reply, 3),
        "packed_ratio": packed_ratio(reply),
        "longest_repeat_words": float(longest_repeat(reply)),
    }


def shape(name: str, rows: Sequence[Row]) -> dict[str, float]:
    """Facts of some replies: repetition, how they ended, the profile of their lengths, marks of a judge.

    `stopped` ended by themselves, `capped` did not, and `looped` are those of the latter whose second half repeats
    itself. `words_between_seeds` is the deviation of the lengths of one prompt's replies, mean over prompts. After the
    length profiles of CASTILLO (arXiv:2505.16881), loops and capped replies counted apart.
    """
    repeated = [repetition(row["prediction"]) for row in rows]
    facts = {key: fmean(each[key] for each in repeated) for key in repeated[0]}
    capped = [row for row in rows if row["stop"] == "cap"]
    facts["stopped"] = 1 - len(capped) / len(rows)
    facts["capped"] = len(capped) / len(rows)
    facts["looped"] = sum(loops(row["prediction"]) for row in capped) / len(rows)
    counts = [float(words_tlg(row["prediction"])) for row in rows]
    facts |= {"words": fmean(counts), "words_deviation": pstdev(counts)}
    for percent in (0, 25, 50, 75, 99, 100):
        facts[f"words_p{percent}"] = float(np.percentile(counts, percent))
    prompts: dict[str, list[float]] = {}
    for row, count in zip(rows, counts, strict=True):
        prompts.setdefault(row["context"], []).append(count)
    if any(len(mine) > 1 for mine in prompts.values()):
        facts["words_between_seeds"] = fmean(pstdev(mine) for mine in prompts.values())
    if any("marks" in row for row in rows):
        marked = [quality(row["marks"]) for row in rows if row["marks"]]
        facts["judged"] = len(marked) / len(rows)
        facts |= {"quality": fmean(marked)} if marked else {}
    return {f"{name}_{key}": value for key, value in facts.items()}
