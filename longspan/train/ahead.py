"""Rows built ahead: one thread builds the next step's batches while the device works on this one's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from longspan.batch import Batch

Batches = Callable[[int, int, int], Batch]  # (stage, first row of the stage, rows)
Request = tuple[int, int, int]


class RowsAhead:
    """Builds the batches of `steps`, each a list of requests, in their order and never more than one step ahead.

    Use it in a `with` block: no thread is left behind it. `pin` puts what is built into page-locked memory.
    """

    def __init__(self, build: Batches, steps: Iterable[Sequence[Request]], *, pin: bool) -> None:
        self._build, self._steps, self._pin = build, iter(steps), pin
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
        self._coming: list[Future[Batch]] = []

    def __enter__(self) -> Self:
        self._begin_next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def step(self) -> Iterator[Batch]:
        """The batches of the next step, as they are ready; the step after it is begun when the last one is.

        Whatever building raises is raised here.
        """
        futures, self._coming = self._coming, []
        futures.reverse()
        while futures:
            batch = futures.pop().result()
            if not futures:
                self._begin_next()
            yield batch

    def _begin_next(self) -> None:
        self._coming = [self._pool.submit(self._made, request) for request in next(self._steps, ())]

    def _made(self, request: Request) -> Batch:
        batch = self._build(*request)
        return batch.changed(torch.Tensor.pin_memory) if self._pin else batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; what is in page-locked memory is copied while the host goes on."""
    return batch.changed(lambda tensor: tensor.to(device, non_blocking=True))
