"""Work that goes on beside training: a copy of tensors in host memory, and a thread that ends with the process."""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from longspan.engine.hostmemory import HostMemory, aligned
from longspan.utils.errors import LongspanError


class HostCopy:
    """One copy of tensors in host memory, page-locked when they come from a GPU; its memory is taken once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = HostMemory(device)

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the memory for these. Raises `LongspanError` (`checkpoint.host-memory`) when there is not enough."""
        self._memory.reset()
        try:
            self._memory.reserve(sum(aligned(tensor.nbytes) for tensor in tensors.values()))
        except LongspanError as error:
            raise LongspanError(
                "checkpoint.host-memory",
                f"no room for the copy that is saved from while training goes on: {error.what}",
                where="recipe: train.save",
                fix='set train.save = "blocking", which needs no copy and halts training for the time of a save',
            ) from error

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of these; those taken before are gone."""
        self._memory.reset()
        copies = {}
        for name, tensor in tensors.items():
            copies[name] = self._memory.take(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
            copies[name].copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return copies

    def close(self) -> None:
        """Give the memory back."""
        self._memory.free()


class Background:
    """A function at work in a thread. The process may end before it does."""

    def __init__(self, work: Callable[[], None], *, name: str) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised by `finish`, in the thread that waits
            self._error = error

    def ended(self, *, within_seconds: float | None) -> bool:
        """Wait for the end so long, or as long as it takes; whether it has come."""
        self._thread.join(within_seconds)
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Wait for the end, and raise what the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
