"""What every evaluation task is, and what it finds."""

from abc import abstractmethod
from dataclasses import dataclass, field

from longspan.config import Settings
from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row
from longspan.eval.text import Documents
from longspan.records import Cell, PositionBin


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one task found, and the rows it rests on."""

    cells: tuple[Cell, ...] = ()
    bins: tuple[PositionBin, ...] = ()
    rows: tuple[Row, ...] = field(repr=False)


class Task(Settings):
    """An evaluation: a frozen value whose fields are its settings. One file in `eval/tasks/` each, without torch."""

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of what it measures; no two tasks of an evaluation may share one."""

    @abstractmethod
    def cost_tokens(self, documents: Documents) -> int:
        """Context tokens that the model must read for it."""

    @abstractmethod
    def check(self, material: Material) -> None:
        """Raise `DataError` now if `run` would have to later: too little text, or lines that do not fit."""

    @abstractmethod
    def run(self, desk: Desk) -> Findings:
        """Do the evaluation. Raises `Interrupted` between contexts when asked to stop."""
