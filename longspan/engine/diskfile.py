"""Anchors in a file: written and read by threads of their own, through a few page-locked buffers."""

import os
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from longspan.engine.hostmemory import HostMemory
from longspan.utils.errors import StorageError
from longspan.utils.files import storage_errors

BUFFERS = 3  # one is filled, one is copied, one is written
Busy = Future[None] | torch.cuda.Event | None


class DiskFile:
    """Pieces of fixed sizes in one file without a name, which ends with the process.

    A piece is written by `begin_write` (a buffer to fill), then `end_write`; `read` gives some of its bytes back in a
    buffer that stays valid until `used` has named the event after which it is free.
    """

    def __init__(self, folder: Path, sizes: Sequence[int], *, host: HostMemory) -> None:
        self._offsets = [0, *accumulate(sizes)]
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file, name = tempfile.mkstemp(dir=folder)
            weakref.finalize(self, os.close, self._file)
            os.unlink(name)
            os.posix_fallocate(self._file, 0, max(1, self._offsets[-1]))
        self._folder = folder
        free: list[tuple[Tensor, Busy]] = [(host.take(max(sizes)), None) for _ in range(BUFFERS)]
        self._buffers = deque(free)  # each with what must end before it is used again
        self._pool = ThreadPoolExecutor(1)
        # No waiting: what is queued holds this object, so the last one to let go of it may be the thread itself.
        weakref.finalize(self, self._pool.shutdown, wait=False)
        self._writes: dict[int, Future[None]] = {}
        self._lent: Tensor | None = None

    def begin_write(self, index: int) -> Tensor:
        """A buffer for piece `index`."""
        self._lent = self._free_buffer()
        return self._lent[: self._offsets[index + 1] - self._offsets[index]]

    def end_write(self, index: int, event: torch.cuda.Event | None, count: int) -> None:
        """Once the event has come, the buffer goes to the file."""
        assert self._lent is not None
        buffer, self._lent = self._lent, None
        write = self._pool.submit(self._write, buffer[:count], self._offsets[index], event)
        self._writes[index] = write
        self._buffers.append((buffer, write))

    def read(self, index: int, start: int, count: int) -> Tensor:
        """`count` bytes of piece `index` from byte `start` on."""
        buffer = self._free_buffer()
        if (write := self._writes.get(index)) is not None:
            write.result()
        self._pool.submit(self._read, buffer[:count], self._offsets[index] + start).result()
        self._lent = buffer
        return buffer[:count]

    def used(self, event: torch.cuda.Event | None) -> None:
        """The buffer of the last `read` is free after this event."""
        assert self._lent is not None
        self._buffers.append((self._lent, event))
        self._lent = None

    def _free_buffer(self) -> Tensor:
        buffer, busy = self._buffers.popleft()
        if isinstance(busy, Future):
            busy.result()
        elif busy is not None:
            busy.synchronize()
        return buffer

    def _write(self, buffer: Tensor, offset: int, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        with storage_errors(self._folder):
            while view:
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written

    def _read(self, buffer: Tensor, offset: int) -> None:
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        with storage_errors(self._folder):
            while view:
                got = os.preadv(self._file, [view], offset)
                if got == 0:
                    raise StorageError("storage.io", "the file of anchors is cut short", where=str(self._folder))
                view, offset = view[got:], offset + got
