"""What the loop asks of an engine: a pass over one batch that gives its loss, and gradients to the weights."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from longspan.batch import Batch
from longspan.engine.gradients import OnGradients
from longspan.engine.step import forward_backward
from longspan.model.decoder import Decoder
from longspan.train.plan import StagePlan


class Pass(Protocol):
    """One forward and backward pass over a batch."""

    def __call__(self, batch: Batch, *, divisor: float, on_gradients: OnGradients | None = None) -> Tensor:
        """The undivided loss sum, in nats; the gradients of (loss sum / divisor) are added to `.grad` of the weights.

        With `on_gradients` they go there instead, group by group, each weight that requires one exactly once, as
        float32, when they are complete. It may change the weights and keeps no gradient; nobody may read a weight for
        this batch afterwards. It is called only when the whole loss sum is known and finite.
        """


Engine = Callable[[StagePlan], Pass]  # asked once a stage, before its first step


def plain_engine(decoder: Decoder) -> Engine:
    """Ordinary autograd for all stages."""

    def run(batch: Batch, *, divisor: float, on_gradients: OnGradients | None = None) -> Tensor:
        total = forward_backward(decoder, batch, divisor=divisor)
        if on_gradients is not None and bool(torch.isfinite(total)):
            _hand_over(decoder, on_gradients)
        return total

    return lambda _: run


def _hand_over(decoder: Decoder, on_gradients: OnGradients) -> None:
    """Give the gradients of head and last norm, of every block from the last one, then of the embedding."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in decoder.named_parameters():
        if weight.grad is not None:
            part = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name.split(".")[0]
            groups.setdefault("end" if part in ("norm", "head") else part, []).append(weight)
    for group in reversed(groups.values()):
        gradients = [weight.grad.float() for weight in group if weight.grad is not None]
        for weight in group:
            weight.grad = None
        on_gradients(group, gradients)
