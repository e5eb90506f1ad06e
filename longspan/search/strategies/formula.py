"""A method as it is, measured once: what searches are compared with."""

from typing import TYPE_CHECKING, Literal

from longspan.config import any_kind
from longspan.search.desk import Budget, Desk
from longspan.search.judge import Candidate
from longspan.search.strategies.base import Strategy

if TYPE_CHECKING:
    from longspan.rope.frequencies import Method as RopeChoice
else:
    RopeChoice = any_kind("longspan.rope.methods")  # the choices are known at run time only


class Formula(Strategy):
    """The position settings `rope` alone; nothing is searched."""

    kind: Literal["formula"] = "formula"
    rope: RopeChoice

    @property
    def name(self) -> str:
        """The method's own name."""
        return str(self.rope.kind)  # type: ignore[attr-defined]

    @property
    def tunes_a_formula(self) -> bool:
        """It is one."""
        return True

    @property
    def budget(self) -> Budget:
        """One evaluation."""
        return Budget(evaluations=1)

    def run(self, desk: Desk) -> None:
        """Measure it."""
        desk.losses([Candidate(method=self.rope)])
