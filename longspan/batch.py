"""What training hands to the engine: whole rows of tokens with their targets, positions and document borders."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Spans = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Batch:
    """Rows of one length. `targets[i]` is the token that follows `tokens[i]`; they are shifted once, in `data`.

    `weights` is 0 where a token has no target (the last of a document) and 1 or more elsewhere; the loss is the
    weighted sum divided by the sum of weights of the whole step. `spans` holds each row's document borders,
    `(0, …, S)`: no token attends across a border. `positions` grow from 0 inside each document, and may jump.
    """

    tokens: Int[Tensor, "b S"]
    targets: Int[Tensor, "b S"]
    weights: Float[Tensor, "b S"]
    positions: Int[Tensor, "b S"]
    spans: Spans

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return self.changed(lambda tensor: tensor.to(device))

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same with every tensor changed in one way; the borders stay."""
        return Batch(
            tokens=change(self.tokens),
            targets=change(self.targets),
            weights=change(self.weights),
            positions=change(self.positions),
            spans=self.spans,
        )
