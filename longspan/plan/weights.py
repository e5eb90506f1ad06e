"""Bytes of weights, their gradients and the optimizer on one rank, and of a part that is whole while it is at work.

Written after parallel/weights.py and engine/gradients.py. FSDP2 gathers a part into one buffer and copies it out into
its parameters, whose storage is freed when the part is done: at work is one part, and the buffer of the next.
"""

from dataclasses import dataclass
from functools import cached_property

from longspan.plan.flops import attention_parameters, mlp_parameters
from longspan.plan.schemes import WIDE
from longspan.plan.workload import Workload
from longspan.shape import ModelShape

UPDATE_TILE = 2**25  # weights that are updated at once (train/optimizer.py)
Bytes = dict[str, int]


def block_parameters(shape: ModelShape) -> int:
    """Weights of one block's projections; norms and biases are too small to count."""
    return attention_parameters(shape) + mlp_parameters(shape)


@dataclass(frozen=True)
class WeightBytes:
    """What the weights of one workload need."""

    work: Workload

    @property
    def _rows(self) -> int:
        """Ranks that each matrix is cut over."""
        return self.work.mesh.shard * self.work.mesh.context

    @property
    def _cut(self) -> bool:
        return self._rows > 1

    @property
    def _alone(self) -> bool:
        return self.work.mesh.ranks == 1

    def _own(self, count: int) -> int:
        """This rank's share."""
        return -(-count // self._rows)

    # -- what lives as long as training -----------------------------------------------------------------------------

    @property
    def gradient_bytes(self) -> int:
        """Of a gradient that is kept until the update."""
        return WIDE if self.work.adapters else self.work.states.gradient_bytes

    @property
    def optimizer(self) -> int:
        """What the optimizer holds here."""
        return self._own(self.work.state_bytes)

    @property
    def copied(self) -> int:
        """The copy of what is trained from which a checkpoint is written."""
        return self._own(round(self.work.trainable * self.work.states.copied_bytes))

    def states(self, *, plain: bool) -> Bytes:
        """Weights, gradients, optimizer. Adapters are float32 beside the model's own weights.

        `plain`: autograd has all gradients at once, also where weights change inside the pass.
        """
        states, work = self.work.states, self.work
        gone = states.update_inside and not plain
        return {
            "weights": self._own(work.shape.parameters) * states.weight_bytes,
            "adapters": self._own(states.trainable or 0) * WIDE,
            "gradients": 0 if gone else self._own(work.trainable) * self.gradient_bytes,
            "optimizer": self.optimizer if states.states_on == "device" else 0,
        }

    @property
    def update_tile(self) -> int:
        """Float32 copies of weight, gradient and both moments of what is updated at once, and the new moments."""
        return min(UPDATE_TILE, self._own(self.work.trainable)) * 6 * WIDE if self.work.states.state_bytes else 0

    # -- what is whole while it is at work ----------------------------------------------------------------------------

    @property
    def casts(self) -> bool:
        """Whether tiles are computed in another type than that in which weights are stored."""
        return self.work.states.weight_bytes != self.work.element_bytes

    @property
    def block(self) -> Bytes:
        """A block's weights in the type that tiles are computed in, when they are gathered or stored wider."""
        if not self._cut:
            cast = block_parameters(self.work.shape) * self.work.element_bytes if self.casts else 0
            return {"block in the type of tiles": cast}
        return {"block at work": self._gathered_block, "next block on its way": self._coming(self._gathered_block)}

    @property
    def head(self) -> Bytes:
        """The head's weights, and the top block's."""
        if not self._cut:
            return {"head": self.head_size * self.work.element_bytes if self.casts else 0}
        return {"head": self._gathered_head, "next block on its way": self._coming(self._gathered_block)}

    @property
    def gather_of_head(self) -> int:
        """The head or the embedding as it arrives and is copied out, or beside it the first block."""
        return self._gathered_head + self._coming(max(self._gathered_head, self._gathered_block)) if self._cut else 0

    @property
    def _gathered_block(self) -> int:
        adapters = (self.work.states.trainable or 0) // self.work.shape.layers
        return (block_parameters(self.work.shape) + adapters) * self.work.element_bytes

    @property
    def _gathered_head(self) -> int:
        return self.head_size * self.work.element_bytes

    def _coming(self, count: int) -> int:
        """A part on its way, with this rank's share of it in the type of tiles."""
        return count + (self._own(count) if self.casts else 0)

    # -- sums of gradients --------------------------------------------------------------------------------------------

    @property
    def _wide_sums(self) -> bool:
        """Whether gradients are summed beside `.grad`: not where that is float32 itself and nobody else has a share."""
        return self.gradient_bytes < WIDE or self.work.states.update_inside or not self._alone

    @property
    def block_sums(self) -> Bytes:
        """Those of the block at work; over ranks also those of the one before, which are being added up."""
        sums = self._block_trainable * WIDE if self._wide_sums else 0
        if self._alone:
            return {"block's sums": sums}
        return {"block's sums": sums, "sums on their way": sums + self._reduced(sums)}

    @property
    def head_sum(self) -> int:
        """That of the head or the embedding."""
        return self.head_size * WIDE if self._wide_sums and not self.work.adapters else 0

    @property
    def ends(self) -> Bytes:
        """The head's sum while it is added up over ranks: with rows of nobody where they do not divide."""
        return {"head's sum": self._padded_head_sum, "reduced rows": self._reduced(self.head_sum)}

    @property
    def embedding(self) -> Bytes:
        """The embedding's sum, and the last block's on its way."""
        if self._alone:
            return {"embedding's sum": self.head_sum}
        on_their_way = self.block_sums["sums on their way"]
        return {"embedding's sum": self._padded_head_sum, "sums on their way": on_their_way} | {
            "reduced rows": self._reduced(self.head_sum)
        }

    @cached_property
    def head_size(self) -> int:
        """Weights of the head, and of the embedding."""
        return self.work.shape.vocabulary * self.work.shape.width

    @property
    def _block_trainable(self) -> int:
        if self.work.states.trainable is None:
            return block_parameters(self.work.shape)
        return self.work.states.trainable // self.work.shape.layers

    @property
    def _padded_head_sum(self) -> int:
        return self.head_sum * (2 if self.work.shape.vocabulary % self._rows else 1)

    def _reduced(self, count: int) -> int:
        """This rank's rows of a sum; with copies of all weights the sum itself."""
        return self._own(count) if self._cut else 0
