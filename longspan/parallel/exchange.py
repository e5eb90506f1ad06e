"""What ranks of one axis send each other: plain calls without autograd, which begin at once and are waited for later.

Ranks may hold unequal numbers of tokens, also none; every rank knows the others' shapes, so nothing is sent to tell
them. An axis of one rank sends nothing. Failures are `parallel.lost`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, distributed

from longspan.parallel.dist import Axis

T = TypeVar("T")
Shape = tuple[int, ...]

# Two collectives on single tensors were renamed in torch 2.13.
_all_gather: Callable[..., Any] = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)
_reduce_scatter: Callable[..., Any] = getattr(distributed, "reduce_scatter_single", distributed.reduce_scatter_tensor)


@dataclass(frozen=True)
class Pending(Generic[T]):
    """An exchange under way. What is sent and what arrives must be left alone until `wait` gives the result."""

    axis: Axis
    operation: str
    result: T
    works: Sequence[Any] = ()
    kept: Sequence[Tensor] = field(default=(), repr=False)  # buffers that are read until the end

    def wait(self) -> T:
        """The result, as soon as it is there; work on the device queues up behind it."""
        if self.axis.size > 1:  # also with nothing to wait for: all ranks count the same exchanges
            with self.axis.within(self.operation, waits=True):
                for work in self.works:
                    self.axis.wait(work)
        return self.result


def ring_step(x: Tensor, axis: Axis, *, shape: Shape, operation: str = "ring step") -> Pending[Tensor]:
    """Send x to the next rank, and get a tensor of `shape` from the one before."""
    if axis.size == 1:
        return Pending(axis, operation, x)
    arrived = x.new_empty(shape)
    after, before = (axis.rank + 1) % axis.size, (axis.rank - 1) % axis.size
    return _messages([(after, x.contiguous())], [(before, arrived)], axis, operation, arrived)


def all_to_all(
    sent: Sequence[Sequence[Tensor]],
    axis: Axis,
    *,
    shapes: Sequence[Sequence[Shape]],
    operation: str = "all-to-all",
) -> list[Pending[list[Tensor]]]:
    """Send part i of each of several tensors to rank i, and get their parts of `shapes` from all; one call for all.

    Each tensor is waited for by itself, in any order.
    """
    others = [rank for rank in range(axis.size) if rank != axis.rank]
    leaving = [[part.contiguous() if rank != axis.rank else part for rank, part in enumerate(parts)] for parts in sent]
    arrived = [
        [parts[rank] if rank == axis.rank else parts[rank].new_empty(shape) for rank, shape in enumerate(wanted)]
        for parts, wanted in zip(leaving, shapes, strict=True)
    ]
    pending = _messages(
        [(rank, parts[rank]) for parts in leaving for rank in others],
        [(rank, parts[rank]) for parts in arrived for rank in others],
        axis,
        operation,
        None,
    )
    works = [_Together(pending.works)] if pending.works else []
    return [
        Pending(axis, pending.operation, parts, works, [own[rank] for rank in others])
        for parts, own in zip(arrived, leaving, strict=True)
    ]


@dataclass
class _Together:
    """Messages of several results: the first that is waited for waits for all."""

    works: Sequence[Any]

    def wait(self, *deadline: Any) -> None:
        """Once."""
        works, self.works = self.works, ()
        for work in works:
            work.wait(*deadline)


def all_gather(
    x: Tensor, axis: Axis, *, sizes: Sequence[int], dim: int, operation: str = "all-gather"
) -> Pending[list[Tensor]]:
    """Everybody's x, in the order of the ranks; rank i has `sizes[i]` in `dim`. All travel padded to the largest."""
    if axis.size == 1:
        return Pending(axis, operation, [x])
    padded = _padded(x, max(sizes), dim=dim)
    buffer = x.new_empty(axis.size, *padded.shape)
    operation = axis.named(operation)
    with axis.within(operation):
        work = _all_gather(buffer.view(-1), padded.view(-1), group=axis.group, async_op=True)
    found = [part.narrow(dim, 0, size) for part, size in zip(buffer, sizes, strict=True)]
    return Pending(axis, operation, found, [work], [padded])


