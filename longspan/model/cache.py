"""Keys and values of a context, kept so that questions after it cost only their own tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.shape import ModelShape


class KVCache:
    """Rotated keys and values of one row in every layer, `[1, g, capacity, d]` each; the first `length` count."""

    def __init__(self, shape: ModelShape, capacity_tokens: int, *, device: torch.device, dtype: torch.dtype) -> None:
        size = (shape.layers, 1, shape.kv_heads, capacity_tokens, shape.head_dim)
        self._keys = torch.empty(size, device=device, dtype=dtype)
        self._values = torch.empty(size, device=device, dtype=dtype)
        self.capacity = capacity_tokens
        self.length = 0

    def put(
        self, layer: int, k: Float[Tensor, "1 g s d"], v: Float[Tensor, "1 g s d"]
    ) -> tuple[Float[Tensor, "1 g S d"], Float[Tensor, "1 g S d"]]:
        """Write this layer's new keys and values behind the others; all of the layer's come back.

        `length` moves only with `advance`, once every layer has written.
        """
        stop = self.length + k.shape[2]
        assert stop <= self.capacity, f"cache of {self.capacity} tokens cannot take {stop}"
        self._keys[layer, :, :, self.length : stop] = k
        self._values[layer, :, :, self.length : stop] = v
        return self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more positions as kept."""
        self.length += tokens

    def crop(self, length: int) -> None:
        """Forget every position from `length` on."""
        assert 0 <= length <= self.length
        self.length = length
