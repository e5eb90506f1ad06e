"""The ranks that train together: who has which rows and weights, what all must know, and who speaks for all."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from longspan.parallel.dist import World
from longspan.parallel.exchange import all_reduce_
from longspan.parallel.mesh import Mesh
from longspan.parallel.weights import Weights
from longspan.train.plan import StagePlan


@dataclass(frozen=True, kw_only=True)
class Team:
    """All ranks of a run as one of them sees them; without a world it is alone. All call the same methods in turn.

    `stop` says whether this rank was asked to stop, `weights` what it keeps of the decoder, everything unless told.
    """

    stop: Callable[[], bool] = lambda: False
    weights: Weights | None = None
    world: World | None = None

    @property
    def speaks(self) -> bool:
        """Whether this rank writes and tells what all have done."""
        return self.world is None or self.world.launch.rank == 0

    def first_row(self, plan: StagePlan) -> int:
        """Which row of a step is the first that this rank works on."""
        rank = 0 if self.world is None else self.world.launch.rank
        return rank // plan.mesh.context * plan.rows_per_rank

    def total(self, value: float, mesh: Mesh) -> float:
        """The sum of a value over all rows, of which this rank and those that share its tokens have the same part."""
        return value if self.world is None else self._sum(value) / mesh.context

    def stopped(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.stop() if self.world is None else self._sum(float(self.stop())) > 0

    def _sum(self, value: float) -> float:
        assert self.world is not None
        found = torch.tensor(value, dtype=torch.float64)  # on the host: nobody waits for a device
        return float(all_reduce_(found, self.world.everyone, operation="sum over hosts").wait())
