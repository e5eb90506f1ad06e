"""What is asked of the engine: a model's shape, the tokens of a batch, what is held for every weight, and by how many
ranks the tokens are shared."""

from dataclasses import dataclass
from typing import Literal

from longspan.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes held for each weight as long as training lasts.

    `gradient_bytes` and `state_bytes` (the optimizer's) are of a trained weight. `trainable` counts the weights that
    have gradients: None means all, LoRA far fewer, which come in float32 on top of the model's. `update_inside`: a
    block's weights are updated in the backward pass, so no gradient outlives its block.
    """

    weight_bytes: int = 2
    gradient_bytes: int = 2
    state_bytes: float = 0.0
    states_on: Literal["device", "host"] = "device"
    update_inside: bool = False
    trainable: int | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How attention is spread over ranks: the scheme's kind and the ranks on its two axes.

    `kv_width` is the number of key/value heads of a rank in one stage of Ulysses; None is all of a call in one stage.
    """

    kind: Literal["local", "ring", "gather", "ulysses", "grid"] = "local"
    ring: int = 1
    ulysses: int = 1
    kv_width: int | None = None

    @property
    def ranks(self) -> int:
        """Ranks that share the tokens of a row."""
        return self.ring * self.ulysses


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One forward and backward pass of one rank. `tokens` are its own of all rows, `lengths` its share of each of the
    documents they are made of (one document of all tokens unless told); `element_bytes` is the width of activations: 2
    on a GPU, 4 on a CPU. With a `spread`, ranks have equal shares, and documents are so many times as long.
    """

    shape: ModelShape
    tokens: int
    lengths: tuple[int, ...] = ()
    element_bytes: int = 2
    states: States = States()
    spread: Spread = Spread()

    @property
    def local_lengths(self) -> tuple[int, ...]:
        """This rank's share of each document, in tokens."""
        return self.lengths or (self.tokens,)

    @property
    def document_lengths(self) -> tuple[int, ...]:
        """Lengths of the documents in tokens, over all ranks."""
        return tuple(length * self.spread.ranks for length in self.local_lengths)

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
        """What the optimizer holds for all of them."""
        return round(self.trainable * self.states.state_bytes)