def reduce_scatter(
    shares: Sequence[Tensor], axis: Axis, *, dim: int, operation: str = "reduce-scatter"
) -> Pending[Tensor]:
    """The sum over ranks of what each has for this one; `shares[i]` is for rank i. Padded to the largest in `dim`."""
    own = shares[axis.rank]
    if axis.size == 1:
        return Pending(axis, operation, own)
    largest = max(share.shape[dim] for share in shares)
    buffer = torch.stack([_padded(share, largest, dim=dim) for share in shares])
    total = torch.empty_like(buffer[0])
    operation = axis.named(operation)
    with axis.within(operation):
        work = _reduce_scatter(total.view(-1), buffer.view(-1), group=axis.group, async_op=True)
    return Pending(axis, operation, total.narrow(dim, 0, own.shape[dim]), [work], [buffer])


def reduce_rows(x: Tensor, axis: Axis, *, operation: str = "reduce-scatter of rows") -> Pending[Tensor]:
    """This rank's rows of the sum over ranks, when all have ⌈rows/ranks⌉ and the last ones what is left."""
    if axis.size == 1:
        return Pending(axis, operation, x)
    rows, most = x.shape[0], -(-x.shape[0] // axis.size)
    padded = _padded(x, most * axis.size, dim=0)
    total = x.new_empty(most, *x.shape[1:])
    operation = axis.named(operation)
    with axis.within(operation):
        work = _reduce_scatter(total.view(-1), padded.view(-1), group=axis.group, async_op=True)
    own = max(0, min(most, rows - axis.rank * most))
    return Pending(axis, operation, total[:own], [work], [padded])


def all_reduce_(x: Tensor, axis: Axis, *, operation: str = "all-reduce") -> Pending[Tensor]:
    """The sum over all ranks, in place."""
    if axis.size == 1:
        return Pending(axis, operation, x)
    operation = axis.named(operation)
    with axis.within(operation):
        work = distributed.all_reduce(x, group=axis.group, async_op=True)
    return Pending(axis, operation, x, [work])


def broadcast_(x: Tensor, axis: Axis, *, operation: str = "broadcast") -> Pending[Tensor]:
    """The first rank's x, in place."""
    if axis.size == 1:
        return Pending(axis, operation, x)
    operation = axis.named(operation)
    with axis.within(operation):
        work = distributed.broadcast(x, group=axis.group, group_src=0, async_op=True)
    return Pending(axis, operation, x, [work])


def _messages(
    sent: Sequence[tuple[int, Tensor]], arriving: Sequence[tuple[int, Tensor]], axis: Axis, operation: str, result: T
) -> Pending[T]:
    """Messages to and from ranks, as one batch; empty ones are left out on both sides."""
    sends = [(distributed.isend, rank, x) for rank, x in sent if x.numel()]
    receives = [(distributed.irecv, rank, x) for rank, x in arriving if x.numel()]
    batch = [distributed.P2POp(op, x, group=axis.group, group_peer=rank) for op, rank, x in sends + receives]
    if axis.size == 1:
        return Pending(axis, operation, result)
    operation = axis.named(operation)
    with axis.within(operation):
        works = distributed.batch_isend_irecv(batch) if batch else []
    return Pending(axis, operation, result, works, [x for _, _, x in sends])


def _padded(x: Tensor, size: int, *, dim: int) -> Tensor:
    """x with room for `size` in `dim`, contiguous; what is in the room does not matter, but is no NaN."""
    if x.shape[dim] == size:
        return x.contiguous()
    shape = list(x.shape)
    shape[dim] = size
    found = x.new_zeros(shape)
    found.narrow(dim, 0, x.shape[dim]).copy_(x)
    return found
