"""What every optimizer is: settings that say what it keeps for a weight, and a rule that changes weights. No torch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from longspan.config import Settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of one weight's numbers, flat, with its gradient and its states, all on one device.

    `key` names the weight and the place in it, `count` is how many updates it has had, `decay` its weight decay.
    """

    key: str
    weight: "Tensor"
    gradient: "Tensor"
    states: "dict[str, Tensor]"
    count: float
    decay: float


class Rule(Protocol):
    """The arithmetic of one optimizer: a function of weights, gradients and states, with no memory of its own."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all states that a weight may have, in the order of a checkpoint."""

    def states(self, weight: "Tensor") -> "dict[str, Tensor]":
        """States of a weight before its first update. Each divides into as many parts as there are tiles."""

    def update(self, pieces: Sequence[Piece], rate: float) -> None:
        """Make one update of every piece in place, at a learning rate."""

    def check(self, pieces: Sequence[Piece]) -> None:
        """Raise `ConfigError` now if `update` would have to later; the pieces may be changed."""


class Optimizer(Settings, ABC):
    """Settings of one optimizer.

    `states` says where the states of the weights lie: on the `device`, or in `host` memory, from where they visit the
    device piece by piece. `update` says when weights change: `after` the backward pass, or `inside` it, each as soon as
    its gradient is complete, so that the gradients of the whole model never exist at once.
    """

    states: Literal["device", "host"] = "device"
    update: Literal["after", "inside"] = "after"

    @property
    @abstractmethod
    def weight_dtype(self) -> Literal["float32", "bfloat16"]:
        """The type of the weights that are trained: the model has to be loaded so."""

    @property
    @abstractmethod
    def state_bytes(self) -> float:
        """Bytes of the states of one trained number; a checkpoint holds them beside the weight."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of one trained number itself."""
        return {"float32": 4, "bfloat16": 2}[self.weight_dtype]

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of one trained number in a checkpoint."""
        return self.weight_bytes + self.state_bytes

    @abstractmethod
    def require(self) -> None:
        """Raise `ConfigError` that names the extra to install when a package is missing."""

    @abstractmethod
    def rule(self, *, betas: tuple[float, float], epsilon: float) -> Rule:
        """The arithmetic. Raises `ConfigError` as `require` does."""
