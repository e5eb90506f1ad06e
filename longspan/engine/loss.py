"""The loss and its gradient in one pass over tiles: logits exist for one tile at a time, and are made once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longspan.engine import pointwise
from longspan.engine.gradients import Gradients
from longspan.engine.linear import Linear
from longspan.model.decoder import Norm


class LossPass:
    """Cross entropy over the vocabulary behind the last norm. `divisor` is the step's sum of target weights.

    `total` adds up the undivided weighted loss in float64, on the device.
    """

    def __init__(
        self, head: Linear, norm: Norm, *, targets: Int[Tensor, " T"], weights: Float[Tensor, " T"], divisor: float
    ) -> None:
        self._head, self._norm = head, norm
        self._targets, self._weights = targets, weights.double()
        self._divisor = divisor
        self.total = torch.zeros((), dtype=torch.float64, device=targets.device)

    def backward(
        self,
        x: Float[Tensor, "t m"],
        tile: slice,
        gradients: Gradients,
        *,
        loss_tile_tokens: int,
        out: Float[Tensor, "t m"],
    ) -> None:
        """Add the loss of a tile and put the gradient of the residual stream into `out`, which may be x."""
        weight = self._norm.weight.detach()
        for start in range(0, x.shape[0], loss_tile_tokens):
            part = slice(start, min(start + loss_tile_tokens, x.shape[0]))
            whole = slice(tile.start + part.start, tile.start + part.stop)
            n = pointwise.norm(x[part], weight, self._norm.epsilon)
            logits, share = self._head(n), self._weights[whole]
            scale = (share / self._divisor).to(torch.promote_types(logits.dtype, torch.float32))
            losses = pointwise.cross_entropy_(logits, self._targets[whole], scale)
            self.total += (losses * share).sum()
            dn = self._head.backward(logits, n, gradients)  # by now the gradient of the logits
            del logits
            pointwise.norm_backward(
                dn,
                x[part],
                weight,
                self._norm.epsilon,
                residual=None,
                dweight=gradients.of(self._norm.weight),
                out=out[part],
            )
