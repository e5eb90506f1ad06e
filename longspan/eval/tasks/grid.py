"""Retrieval grid: can the model read back lines planted at every depth of contexts of every length?"""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from longspan.config import any_kind
from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents, window
from longspan.probes import Context, Probe, evaluation_context
from longspan.records import Cell
from longspan.utils.stats import Group, effective_trials, intraclass

if TYPE_CHECKING:
    ProbeChoice = Probe
else:
    ProbeChoice = any_kind("longspan.probes")  # the choices are known at run time only

Length = Annotated[int, Field(ge=64)]


class Grid(Task):
    """Accuracy by length and depth of a probe in held-out text, from `trials` contexts a cell.

    Depth is cut in `depths` equal strata; a line stands at random inside its stratum, whose middle names the cell.
    A context carries one line; with `pack` it carries `keys` a stratum, so that the others distract and one reading
    serves all: that is another, harder task, and it goes by the name `pack/needle`. Each context has its own window
    of text and its own keys. The same seed gives the same contexts to every model. A probe that asks about its whole
    text has no depth: give it `depths = 1`.
    """

    kind: Literal["grid"] = "grid"
    probe: ProbeChoice
    lengths: Annotated[tuple[Length, ...], Field(min_length=1)]
    depths: int = Field(default=5, ge=1, le=100)
    trials: int = Field(default=4, ge=1)
    keys: int = Field(default=1, ge=1, le=1000)
    pack: bool = False

    @model_validator(mode="after")
    def _packable(self) -> Self:
        most = self.probe.most_items
        if self.pack and most is not None and most < self.depths * self.keys:
            raise ValueError(f"a text carries {most} line of {self.probe.kind}: leave out pack")
        if self.keys > 1 and not self.pack:
            raise ValueError("several keys a stratum share a context: set pack = true")
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

    def contexts(self, documents: Documents) -> dict[int, int]:  # noqa: ARG002 - as many whatever the text
        """Every context at its full length."""
        return dict.fromkeys(self.lengths, self.trials * len(self._packs))

    def asked(self) -> dict[str, tuple[int, int]]:
        """One rate a length."""
        count = self.trials * len(self._packs)
        return dict.fromkeys(self.parts, (self.depths * self.trials * self.keys, count))

    def check(self, material: Material) -> None:
        """Build the first context of every length."""
        for length in self.lengths:
            self._context(material, length=length, trial=0, pack=0)

    def run(self, desk: Desk) -> Findings:
        """Ask every context; cells come in the order of lengths, then depths."""
        rows: list[Row] = []
        for length in self.lengths:
            for trial in range(self.trials):
                for pack in range(len(self._packs)):
                    rows += desk.ask(
                        self._context(desk.material, length=length, trial=trial, pack=pack),
                        task=f"grid/{self.name}",
                        length=length,
                        cluster=f"{self.name}/{length}/{trial}/{pack}",
                        spec=self.spec(length=length, trial=trial, pack=pack),
                    )
        return self.findings(rows)

    def findings(self, rows: Sequence[Row]) -> Findings:
        """The cells: a row belongs to the stratum that its depth lies in."""
        cells: list[Cell] = []
        for length in sorted({row["length"] for row in rows}):
            groups: list[dict[str, Group]] = [{} for _ in range(self.depths)]  # of each stratum, by context
            for row in rows:
                if row["length"] == length:
                    mine = groups[min(int(row["depth"] * self.depths), self.depths - 1)]
                    hits, count = mine.get(row["cluster"], (0.0, 0.0))
                    mine[row["cluster"]] = hits + row["hit"], count + 1
            cells += self._cells(length, [list(stratum.values()) for stratum in groups])
        return Findings(cells=tuple(cells), rows=tuple(rows))

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The context of this length, trial and pack."""
        return self._context(material, length=place["length"], trial=place["trial"], pack=place["pack"])

    def _cells(self, length: int, hits: list[list[Group]]) -> list[Cell]:
        """Cells of one length. How alike the questions of a context are is learnt from all of them together."""
        alike = sum(map(intraclass, hits)) / len(hits) if self.keys > 1 else 0.0
        return [
            Cell(
                probe=self.name,
                length=length,
                depth=(stratum + 0.5) / self.depths,
                hits=int(sum(count for count, _ in groups)),
                trials=int(sum(trials for _, trials in groups)),
                worth=effective_trials(groups, alike) if self.keys > 1 else None,
            )
            for stratum, groups in enumerate(hits)
            if groups
        ]

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
        depths = [(stratum + rng.random()) / self.depths for stratum in self._packs[pack] for _ in range(self.keys)]
        return evaluation_context(self.probe, text, length=length, depths=depths, encode=material.encode, rng=rng)
