"""Where anchors live between the forward and the backward pass, and how they travel, tile by tile, on side streams.

A slot holds one tensor with a token dim: on the device, in page-locked host memory, or in a file. Copies run on two
streams of their own, one a direction; events order them against the compute stream, and the host never waits for a
copy unless a file is behind it. On a CPU the same code copies at once.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longspan.engine.anchors import scale_block
from longspan.engine.diskfile import BUFFERS, DiskFile
from longspan.engine.hostmemory import HostMemory, aligned
from longspan.engine.lossy import CODE, SCALE, decode, encode
from longspan.engine.settings import Tier

DEPTH = 2  # buffers of a reader: one is worked on while the next is filled


@dataclass(frozen=True)
class SlotShape:
    """What one token, or one token of one head, takes: `[T, *rest]`, or `[heads, T, *rest]` when `heads` is given.

    A `lossy` one is kept as fp8 codes and their scales, and comes back in `dtype`.
    """

    heads: int | None
    rest: tuple[int, ...]
    dtype: torch.dtype
    lossy: bool = False

    @property
    def kept(self) -> tuple["SlotShape", ...]:
        """What is kept of it: itself, or codes and scales."""
        if not self.lossy:
            return (self,)
        *outer, width = self.rest
        scales = (*outer, width // scale_block(width))
        return SlotShape(self.heads, self.rest, CODE), SlotShape(self.heads, scales, SCALE)

    def of(self, tokens: int) -> tuple[int, ...]:
        """The shape of so many tokens."""
        return (tokens, *self.rest) if self.heads is None else (self.heads, tokens, *self.rest)

    def bytes_of(self, tokens: int) -> int:
        """Bytes of so many tokens."""
        return torch.Size(self.of(tokens)).numel() * self.dtype.itemsize


class Slot:
    """One anchor. `tier` says where it lives; `written[i]` is the event after which tile i may be read."""

    def __init__(self, shape: SlotShape, tier: Tier, *, tiles: int) -> None:
        self.shape, self.tier = shape, tier
        self.whole: Tensor | None = None  # on the device: natural layout
        self.parts: list[Tensor] = []  # on the host: each tile's bytes, contiguous
        self.file: DiskFile | None = None
        self.written: list[torch.cuda.Event | None] = [None] * tiles
        self.inner: tuple[Slot, ...] = ()  # of a lossy slot: codes and scales, which hold all it has

    @property
    def kept(self) -> tuple["Slot", ...]:
        """The slots that hold the bytes."""
        return self.inner or (self,)

    def device_tile(self, tile: slice) -> Tensor:
        """A view of one tile of a device slot."""
        assert self.whole is not None
        return self.whole[tile] if self.shape.heads is None else self.whole[:, tile]

    def host_tile(self, index: int, tokens: int) -> Tensor:
        """One tile of a host slot, contiguous."""
        size = self.shape.of(tokens)
        return self.parts[index][: self.shape.bytes_of(tokens)].view(self.shape.dtype).view(size)


class Store:
    """Slots of one engine. `tokens` is the most that a batch may hold, `tile_tokens` the tokens of a tile.

    `begin` says how many tokens the batch at hand has. `measure` times how long the compute stream waits for copies.
    """

    def __init__(
        self, device: torch.device, *, tokens: int, tile_tokens: int, host: HostMemory, folder: Path | None = None
    ) -> None:
        self.device, self._host, self._folder = device, host, folder
        self.tile_tokens = tile_tokens
        self.capacity = tokens
        self._lengths = [min(tile_tokens, tokens - start) for start in range(0, tokens, tile_tokens)]
        self.measure = False
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._staging: dict[tuple[int, SlotShape], Tensor] = {}
        self._staged: dict[tuple[int, SlotShape], torch.cuda.Event] = {}
        cuda = device.type == "cuda"
        self._to_host, self._to_device = (_new_stream(device) if cuda else None for _ in range(2))
        self.tiles: tuple[slice, ...] = ()
        self.begin(tokens)

    def begin(self, tokens: int) -> None:
        """Cut a batch of so many tokens into tiles."""
        assert 0 < tokens <= self.capacity
        starts = range(0, tokens, self.tile_tokens)
        self.tiles = tuple(slice(start, min(start + self.tile_tokens, tokens)) for start in starts)
        for stream in (self._to_host, self._to_device):
            if stream is not None:  # a pass that was broken off may have left copies on their way
                self._compute.wait_stream(stream)

    def host_bytes(self, shape: SlotShape, tier: Tier) -> int:
        """Host memory that a slot of this shape takes in a tier."""
        total = 0
        for kept in shape.kept:
            sizes = [aligned(kept.bytes_of(length)) for length in self._lengths]
            total += {"device": 0, "host": sum(sizes), "disk": BUFFERS * max(sizes)}[tier]
        return total

    def slot(self, shape: SlotShape, tier: Tier) -> Slot:
        """A new slot for `tokens` tokens, its memory taken for as long as the store lives."""
        lengths = self._lengths
        slot = Slot(shape, tier, tiles=len(lengths))
        if shape.lossy:
            slot.inner = tuple(self.slot(kept, tier) for kept in shape.kept)
        elif tier == "device":
            slot.whole = torch.empty(shape.of(self.capacity), dtype=shape.dtype, device=self.device)
        elif tier == "host":
            slot.parts = [self._host.take(shape.bytes_of(length)) for length in lengths]
        else:
            assert self._folder is not None, "anchors in files need a folder"
            slot.file = DiskFile(self._folder, [shape.bytes_of(length) for length in lengths], host=self._host)
        return slot

    # -- writing --------------------------------------------------------------------------------------------------

    def target(self, slot: Slot, index: int) -> Tensor:
        """A device tensor to compute tile `index` of the slot into; `commit` sends it on its way."""
        tile = self.tiles[index]
        if slot.tier == "device" and not slot.inner:
            return slot.device_tile(tile)
        key = (index % DEPTH, slot.shape)
        if key not in self._staging:
            self._staging[key] = torch.empty(
                slot.shape.of(self.tile_tokens), dtype=slot.shape.dtype, device=self.device
            )
        if key in self._staged:  # the copy that used this buffer before must have read it
            self._compute.wait_event(self._staged[key])
        return self._staged_tile(slot, index)

    def commit(self, slot: Slot, index: int) -> None:
        """The tensor from `target` is complete (in the order of the compute stream)."""
        if slot.tier != "device" or slot.inner:
            self.save(slot, index, self._staged_tile(slot, index))
            if (event := slot.written[index]) is not None:
                self._staged[(index % DEPTH, slot.shape)] = event

    def _staged_tile(self, slot: Slot, index: int) -> Tensor:
        """What `target` gives of a slot elsewhere, without waiting."""
        tokens = self.tiles[index].stop - self.tiles[index].start
        staged = self._staging[(index % DEPTH, slot.shape)]
        return staged[:tokens] if slot.shape.heads is None else staged[:, :tokens]

    def save(self, slot: Slot, index: int, value: Tensor) -> None:
        """Copy a device tensor into tile `index`; it must not be overwritten before `settle(slot, index)`."""
        tile = self.tiles[index]
        if slot.inner:  # the codes have staging buffers of their own: what they were made from is free at once
            encode(value, *(self.target(inner, index) for inner in slot.inner))
            for inner in slot.inner:
                self.commit(inner, index)
            return
        if slot.tier == "device":
            slot.device_tile(tile).copy_(value)
            return
        if slot.tier == "disk":
            assert slot.file is not None
            place = slot.file.begin_write(index).view(slot.shape.dtype)[: value.numel()].view(value.shape)
        else:
            place = slot.host_tile(index, tile.stop - tile.start)
        with self._behind_compute(self._to_host) as done:
            _copy(place, value)
        slot.written[index] = done()
        if slot.file is not None:
            slot.file.end_write(index, slot.written[index], value.numel() * value.element_size())

    def settle(self, slot: Slot, index: int) -> None:
        """Let the compute stream wait until tile `index` has left the device, so that its source may change."""
        if (event := slot.written[index]) is not None:
            self._compute.wait_event(event)

    # -- reading --------------------------------------------------------------------------------------------------

    def read_tiles(self, *slots: Slot) -> "Reader":
        """Every tile of the slots in order, as device tensors."""

        def fetch(index: int, buffers: list[Tensor | None]) -> list[Tensor]:
            tile = self.tiles[index]
            found = []
            for slot, buffer in zip(_kept(slots), buffers, strict=True):
                if buffer is None:
                    found.append(slot.device_tile(tile))
                    continue
                tokens = tile.stop - tile.start
                view = buffer[: slot.shape.bytes_of(tokens)].view(slot.shape.dtype).view(slot.shape.of(tokens))
                self._load(view, slot, index)
                found.append(view)
            return found

        def size_of(shape: SlotShape) -> int:
            return shape.bytes_of(self.tile_tokens)

        return Reader(self, len(self.tiles), size_of, fetch, slots, lambda index: (index,))

    def read_heads(self, groups: Sequence[slice], *slots: Slot) -> "Reader":
        """For every group of heads all tokens of the slots' heads in it, head-major and contiguous in the tokens."""
        total = self.tiles[-1].stop

        def fetch(index: int, buffers: list[Tensor | None]) -> list[Tensor]:
            heads = groups[index]
            found = []
            for slot, buffer in zip(_kept(slots), buffers, strict=True):
                if buffer is None:
                    assert slot.whole is not None
                    found.append(slot.whole[heads, :total])
                    continue
                size = (heads.stop - heads.start, total, *slot.shape.rest)
                count = torch.Size(size).numel() * slot.shape.dtype.itemsize
                view = buffer[:count].view(slot.shape.dtype).view(size)
                for number, tile in enumerate(self.tiles):
                    self._load(view[:, tile], slot, number, heads)
                found.append(view)
            return found

        widest: int = max(group.stop - group.start for group in groups)

        def size_of(shape: SlotShape) -> int:
            assert shape.heads is not None
            return shape.bytes_of(total) // shape.heads * widest

        return Reader(self, len(groups), size_of, fetch, slots, lambda _: range(len(self.tiles)))

    def _load(self, into: Tensor, slot: Slot, index: int, heads: slice | None = None) -> None:
        """Copy one tile of a slot, or some heads of it, from the host or the file into a device tensor."""
        tokens = self.tiles[index].stop - self.tiles[index].start
        if slot.file is None:
            tile = slot.host_tile(index, tokens)
            _copy(into, tile if heads is None else tile[heads])
            return
        count = into.numel() * into.element_size()
        start = 0 if heads is None else heads.start * (slot.shape.bytes_of(tokens) // slot.shape.of(tokens)[0])
        piece = slot.file.read(index, start, count)
        _copy(into, piece.view(slot.shape.dtype).view(into.shape))
        slot.file.used(None if self._to_device is None else self._to_device.record_event())

    # -- streams --------------------------------------------------------------------------------------------------

    @property
    def _compute(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    @contextlib.contextmanager
    def _behind_compute(self, stream: torch.cuda.Stream | None) -> Iterator[Callable[[], torch.cuda.Event | None]]:
        """Work on a side stream that starts after all that the compute stream has been given so far."""
        if stream is None:
            yield lambda: None
            return
        stream.wait_stream(self._compute)
        with torch.cuda.stream(stream):
            yield lambda: stream.record_event()

    def wait(self, event: torch.cuda.Event | None) -> None:
        """Let the compute stream wait for a copy, timed when `measure` is on."""
        if event is None:
            return
        if not self.measure:
            self._compute.wait_event(event)
            return
        before, after = _new_timer(), _new_timer()
        before.record(self._compute)
        self._compute.wait_event(event)
        after.record(self._compute)
        self._waits.append((before, after))

    def stall_seconds(self) -> float:
        """How long the compute stream waited for copies since the last call, by its own clock."""
        if self._waits:
            torch.cuda.synchronize(self.device)
        total: float = sum(before.elapsed_time(after) for before, after in self._waits) / 1e3
        self._waits.clear()
        return total


class Reader:
    """Items of some slots on the device, in order; the next one is copied while the present one is worked on.

    `start` sends the first item on its way early. An item's tensors are valid until the next one is asked for. Lossy
    ones are decoded when they are handed out, into one buffer each. `size_of` gives the most bytes that an item has.
    """

    def __init__(
        self,
        store: Store,
        count: int,
        size_of: Callable[[SlotShape], int],
        fetch: Callable[[int, list[Tensor | None]], list[Tensor]],
        slots: Sequence[Slot],
        tiles_of: Callable[[int], Sequence[int]],
    ) -> None:
        self._store, self._count, self._size_of, self._fetch = store, count, size_of, fetch
        self._slots, self._kept, self._tiles_of = slots, _kept(slots), tiles_of
        self._copies = any(slot.tier != "device" for slot in slots)
        self._rings: list[list[Tensor | None]] = []
        self._decoded: list[Tensor | None] = []
        self._next: tuple[list[Tensor], torch.cuda.Event | None] | None = None

    def start(self) -> "Reader":
        """Begin with the first item, if that has not happened yet; the reader comes back."""
        if self._next is None:
            depth = min(DEPTH, self._count)
            self._rings = [[self._buffer(slot, slot.tier != "device") for slot in self._kept] for _ in range(depth)]
            self._decoded = [self._buffer(slot, slot.shape.lossy) for slot in self._slots]
            self._next = self._begin(0)
        return self

    def __iter__(self) -> Iterator[list[Tensor]]:
        """The tensors of every item."""
        self.start()
        for index in itertools.count():
            assert self._next is not None
            tensors, event = self._next
            if index + 1 < self._count:
                self._next = self._begin(index + 1)
            self._store.wait(event)
            yield self._whole(tensors)
            if index + 1 == self._count:
                return

    def _buffer(self, slot: Slot, wanted: bool) -> Tensor | None:
        size = self._size_of(slot.shape)
        return torch.empty(size, dtype=torch.uint8, device=self._store.device) if wanted else None

    def _whole(self, kept: list[Tensor]) -> list[Tensor]:
        """The tensors of an item, those of lossy slots decoded."""
        found, parts = [], iter(kept)
        for slot, buffer in zip(self._slots, self._decoded, strict=True):
            tensor = next(parts)
            if buffer is not None:
                codes, size = tensor, tensor.numel() * slot.shape.dtype.itemsize
                tensor = buffer[:size].view(slot.shape.dtype).view(codes.shape)
                decode(codes, next(parts), tensor)
            found.append(tensor)
        return found

    def _begin(self, index: int) -> tuple[list[Tensor], torch.cuda.Event | None]:
        buffers = self._rings[index % len(self._rings)]
        stream = self._store._to_device
        if not self._copies or stream is None:
            return self._fetch(index, buffers), None
        with self._store._behind_compute(stream) as done:
            for slot in self._kept:
                for tile in self._tiles_of(index):
                    if (event := slot.written[tile]) is not None:
                        stream.wait_event(event)
            tensors = self._fetch(index, buffers)
            return tensors, done()


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _new_timer() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _kept(slots: Sequence[Slot]) -> list[Slot]:
    """The slots that hold the bytes of these, in order."""
    return [kept for slot in slots for kept in slot.kept]


def _copy(into: Tensor, value: Tensor) -> None:
    """Copy between devices in contiguous pieces: torch would gather others on the host, and wait."""
    if into.is_contiguous() and value.is_contiguous():
        into.copy_(value, non_blocking=True)
    else:
        for mine, other in zip(into, value, strict=True):
            _copy(mine, other)
