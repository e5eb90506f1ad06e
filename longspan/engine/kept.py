"""Keys and values of one context in every layer, on the device or in page-locked host memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longspan.engine.settings import Tier
from longspan.engine.store import Slot, SlotShape, Store
from longspan.shape import ModelShape

Place = Literal["auto", "device", "host"]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How keys and values are kept. With `auto` the layers that the device has no room for go to the host.

    `codes` keeps them as fp8 numbers with a scale each head of a token: half the bytes of bfloat16, and not exact.
    """

    place: Place = "auto"
    codes: bool = False


def layer_bytes(shape: ModelShape, tokens: int, dtype: torch.dtype, *, codes: bool) -> int:
    """Bytes of the keys and values of so many tokens in one layer."""
    slot = SlotShape(shape.kv_heads, (shape.head_dim,), dtype, lossy=codes)
    return 2 * sum(kept.bytes_of(tokens) for kept in slot.kept)


class Kept:
    """The rotated keys and the values `[g, S, d]` of every layer, filled from the bottom up, then read at will.

    The lowest `on_device` layers stay on the device, those above go to the host. Keys and values that stay as they are
    are computed in place; others pass through two buffers of `[g, S, d]`. A rank may have some tokens of the context
    only: those at `places`, of `length` in all.
    """

    def __init__(
        self,
        shape: ModelShape,
        store: Store,
        places: Int[Tensor, " S"],
        *,
        length: int,
        dtype: torch.dtype,
        on_device: int,
        codes: bool,
    ) -> None:
        self._store, self.on_device = store, on_device
        self.places, self.length = places, length
        slot = SlotShape(shape.kv_heads, (shape.head_dim,), dtype, lossy=codes)
        self._slots: list[tuple[Slot, Slot]] = []
        for layer in range(shape.layers):
            tier: Tier = "device" if layer < on_device else "host"
            self._slots.append((store.slot(slot, tier), store.slot(slot, tier)))
        self._direct = 0 if codes else on_device
        self._size, self._dtype = slot.of(len(places)), dtype
        self._buffers: tuple[Tensor, ...] = ()

    def target(self, layer: int) -> tuple[Tensor, ...]:
        """Where to put the keys and the values of a layer."""
        if layer < self._direct:
            return tuple(slot.whole for slot in self._slots[layer] if slot.whole is not None)
        if not self._buffers:
            device = self._store.device
            self._buffers = tuple(torch.empty(self._size, dtype=self._dtype, device=device) for _ in range(2))
        if layer > self._direct:
            self._settle(layer - 1)
        return self._buffers

    def commit(self, layer: int) -> None:
        """What `target` gave is complete (in the order of the compute stream)."""
        if layer < self._direct:
            return
        for slot, value in zip(self._slots[layer], self._buffers, strict=True):
            for index, tile in enumerate(self._store.tiles):
                self._store.save(slot, index, value[:, tile])

    def finish(self) -> None:
        """Every layer is there: the buffers are given back once their last content has left the device."""
        if self._buffers:
            self._settle(len(self._slots) - 1)
            self._buffers = ()

    def layers(self) -> Iterator[tuple[Float[Tensor, "g S d"], Float[Tensor, "g S d"]]]:
        """Keys and values of every layer from the bottom up, the next being fetched while one is worked on."""
        assert self._slots, "this context has been put away: another one was read after it"
        heads = (slice(0, self._size[0]),)
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

    def _settle(self, layer: int) -> None:
        for slot in self._slots[layer]:
            for kept in slot.kept:
                for index in range(len(self._store.tiles)):
                    self._store.settle(kept, index)


def layers_on_device(keep: Keep, shape: ModelShape, tokens: int, *, dtype: torch.dtype, device: torch.device) -> int:
    """How many layers keep their keys and values on the device: as told, or as many as it has room for."""
    if keep.place != "auto" or device.type != "cuda":
        return 0 if keep.place == "host" else shape.layers
    free_bytes: int = torch.cuda.mem_get_info(device)[0]
    free_bytes += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room_bytes = free_bytes - work_bytes(shape, tokens, dtype)
    return max(0, min(shape.layers, room_bytes // layer_bytes(shape, tokens, dtype, codes=keep.codes)))


def work_bytes(shape: ModelShape, tokens: int, dtype: torch.dtype) -> int:
    """Device memory of reading a context beside weights and kept keys, with a tenth more, and 3 GiB for what is brief.

    Residual stream, queries, one kernel call's output, the keys and values of a layer on their way, angles. Asking
    takes less: two layers' keys and values.
    """
    ratio = shape.heads // shape.kv_heads
    numbers = shape.width + (shape.heads + 2 * shape.kv_heads + 2 * ratio) * shape.head_dim
    angles_bytes = 16 * shape.head_dim
    return int(1.1 * tokens * (numbers * dtype.itemsize + angles_bytes)) + 3 * 2**30
