"""AdamW over a decoder's float32 weights, and its state as named tensors."""

import torch
from torch import Tensor, nn

from longspan.train.settings import TrainSettings

MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch names the running means of the gradient and of its square


def build_optimizer(decoder: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; weight decay pulls on the matrices of the blocks and the head, not on norms, biases or the embedding.

    The learning rate is set anew in every step. Source: arXiv:1711.05101, algorithm 2.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, weight in decoder.named_parameters():
        assert weight.dtype == torch.float32, f"{name} must be a float32 master weight"
        (decayed if weight.ndim >= 2 and not name.startswith("embed.") else free).append(weight)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    fused = next(decoder.parameters()).is_cuda
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon, fused=fused)
    for weight in decoder.parameters():
        # Made here and not in the first step, so that memory and checkpoint sizes are known from the start.
        # A fused optimizer counts its updates on the device, the plain one on the host.
        count = torch.zeros((), device=weight.device if fused else "cpu")
        optimizer.state[weight] = {"step": count} | {moment: torch.zeros_like(weight) for moment in MOMENTS}
    return optimizer


def optimizer_tensors(optimizer: torch.optim.AdamW, decoder: nn.Module) -> dict[str, Tensor]:
    """The optimizer's live state by names like `exp_avg/blocks.0.q.weight`; `step/…` counts a weight's updates."""
    return {
        f"{key}/{name}": optimizer.state[weight][key]
        for key in ("step", *MOMENTS)
        for name, weight in decoder.named_parameters()
    }
