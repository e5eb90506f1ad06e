"""One device: every head sees all tokens here."""

import functools
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs, cover, equal_groups, from_zero, stretches
from longspan.attention.functional import Kernel, assemble, batched, tokens
from longspan.attention.online import merge_
from longspan.attention.schemes.base import Scheme, Traits
from longspan.attention.selection import select
from longspan.attention.walk import Merge, Walk

SHORT_TOKENS = 2048  # documents below this share one call: cuDNN would build a plan for every length
WALK_TOKENS = 65536  # keys and values of one head fill 32 MiB: they stay in the 50 MB cache of an H100


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one way of working: short documents together, or long ones of one length as a batch."""

    start: int
    stop: int
    runs: Runs  # counted from the piece's first token
    together: bool


@dataclass(frozen=True, kw_only=True)
class Local(Scheme):
    """No exchange: one kernel call for each stretch of short documents and for each group of long ones.

    `kernel` forces one kernel for everything. `walk_tokens` is the block of keys of `Walk` for longer runs: None takes
    65,536 on a CUDA device and no walk elsewhere; `walk_rows` bounds its queries. The backward pass walks only if
    `backward_walk_tokens` says so: on an H200 one call was as fast. `merge` may be a faster twin of `merge_`.
    """

    traits: ClassVar[Traits] = Traits(sent_forward_bytes=0, sent_backward_bytes=0)

    kernel: Kernel | None = None
    walk_tokens: int | None = None
    walk_rows: int | None = None
    backward_walk_tokens: int | None = None
    short_tokens: int = SHORT_TOKENS
    merge: Merge = merge_

    def forward(
        self,
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        *,
        runs: Runs,
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
        """Pieces in turn, laid side by side."""
        window, pieces = self._plan(runs, q.shape[1], window)
        parts = (self._forward(piece, q, k, v, window=window) for piece in pieces)
        o, lse = assemble(parts, q.shape[1])
        return o, lse

    def backward(
        self,
        do: Float[Tensor, "h T d"],
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        o: Float[Tensor, "h T d"],
        lse: Float[Tensor, "h T"],
        *,
        runs: Runs,
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "g T d"], Float[Tensor, "g T d"]]:
        """Pieces in turn, laid side by side."""
        window, pieces = self._plan(runs, q.shape[1], window)
        parts = (self._backward(piece, do, q, k, v, o, lse, window=window) for piece in pieces)
        dq, dk, dv = assemble(parts, q.shape[1])
        return dq, dk, dv

    def _plan(self, runs: Runs, length: int, window: int | None) -> tuple[int | None, tuple[Piece, ...]]:
        """The window, if it hides anything, and the pieces; under a window all documents go together."""
        if window is not None and window < max(stop - start for start, stop in runs):
            return window, pieces_of(runs, length, short_tokens=length + 1)
        return None, pieces_of(runs, length, short_tokens=self.short_tokens)

    def _forward(self, piece: Piece, *tensors: Tensor, window: int | None) -> tuple[Tensor, ...]:
        q, k, v = (x[:, piece.start : piece.stop] for x in tensors)
        kernel = self._kernel(q, k, piece, window=window)
        if piece.together:
            return kernel.forward_documents(q, k, v, runs=piece.runs, window=window)
        (group,) = equal_groups(piece.runs)
        rows = batched(group, q, k, v)
        keys = self.walk_tokens or (WALK_TOKENS if q.is_cuda else group.length)
        if keys < group.length:
            found = Walk(kernel=kernel, keys=keys, rows=self.walk_rows, merge=self.merge).forward(*rows)
        else:
            found = kernel.forward(*rows, causal=True)
        return tuple(tokens(x) for x in found)

    def _backward(self, piece: Piece, *tensors: Tensor, window: int | None) -> tuple[Tensor, ...]:
        do, q, k, v, o, lse = (x[:, piece.start : piece.stop] for x in tensors)
        kernel = self._kernel(q, k, piece, window=window)
        if piece.together:
            return kernel.backward_documents(do, q, k, v, o, lse, runs=piece.runs, window=window)
        (group,) = equal_groups(piece.runs)
        rows = batched(group, do, q, k, v, o, lse)
        keys = self.backward_walk_tokens
        if keys is not None and keys < group.length:
            found = Walk(kernel=kernel, keys=keys, rows=self.walk_rows, merge=self.merge).backward(*rows)
        else:
            found = kernel.backward(*rows, causal=True)
        return tuple(tokens(x) for x in found)

    def _kernel(self, q: Tensor, k: Tensor, piece: Piece, *, window: int | None) -> Kernel:
        return self.kernel or select(
            q.device,
            q.dtype,
            head_dim=q.shape[2],
            ratio=q.shape[0] // k.shape[0],
            window=window is not None,
            short=piece.together,
        )


@functools.lru_cache(maxsize=8)
def pieces_of(runs: Runs, length: int, *, short_tokens: int) -> tuple[Piece, ...]:
    """How runs over `length` tokens are worked on; kept, because every layer and head group asks for the same."""
    assert cover(runs, length), "documents lie one after another and cover all tokens"
    found = []
    for short, members in stretches(runs, short_tokens):
        if short:
            found.append(Piece(members[0][0], members[-1][1], from_zero(members), together=True))
            continue
        for group in equal_groups(members):
            rows = tuple((i * group.length, (i + 1) * group.length) for i in range(group.count))
            found.append(Piece(group.start, group.stop, rows, together=False))
    return tuple(found)
