"""What a search asks of a model: the loss of candidates on numbered sheets of text, and a gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from longspan.rope.frequencies import Frequencies, Method


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Position settings to try. `kept_tokens` is LongRoPE's n̂: so many first positions are not interpolated.

    No engine has a place for n̂, so it is searched as published, recorded, and left out of what is found.
    """

    method: Method
    kept_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A text on which every candidate is tried: `skip` has few tokens at positions spread over the length, `full` has
    all. Sheets of one kind are different texts, by number.
    """

    kind: Literal["skip", "full"]
    number: int = 0

    @property
    def name(self) -> str:
        """How rows on disk call it."""
        return f"{self.kind}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A loss in nats, with its gradient by the logarithms of the factors and by that of the attention factor."""

    loss: float
    by_log_factors: tuple[float, ...]
    by_log_attention: float


class Judge(Protocol):
    """A model that can be tried under other positions. Losses are means in nats; NaN counts as the worst."""

    @property
    def identity(self) -> str:
        """Names all that losses depend on beside candidate and sheet: weights, texts, what is measured."""

    def together(self, sheet: Sheet) -> int:
        """How many candidates it measures at once on a sheet."""

    def losses(self, sets: Sequence[tuple[Frequencies, int]], sheet: Sheet) -> list[float]:
        """The loss of each (frequencies, kept tokens) on a sheet."""

    def slope(self, frequencies: Frequencies, sheet: Sheet) -> Slope:
        """Loss and gradient of one set on a sheet."""
