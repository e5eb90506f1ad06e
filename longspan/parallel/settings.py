"""How a recipe spreads work over ranks. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from longspan.config import Settings
from longspan.parallel.mesh import Across, Mesh

Count = Annotated[int, Field(ge=1)]


class MeshSettings(Settings):
    """Ranks as `replicate x shard x ring x ulysses`; an axis that is left out has one.

    Ranks on `ring` and `ulysses` share the tokens of a row; `across` is what happens on the ring axis: keys go round
    (`ring`), or everybody gathers them (`gather`, which does windows too). Ranks on `replicate` and `shard` have rows
    of their own. Weights are cut over all but `replicate`.
    """

    replicate: Count = 1
    shard: Count = 1
    ring: Count = 1
    ulysses: Count = 1
    across: Across = "ring"

    @property
    def mesh(self) -> Mesh:
        """As whole numbers."""
        return Mesh(**self.model_dump())


class ParallelSettings(Settings):
    """Over how many ranks a run is spread, and how.

    `ranks` counts those of this machine, one a GPU; under torchrun it is what torchrun says. `mesh` holds for every
    stage that names none of its own; `auto` gives ranks rows of their own while there are enough rows in a step and
    they fit, and else lets them share rows. A rank that keeps the others waiting for `deadline_seconds` ends the run.
    """

    ranks: Literal["auto"] | Count = "auto"
    mesh: Literal["auto"] | MeshSettings = "auto"
    deadline_seconds: Annotated[float, Field(gt=0.0)] = 600.0
