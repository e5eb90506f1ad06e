"""Every row has the stage's length: the lengths grow from stage to stage only."""

from typing import Literal

from longspan.data.curricula._windows import WindowedSlots
from longspan.data.curricula.base import Curriculum, Slots, StageText


class Stages(Curriculum):
    """Rows of the stage's length from its first step to its last."""

    kind: Literal["stages"] = "stages"

    @property
    def keeps_positions(self) -> bool:
        """They do."""
        return True

    def slots(self, text: StageText) -> Slots:
        """The plain rows."""
        return WindowedSlots(text, lambda _: text.length)
