"""One forward and backward pass of training: loss and gradients of a batch, logits never whole."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from longspan.batch import Batch
from longspan.engine.precision import autocast
from longspan.model.decoder import Decoder

LOSS_TILE_TOKENS = 2048  # 2,048 x 128,256 float32 logits are 1.05 GB


def forward_backward(decoder: Decoder, batch: Batch, *, divisor: float, exact: bool = False) -> Float[Tensor, ""]:
    """Add the gradients of (weighted loss sum / divisor) to the decoder's; the undivided loss sum comes back.

    `divisor` is the sum of target weights of the whole optimizer step, over all micro-batches and ranks, so that
    the step's loss is the mean over its targets however they are split. `exact` computes in the type of the weights,
    also on a GPU. Loss in nats, float32, detached.
    """

    def precision() -> AbstractContextManager[None]:
        return nullcontext() if exact else autocast(decoder)

    with precision():
        hidden = decoder.hidden(batch.tokens, positions=batch.positions, spans=batch.spans)
    rows = hidden.detach().flatten(0, 1)
    targets, weights = batch.targets.flatten(), batch.weights.flatten()
    gradient = torch.empty_like(rows)
    total = torch.zeros((), device=rows.device)
    for start in range(0, rows.shape[0], LOSS_TILE_TOKENS):
        tile = slice(start, start + LOSS_TILE_TOKENS)
        leaf = rows[tile].requires_grad_()
        with precision():
            logits = decoder.logits(leaf)
        loss = (functional.cross_entropy(logits, targets[tile], reduction="none") * weights[tile]).sum()
        torch.autograd.backward(loss / divisor)
        assert leaf.grad is not None
        gradient[tile] = leaf.grad
        total += loss.detach()
    torch.autograd.backward(hidden, gradient.view_as(hidden))
    return total
