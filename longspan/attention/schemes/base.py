"""What a scheme is: attention of some heads over all tokens of a batch, forward and backward, on any ranks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a scheme costs, as plain numbers: bytes that a rank sends for one token of its own and one layer."""

    sent_forward_bytes: int
    sent_backward_bytes: int


@dataclass(frozen=True)
class Scheme(ABC):
    """One way to spread attention. Its tensors are head-major: `[heads, T, d]` over the flattened tokens of a batch.

    Outputs may be views with any strides. Nothing is differentiable: the engine calls `backward` itself.
    """

    traits: ClassVar[Traits]

    @abstractmethod
    def forward(
        self,
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        *,
        runs: Runs,
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
        """Causal attention inside each run, and its log-sum-exp in float32 (float64 for float64).

        `runs` cover the tokens one after another; `window` is the number of keys that a query sees, itself included.
        """

    @abstractmethod
    def backward(
        self,
        do: Float[Tensor, "h T d"],
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        o: Float[Tensor, "h T d"],
        lse: Float[Tensor, "h T"],
        *,
        runs: Runs,
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "g T d"], Float[Tensor, "g T d"]]:
        """Gradients of q, k, v from what `forward` was given and gave."""
