"""Recall by distance: the log-probability of random strings that stood so far before. It moves before hits do."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents, window
from longspan.probes import Branch, Context, Item, evaluation_context
from longspan.probes.key_value import KeyValue
from longspan.records import Recall as RecallRecord
from longspan.utils.stats import bootstrap, mean

NEAREST_TOKENS = 128
PROBE = KeyValue(key_digits=8, value_digits=8)


class Recall(Task):
    """Strings at distances of 128, 256, 512 … tokens from the end of contexts of `length`, `trials` contexts.

    Every string is asked for by its key and scored by teacher forcing. Beside it stands another one that the text does
    not hold: that is the floor, which a model reaches without reading.
    """

    kind: Literal["recall"] = "recall"
    length: int = Field(ge=4 * NEAREST_TOKENS)
    trials: int = Field(default=4, ge=2)

    @property
    def distances(self) -> tuple[int, ...]:
        """Nominal distances in tokens, the nearest first, up to three quarters of the length."""
        found, distance = [], NEAREST_TOKENS
        while distance <= 0.75 * self.length:
            found.append(distance)
            distance *= 2
        return tuple(found)

    @property
    def parts(self) -> tuple[str, ...]:
        """One measure at one length."""
        return (f"recall/{self.length}",)

    def contexts(self, documents: Documents) -> dict[int, int]:  # noqa: ARG002 - as many whatever the text
        """Every context at its full length."""
        return {self.length: self.trials}

    def check(self, material: Material) -> None:
        """Build the first context."""
        self._context(material, trial=0)

    def run(self, desk: Desk) -> Findings:
        """Ask every context."""
        rows: list[Row] = []
        for trial in range(self.trials):
            context = self._context(desk.material, trial=trial)
            place = {"length": self.length, "trial": trial}
            cluster = f"recall/{self.length}/{trial}"
            rows += desk.ask(context, task="recall", length=self.length, cluster=cluster, spec=self.spec(**place))
        return self.findings(rows)

    def findings(self, rows: Sequence[Row]) -> Findings:
        """Each distance has a mean over contexts and its bootstrap interval; contexts that lack rows are left out."""
        contexts: dict[str, list[Row]] = {}
        for row in rows:
            contexts.setdefault(row["cluster"], []).append(row)
        whole = [mine for mine in contexts.values() if len(mine) == 2 * len(self.distances)]
        if len(whole) < 2:
            return Findings(rows=tuple(rows))
        foils = [row["logprob"] / len(row["gold_tokens"]) for mine in whole for row in mine[1::2]]
        recalls = []
        for index, distance in enumerate(self.distances):
            told = [mine[2 * index] for mine in whole]
            groups = [(row["logprob"] / len(row["gold_tokens"]), 1.0) for row in told]
            low, high = bootstrap(groups)
            entry = {"logprob": mean(groups), "low": low, "high": high, "floor": sum(foils) / len(foils)}
            recalls.append(RecallRecord(distance=distance, trials=len(groups), **entry))
        return Findings(recalls=tuple(recalls), rows=tuple(rows))

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The context of this trial."""
        return self._context(material, trial=place["trial"])

    def _context(self, material: Material, *, trial: int) -> Context:
        name = f"{material.seed}/recall/{self.length}"
        text = window(material.documents, self.length, index=trial, windows=self.trials, rng=random.Random(name))
        rng = random.Random(f"{name}/{trial}")
        depths = [1 - distance / self.length for distance in self.distances]
        context = evaluation_context(PROBE, text, length=self.length, depths=depths, encode=material.encode, rng=rng)
        foils = evaluation_context(PROBE, text, length=self.length, depths=depths, encode=material.encode, rng=rng)
        branches: list[Branch] = []
        for told, foil in zip(context.branches, foils.branches, strict=True):
            # The answer of a line that was never planted, after the question of one that was; as long as there is room.
            swapped = Branch(
                item=Item(question=told.item.question, answer=foil.item.answer),
                depth=told.depth,
                offset_tokens=told.offset_tokens,
                question=told.question,
                answer=foil.answer[: self.length - len(context.tokens) - len(told.question)],
            )
            branches += [told, swapped]
        return Context(tokens=context.tokens, branches=tuple(branches))
