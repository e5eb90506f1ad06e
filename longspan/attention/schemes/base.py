"""What a scheme is: attention of some heads over all tokens of a batch, forward and backward, on any ranks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs
from longspan.attention.layout import Pieces


@dataclass(frozen=True)
class Scheme(ABC):
    """One way to spread attention. Its tensors are head-major: `[heads, T, d]` over the flattened tokens of a batch.

    Of several ranks each has the T tokens that `layout` gives it, in that order, and every rank makes every call.
    Outputs may be views with any strides. Nothing is differentiable: the engine calls `backward` itself.
    """

    @property
    def ranks(self) -> int:
        """Over how many ranks the tokens of a batch are spread."""
        return 1

    @property
    def rank(self) -> int:
        """Which of them this one is."""
        return 0

    def layout(self, length: int, rank: int) -> Pieces:  # noqa: ARG002
        """The tokens that `rank` holds of a batch of `length`; on one device all."""
        return ((0, length),) if length else ()

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

        `runs` cover the tokens of the whole batch, over all ranks, one after another; `window` is the number of keys
        that a query sees, itself included.
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
