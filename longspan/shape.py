"""The numbers that define a decoder, without its weights."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes and switches of a decoder. Letters in comments are those of docs/guide/words.md.

    `windows` has one entry a layer: None for full attention, else the number of keys a query sees, itself included.
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
