"""What one stage of training does, in whole steps and rows."""

from dataclasses import dataclass

from longspan.parallel.mesh import Mesh
from longspan.rope.frequencies import Frequencies

ONE_RANK = Mesh()


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: `steps` optimizer steps of `rows_per_step` rows of `length` tokens, `micro_rows` at a time.

    Ranks of `mesh` that have rows of their own share the rows of a step; where a step has shorter rows instead
    (`Slots`), those that would share one have rows of their own, too. `learning_rate` is the peak, which step
    `warmup_steps` ≥ 1 has; the last step has `final_share` of it, unless it is that step.
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
    mesh: Mesh = ONE_RANK

    def __post_init__(self) -> None:
        assert 1 <= self.warmup_steps <= self.steps, "every stage reaches its peak"
        assert self.rows_per_step % self.mesh.data == 0, "every rank has as many rows"

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.rows_per_step * self.length

    def mesh_for(self, row_tokens: int) -> Mesh:
        """The mesh of a step whose rows have `row_tokens`: a short row goes to as few ranks as the step can give it."""
        return self.mesh.for_rows(self.length // row_tokens)

    def part_of(self, rank: int, row_tokens: int) -> tuple[int, int]:
        """Which part of the rows of its slots a rank works on in such a step, and how many parts there are."""
        context = self.mesh_for(row_tokens).context
        return rank % self.mesh.context // context, self.mesh.context // context

    @property
    def rows_per_rank(self) -> int:
        """Rows of a step that one rank works on, alone or with those that share their tokens."""
        return self.rows_per_step // self.mesh.data
