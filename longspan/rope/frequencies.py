"""Rotary frequencies as numbers: what every position method returns and what rotation and export read. No torch."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from longspan.config import Settings


@dataclass(frozen=True, kw_only=True)
class RopeBase:
    """The rotary set-up a model was trained with.

    `rotary_dim` d is the rotated part of a head; `theta` the base; `trained_length` N0 in tokens. A model that was
    scaled before carries its own rescale `factors` and `attention_factor`: the method `default` keeps them, every
    other method starts again from theta and N0.
    """

    rotary_dim: int
    theta: float
    trained_length: int
    factors: tuple[float, ...] | None = None
    attention_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """One set of rotary frequencies: omega_i = 1 / (factors[i] · theta^(2i/d)), i = 0 … d/2 − 1.

    `attention_factor` multiplies cos and sin, so logits grow by its square. `length` is the context, in tokens,
    that the set was made for; `trained_length` is N0 of the model it came from. `short_factors`, where there are any,
    belong to a mixed window: they hold instead of `factors` for texts of up to N0 tokens.
    """

    theta: float
    factors: tuple[float, ...]
    attention_factor: float
    length: int
    trained_length: int
    short_factors: tuple[float, ...] | None = None

    @property
    def rotary_dim(self) -> int:
        """d, twice the number of pairs."""
        return 2 * len(self.factors)

    def window(self, length: int) -> "Frequencies":
        """The set that holds for a text of `length` tokens: the short one of a mixed window up to N0, else this."""
        if self.short_factors is None or length > self.trained_length:
            return self
        return replace(self, factors=self.short_factors, short_factors=None)

    @property
    def omegas(self) -> tuple[float, ...]:
        """Angular frequencies in float64, radians per token."""
        d = self.rotary_dim
        return tuple(1.0 / (factor * self.theta ** (2 * i / d)) for i, factor in enumerate(self.factors))


def read_frequencies(value: Mapping[str, Any]) -> Frequencies:
    """The frequencies whose `dataclasses.asdict` went through JSON, which has lists for tuples."""
    fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return Frequencies(**fields)


class Method(Settings):
    """A position method: a frozen value whose fields are its settings. One file in `rope/methods/` each."""

    @abstractmethod
    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies for contexts of up to `length` tokens.

        Raises `ConfigError` when the method cannot serve this base or length.
        """
