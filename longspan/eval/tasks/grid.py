"""Retrieval grid: can the model read back lines planted at every depth of contexts of every length?"""

import random
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from longspan.config import any_kind
from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents, window
from longspan.probes import Context, Probe, evaluation_context
from longspan.records import Cell

if TYPE_CHECKING:
    ProbeChoice = Probe
else:
    ProbeChoice = any_kind("longspan.probes")  # the choices are known at run time only

Length = Annotated[int, Field(ge=64)]


class Grid(Task):
    """Accuracy by length and depth of a probe in held-out text, `trials` a cell.

    Depth is cut in `depths` equal strata; a line stands at random inside its stratum, whose middle names the cell.
    A context carries one line; with `pack` it carries one a stratum, so that the others distract and one reading
    serves all: that is another, harder task, and it goes by the name `pack/needle`. Each context has its own window
    of text and its own keys. The same seed gives the same contexts to every model.
    """

    kind: Literal["grid"] = "grid"
    probe: ProbeChoice
    lengths: Annotated[tuple[Length, ...], Field(min_length=1)]
    depths: int = Field(default=5, ge=1, le=100)
    trials: int = Field(default=4, ge=1)
    pack: bool = False

    @model_validator(mode="after")
    def _packable(self) -> Self:
        if self.pack and self.probe.most_items is not None and self.probe.most_items < self.depths:
            raise ValueError(f"a text carries {self.probe.most_items} line of {self.probe.kind}: leave out pack")
        return self

    @field_validator("lengths")
    @classmethod
    def _ascending(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if list(lengths) != sorted(set(lengths)):
            raise ValueError("lengths must grow from one to the next")
        return lengths

    @property
    def name(self) -> str:
        """How its cells are called: the probe, and whether its lines stand together."""
        return f"pack/{self.probe.kind}" if self.pack else self.probe.kind

    @property
    def parts(self) -> tuple[str, ...]:
        """One part a length of this probe."""
        return tuple(f"grid/{self.name}/{length}" for length in self.lengths)

    def cost_tokens(self, documents: Documents) -> int:  # noqa: ARG002 - as many tokens whatever the text
        """Every context at its full length."""
        return sum(self.lengths) * self.trials * len(self._packs)

    def check(self, material: Material) -> None:
        """Build the first context of every length."""
        for length in self.lengths:
            self._context(material, length=length, trial=0, pack=0)

    def run(self, desk: Desk) -> Findings:
        """Ask every context; cells come in the order of lengths, then depths."""
        cells: list[Cell] = []
        rows: list[Row] = []
        for length in self.lengths:
            hits = [0] * self.depths
            for trial in range(self.trials):
                for pack, strata in enumerate(self._packs):
                    context = self._context(desk.material, length=length, trial=trial, pack=pack)
                    cluster = f"{self.name}/{length}/{trial}/{pack}"
                    found = desk.ask(context, task=f"grid/{self.name}", length=length, cluster=cluster)
                    for stratum, row in zip(strata, found, strict=True):
                        hits[stratum] += row["hit"]
                    rows += found
            cells += [
                Cell(
                    probe=self.name,
                    length=length,
                    depth=(stratum + 0.5) / self.depths,
                    hits=hits[stratum],
                    trials=self.trials,
                )
                for stratum in range(self.depths)
            ]
        return Findings(cells=tuple(cells), rows=tuple(rows))

    @property
    def _packs(self) -> list[range]:
        """The strata that share a context."""
        size = self.depths if self.pack else 1
        return [range(start, min(start + size, self.depths)) for start in range(0, self.depths, size)]

    def _context(self, material: Material, *, length: int, trial: int, pack: int) -> Context:
        name = f"{material.seed}/grid/{self.name}/{length}"
        text = window(
            material.documents,
            length,
            index=trial * len(self._packs) + pack,
            windows=self.trials * len(self._packs),
            rng=random.Random(name),
        )
        rng = random.Random(f"{name}/{trial}/{pack}")
        depths = [(stratum + rng.random()) / self.depths for stratum in self._packs[pack]]
        return evaluation_context(self.probe, text, length=length, depths=depths, encode=material.encode, rng=rng)
