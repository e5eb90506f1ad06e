"""The numbers that define a decoder, without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class OwnPositions:
    """Rotary positions that a layer has apart from the rest, and keeps when the context grows.

    Every pair turns `factor` times slower than `theta` says. Without a theta none turns: a layer without positions.
    """

    theta: float | None
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes and switches of a decoder. Letters in comments are those of docs/guide/words.md.

    `windows` has one entry a layer: None for full attention, else the number of keys a query sees, itself included.
    `own_positions` has one entry a layer, None for the layers that turn by the model's frequencies; empty when all do.
    """

    family: str
    layers: int  # L
    width: int  # m
    heads: int  # h
    kv_heads: int  # g
    head_dim: int  # d
    mlp_width: int  # f
    vocabulary: int  # v
    norm_epsilon: float
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    trained_length: int  # N0: the longest context the weights were trained at, in tokens
    own_positions: tuple[OwnPositions | None, ...] = ()

    @property
    def position_sets(self) -> tuple[OwnPositions, ...]:
        """The different positions that layers have of their own, in the order of the layers."""
        return tuple(dict.fromkeys(own for own in self.own_positions if own is not None))

    def position_set(self, layer: int) -> int:
        """By which set a layer turns: 0 for the model's frequencies, else a place in `position_sets`, from 1."""
        own = self.own_positions[layer] if self.own_positions else None
        return 0 if own is None else 1 + self.position_sets.index(own)

    def first_layers(self, count: int) -> "ModelShape":
        """The same model, cut to its first layers."""
        own = self.own_positions[:count]
        return replace(self, layers=count, windows=self.windows[:count], own_positions=plain_if_none(own))

    @property
    def parameters(self) -> int:
        """Number of weights, embedding counted once when it is tied."""
        m, d = self.width, self.head_dim
        rows = (self.heads + 2 * self.kv_heads) * d
        attention = rows * m + (rows if self.qkv_bias else 0) + self.heads * d * m + (m if self.out_bias else 0)
        mlp = 3 * m * self.mlp_width + ((2 * self.mlp_width + m) if self.mlp_bias else 0)
        norms = 2 * m + (2 * d if self.qk_norm else 0)
        ends = self.vocabulary * m * (1 if self.tied else 2) + m
        return self.layers * (attention + mlp + norms) + ends


def plain_if_none(own: Sequence[OwnPositions | None]) -> tuple[OwnPositions | None, ...]:
    """`own_positions` as a shape holds them: empty when no layer has its own."""
    return tuple(own) if any(entry is not None for entry in own) else ()
