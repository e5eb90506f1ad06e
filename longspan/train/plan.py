"""What one stage of training does, in whole steps and rows."""

from dataclasses import dataclass

from longspan.rope.frequencies import Frequencies


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: `steps` optimizer steps of `rows_per_step` rows of `length` tokens, `micro_rows` at a time.

    `learning_rate` is the peak, which step `warmup_steps` ≥ 1 has; the last step has `final_share` of it, unless it is
    that step.
    """

    index: int
    length: int
    steps: int
    rows_per_step: int
    micro_rows: int
    learning_rate: float
    final_share: float
    warmup_steps: int
    frequencies: Frequencies

    def __post_init__(self) -> None:
        assert 1 <= self.warmup_steps <= self.steps, "every stage reaches its peak"

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.rows_per_step * self.length
