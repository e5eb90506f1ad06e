"""Watching memory while a step runs: a thread that samples, and marks where phases begin."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch

from longspan.pipeline.benchparts import resident_bytes
from longspan.report.timeline import MemoryTrace

EVERY_SECONDS = 0.002


def memory_in_use(device: torch.device) -> Callable[[], int]:
    """Bytes in use now: of live tensors on a GPU, of the process's pages elsewhere."""
    if device.type == "cuda":
        return lambda: torch.cuda.memory_allocated(device)
    return resident_bytes


class MemoryWatch:
    """Samples memory inside a `with` block; `mark` names the phase that begins. `trace` is what was seen.

    A mark waits for the device, so that phases stand where they ran and not where they were asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._read = device, memory_in_use(device)
        self._samples: list[tuple[float, int]] = []
        self._phases: list[tuple[float, str]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._start = 0.0

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._take()

    def mark(self, name: str) -> None:
        """A phase begins."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._phases.append((time.monotonic() - self._start, name))

    @property
    def trace(self) -> MemoryTrace:
        """Samples and phases so far; the phase "end" is none."""
        phases = tuple((seconds, name) for seconds, name in self._phases if name != "end")
        return MemoryTrace(samples=tuple(self._samples), phases=phases)

    def _sample(self) -> None:
        while not self._done.is_set():
            self._take()
            self._done.wait(EVERY_SECONDS)

    def _take(self) -> None:
        self._samples.append((time.monotonic() - self._start, self._read()))
