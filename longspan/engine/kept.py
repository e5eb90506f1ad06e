"""Keys and values of one context in every layer, on the device or in page-locked host memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.engine.store import Slot, SlotShape, Store
from longspan.shape import ModelShape

Place = Literal["auto", "device", "host"]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How keys and values are kept. With `auto` they go to the host when the device has no room for them.

    `codes` keeps them as fp8 numbers with a scale each head of a token: half the bytes of bfloat16, and not exact.
    """

    place: Place = "auto"
    codes: bool = False


def kept_bytes(shape: ModelShape, tokens: int, dtype: torch.dtype, *, codes: bool) -> int:
    """Bytes of the keys and values of so many tokens in all layers."""
    slot = SlotShape(shape.kv_heads, (shape.head_dim,), dtype, lossy=codes)
    return 2 * shape.layers * sum(kept.bytes_of(tokens) for kept in slot.kept)


class Kept:
    """The rotated keys and the values `[g, S, d]` of every layer, filled from the bottom up, then read at will.

    Keys and values on the device are computed in place; others pass through `k` and `v`, buffers of `[g, S, d]`.
    """

    def __init__(self, shape: ModelShape, store: Store, *, dtype: torch.dtype, host: bool, codes: bool) -> None:
        self._store, self.host = store, host
        self.length = store.tiles[-1].stop
        slot = SlotShape(shape.kv_heads, (shape.head_dim,), dtype, lossy=codes)
        tier: Literal["host", "device"] = "host" if host else "device"
        self._slots: list[tuple[Slot, Slot]] = []
        for _ in range(shape.layers):
            self._slots.append((store.slot(slot, tier), store.slot(slot, tier)))
        self._direct = not host and not codes
        self._buffers: tuple[Tensor, ...] = ()
        if not self._direct:
            size = slot.of(self.length)
            self._buffers = tuple(torch.empty(size, dtype=dtype, device=store.device) for _ in range(2))

    def target(self, layer: int) -> tuple[Tensor, ...]:
        """Where to put the keys and the values of a layer."""
        if not self._direct:
            if layer:
                for slot in self._slots[layer - 1]:
                    for index in range(len(self._store.tiles)):
                        self._store.settle(slot, index)
            return self._buffers
        return tuple(slot.whole for slot in self._slots[layer] if slot.whole is not None)

    def commit(self, layer: int) -> None:
        """What `target` gave is complete (in the order of the compute stream)."""
        if self._direct:
            return
        for slot, value in zip(self._slots[layer], self._buffers, strict=True):
            for index, tile in enumerate(self._store.tiles):
                self._store.save(slot, index, value[:, tile])

    def finish(self) -> None:
        """Every layer is there: the buffers are given back once they have left the device."""
        if not self._direct:
            self.target(len(self._slots))
            self._buffers = ()

    def layers(self) -> Iterator[tuple[Float[Tensor, "g S d"], Float[Tensor, "g S d"]]]:
        """Keys and values of every layer from the bottom up, the next being fetched while one is worked on."""
        assert self._slots, "this context has been put away: another one was read after it"
        heads = (slice(0, self._slots[0][0].shape.heads),)
        following = self._store.read_heads(heads, *self._slots[0]).start()
        for layer in range(len(self._slots)):
            reader = following
            if layer + 1 < len(self._slots):
                following = self._store.read_heads(heads, *self._slots[layer + 1]).start()
            for pair in reader:
                yield pair[0], pair[1]

    def close(self) -> None:
        """Put it away; its memory may be given to another context."""
        self._slots.clear()


def place_of(keep: Keep, shape: ModelShape, tokens: int, *, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether keys and values go to the host: as told, or because the device has no room for all."""
    if keep.place != "auto" or device.type != "cuda":
        return keep.place == "host"
    free_bytes = torch.cuda.mem_get_info(device)[0]
    free_bytes += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return kept_bytes(shape, tokens, dtype, codes=keep.codes) + work_bytes(shape, tokens, dtype) > free_bytes


def work_bytes(shape: ModelShape, tokens: int, dtype: torch.dtype) -> int:
    """Device memory of a forward pass beside weights and kept keys, with a fifth more for what is brief.

    Residual stream, queries, outputs of one kernel call, keys and values on their way, angles.
    """
    numbers = shape.width + 2 * shape.heads * shape.head_dim + 4 * shape.kv_heads * shape.head_dim
    angles_bytes = shape.head_dim * 32
    return int(1.2 * tokens * (numbers * dtype.itemsize + angles_bytes)) + 2**31
