"""What every evaluation task is, and what it finds."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longspan.config import Settings
from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.text import Documents
from longspan.probes import Context
from longspan.records import Cell, PositionBin, Recall


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one task found, and the rows it rests on; `facts` are figures of its own, a line each."""

    cells: tuple[Cell, ...] = ()
    bins: tuple[PositionBin, ...] = ()
    recalls: tuple[Recall, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = field(repr=False)


class Task(Settings):
    """An evaluation: a frozen value whose fields are its settings. One file in `eval/tasks/` each, without torch."""

    kind: str  # the name of the file

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of what it measures; no two tasks of an evaluation may share one."""

    @abstractmethod
    def contexts(self, documents: Documents) -> Mapping[int, int]:
        """How many contexts of each length, in tokens, the model must read for it."""

    def cost_tokens(self, documents: Documents) -> int:
        """Context tokens that the model must read for it."""
        return sum(length * count for length, count in self.contexts(documents).items())

    @abstractmethod
    def check(self, material: Material) -> None:
        """Raise `DataError` now if `run` would have to later: too little text, or lines that do not fit."""

    @abstractmethod
    def run(self, desk: Desk) -> Findings:
        """Do the evaluation. Raises `Interrupted` between contexts when asked to stop."""

    def findings(self, rows: Sequence[Row]) -> Findings:
        """What rows of this task say, as far as they tell by themselves; scores by length are formed for all tasks."""
        return Findings(rows=tuple(rows))

    @abstractmethod
    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The context that a row's `spec` names by its `place`, with all its branches, byte for byte."""

    def asked(self) -> dict[str, tuple[int, int]]:
        """By part, how many questions are asked of how many contexts, where a rate is measured."""
        return {}

    def spec(self, **place: Any) -> dict[str, Any]:
        """What a row keeps so that its context can be built again."""
        return {"task": self.model_dump(mode="json"), "place": place}
