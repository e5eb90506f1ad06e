"""What is asked of the engine: a model's shape, the tokens of a batch, and what is held for every weight."""

from dataclasses import dataclass
from typing import Literal

from longspan.parallel.mesh import Mesh
from longspan.shape import ModelShape

ONE_RANK = Mesh()


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes held for each weight as long as training lasts.

    `gradient_bytes` and `state_bytes` (the optimizer's) are of a trained weight. `trainable` counts the weights that
    have gradients: None means all, LoRA far fewer, which come in float32 on top of the model's. `update_inside`: a
    block's weights are updated in the backward pass, so no gradient outlives its block. `copied_bytes` of a trained
    weight and its states are copied to host memory for a save that training does not wait for.
    """

    weight_bytes: int = 2
    gradient_bytes: int = 2
    state_bytes: float = 0.0
    states_on: Literal["device", "host"] = "device"
    update_inside: bool = False
    trainable: int | None = None
    copied_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One forward and backward pass, as one rank of a mesh has it.

    `tokens` are those of this rank, of all its rows: rows that are shared count by share, rounded up. `lengths` are the
    documents of the rows that its group of ranks shares (one document of all their tokens unless told).
    `element_bytes` is the width of activations: 2 on a GPU, 4 on a CPU.
    """

    shape: ModelShape
    tokens: int
    lengths: tuple[int, ...] = ()
    element_bytes: int = 2
    states: States = States()
    mesh: Mesh = ONE_RANK

    @property
    def document_lengths(self) -> tuple[int, ...]:
        """Lengths of the documents in tokens."""
        return self.lengths or (self.tokens * self.mesh.context,)

    @property
    def adapters(self) -> bool:
        """Whether the model's own weights are frozen."""
        return self.states.trainable is not None

    @property
    def trainable(self) -> int:
        """Weights that have gradients."""
        return self.shape.parameters if self.states.trainable is None else self.states.trainable

    @property
    def state_bytes(self) -> int:
        """What the optimizer holds for all of them, on all ranks that share one copy."""
        return round(self.trainable * self.states.state_bytes)
