"""What every strategy is."""

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from longspan.config import Settings
from longspan.search.desk import Budget, Desk

Seconds = Annotated[float, Field(gt=0)]


class Strategy(Settings):
    """A way to search: a frozen value whose fields are its settings. One file in `search/strategies/` each.

    What it asks of the desk depends on its settings, the space, the desk's seed and the answers, and on nothing else:
    no clock, no global random numbers. So it goes on after a kill, and gives the same settings again, to the bit.
    """

    kind: str  # the name of the file
    explore: Literal["skip", "full"] | None = None  # on which sheet; null: as the search says

    @property
    def name(self) -> str:
        """How tables and files call it."""
        return self.kind

    @property
    def tunes_a_formula(self) -> bool:
        """Whether it only sets the numbers of a closed formula: a baseline of the others."""
        return False

    @property
    @abstractmethod
    def budget(self) -> Budget:
        """What it may use."""

    @abstractmethod
    def run(self, desk: Desk) -> None:
        """Explore until done. `Spent` may end it at any question: what was tried by then stands."""

    def require(self) -> None:
        """Raise `ConfigError` when a package that it needs is missing."""
