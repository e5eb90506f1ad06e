"""The arithmetic of `adamw`: PyTorch's function, one call for all weights of a kind."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from longspan.train.optimizers.base import Piece

MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch names the running means of the gradient and of its square


class AdamWRule:
    """AdamW. Source: arXiv:1711.05101, algorithm 2."""

    keys = MOMENTS

    def __init__(self, betas: tuple[float, float], epsilon: float) -> None:
        self._betas, self._epsilon = betas, epsilon

    def states(self, weight: Tensor) -> dict[str, Tensor]:
        """Two moments of the weight's shape."""
        return {moment: torch.zeros_like(weight, requires_grad=False) for moment in MOMENTS}

    @torch.no_grad()
    def update(self, pieces: Sequence[Piece], rate: float) -> None:
        """One update of every piece; fused on a GPU."""
        for decay in sorted({piece.decay for piece in pieces}, reverse=True):
            part = [piece for piece in pieces if piece.decay == decay]
            fused = part[0].weight.is_cuda
            # A fused update counts on the device, the plain one on the host. These are copies: ours go with the weight.
            place = part[0].weight.device if fused else torch.device("cpu")
            adamw(
                [piece.weight for piece in part],
                [piece.gradient for piece in part],
                [piece.states["exp_avg"] for piece in part],
                [piece.states["exp_avg_sq"] for piece in part],
                [],
                [torch.full((), piece.count, device=place) for piece in part],
                fused=fused,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=rate,
                weight_decay=decay,
                eps=self._epsilon,
                maximize=False,
            )

    def check(self, pieces: Sequence[Piece]) -> None:
        """Nothing can be missing."""
