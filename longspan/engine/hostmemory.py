"""Page-locked host memory of the exact size, taken once and used again.

PyTorch's own pinned allocator rounds every request up to a power of two, which at these sizes doubles the bytes.
"""

import contextlib
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan.utils.errors import LongspanError

ALIGNMENT = 4096  # bytes; a page, so that direct file access works on every piece


def aligned(count: int) -> int:
    """Bytes that a piece of `count` bytes takes in an arena."""
    return -(-count // ALIGNMENT) * ALIGNMENT


class HostMemory:
    """Pieces of host memory for copies to and from one device, page-locked when that device is a GPU.

    Arenas are kept until `free`: after `reset` their bytes are given out again, so that a second engine of the same
    size takes nothing new. `taken_bytes` counts what the arenas hold.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arenas: list[_Arena] = []
        self._at = 0  # arena that pieces are taken from
        self._used = 0  # bytes of it

    def reserve(self, count: int) -> None:
        """Make sure that `count` bytes more can be given out of one arena, so that locking happens once.

        Raises `LongspanError` (`engine.host-memory`) when the system refuses.
        """
        room = sum(arena.size for arena in self._arenas[self._at :]) - self._used
        if count > room:
            if self._at == self._used == 0:  # nothing is given out: what is too small need not be kept
                self.free()
            self._at, self._used = len(self._arenas), 0
            self._arenas.append(_Arena(aligned(count), self._device))

    def take(self, count: int) -> Tensor:
        """`count` bytes, aligned to a page."""
        need = aligned(count)
        while self._at < len(self._arenas) and self._used + need > self._arenas[self._at].size:
            self._at, self._used = self._at + 1, 0
        if self._at == len(self._arenas):
            self._arenas.append(_Arena(need, self._device))
            self._used = 0
        piece = self._arenas[self._at].bytes[self._used : self._used + count]
        self._used += need
        return piece

    def reset(self) -> None:
        """Give all pieces out again from the start; nobody may use the old ones any more.

        Copies that an engine before left on their way have come to an end then.
        """
        if self._arenas and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._at = self._used = 0

    def free(self) -> None:
        """Give everything back to the system."""
        for arena in self._arenas:
            arena.release()
        self._arenas.clear()
        self.reset()

    @property
    def taken_bytes(self) -> int:
        """Bytes of all arenas."""
        return sum(arena.size for arena in self._arenas)


class _Arena:
    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        try:
            memory = mmap.mmap(-1, size)
        except OSError as error:
            raise _refused(f"the system will not give {size:,} bytes of host memory ({error.strerror})") from error
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping alive
        self.release: Callable[[], object] = lambda: None
        if device.type == "cuda":
            with _near(device):
                status = _runtime().cudaHostRegister(self.bytes.data_ptr(), size, 0)
            if int(status) != 0:
                raise _refused(f"the system will not lock {size:,} bytes of host memory (CUDA error {int(status)})")
            # Unlocked before the mapping goes: the next one may get the same addresses.
            self.release = weakref.finalize(self, _unlock, self.bytes, device)


def _refused(what: str) -> LongspanError:
    return LongspanError(
        "engine.host-memory",
        what,
        where="anchors, or states of the optimizer, in host memory",
        fix="raise the limit of locked memory (ulimit -l), or keep them on the device with "
        'engine.farthest = "device" and train.optimizer.states = "device"',
    )


def _unlock(memory: Tensor, device: torch.device) -> None:
    torch.cuda.synchronize(device)
    _runtime().cudaHostUnregister(memory.data_ptr())


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _near(device: torch.device) -> Iterator[None]:
    """Run on the processors of the GPU's memory node while pages are locked: they are taken from that node then."""
    cpus = _cpus_near(device)
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpus_near(device: torch.device) -> set[int]:
    """Processors of the memory node that the GPU hangs on; empty when the system does not tell."""
    found: Any = torch.cuda.get_device_properties(device)
    place = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    try:
        node = int(Path("/sys/bus/pci/devices", place, "numa_node").read_text())
        text = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text() if node >= 0 else ""
    except (OSError, ValueError):
        return set()
    return parse_cpu_list(text)


def parse_cpu_list(text: str) -> set[int]:
    """Numbers in a list such as `0-3,8`, as Linux writes it."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if part:
            low, _, high = part.partition("-")
            found.update(range(int(low), int(high or low) + 1))
    return found
