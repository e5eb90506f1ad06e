"""What every curriculum is: settings that become the rows of a stage, slot by slot, as a function of their number."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from longspan.config import Settings
from longspan.data.curricula._lengths import Lengths
from longspan.data.rows import Answers, Row, StageRows
from longspan.data.settings import MixPart
from longspan.data.store import TokenStore
from longspan.probes import Encode

SAMPLED_SLOTS = 64


@dataclass(frozen=True, kw_only=True)
class StageText:
    """What a stage's rows are made from: `steps` steps of `slots_per_step` slots of `length` tokens, out of a store."""

    store: TokenStore
    length: int
    mix: Sequence[MixPart]
    steps: int
    slots_per_step: int
    seed: int
    stage: int
    encode: Encode
    answers: Answers | None = None

    def plain(self) -> StageRows:
        """Rows of the stage's length, as the mix says."""
        return StageRows(
            self.store,
            length=self.length,
            mix=self.mix,
            seed=self.seed,
            stage=self.stage,
            encode=self.encode,
            answers=self.answers,
        )

    def sampled(self) -> list[int]:
        """Some slots, evenly spread over the stage: enough to tell how long its documents are."""
        total = self.steps * self.slots_per_step
        return sorted({round(at) for at in np.linspace(0, total - 1, min(total, SAMPLED_SLOTS))})


class Slots(Protocol):
    """The rows of a stage. A slot is `length` tokens: one row, or several shorter ones of one length.

    All slots of a step hold rows of the same length. Nothing is carried from one to the next, so any rank can make any
    slot, and a resume has nothing to restore.
    """

    def slot(self, number: int) -> list[Row]:
        """The rows of the slot with this number, the same whatever was asked before."""

    def check(self) -> None:
        """Make what shows that the stage can work; raises what making rows raises."""

    def first_slots(self) -> dict[int, int]:
        """The first slot with rows of each length that the stage has, the longest first."""

    def lengths(self) -> Lengths:
        """How long the rows' documents are, over the whole stage or over a sample of it."""

    def repeats(self) -> list[float]:
        """How often each part of the mix goes through its documents in this stage."""


class Curriculum(Settings, ABC):
    """Settings of one order of lengths."""

    kind: str  # the name of the file

    @property
    def keeps_positions(self) -> bool:
        """Whether the positions of the plain rows stay as they are, and may jump."""
        return False

    def check(self, *, length: int, mix: Sequence[MixPart]) -> None:
        """Raise `ValueError` when a stage of this length and mix cannot follow this order."""

    @abstractmethod
    def slots(self, text: StageText) -> Slots:
        """The rows of a stage. Raises `DataError` when there is too little text."""


def only_text(kind: str, mix: Sequence[MixPart], *, why: str) -> None:
    """Raise `ValueError` when a mix has probes, for a curriculum that cannot have them."""
    if any(part.probe is not None for part in mix):
        raise ValueError(f"curriculum {kind} takes no probes in the mix: {why}")
