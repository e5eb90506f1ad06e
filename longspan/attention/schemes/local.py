"""One device: every head sees all tokens here."""

import functools
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs, cover, equal_groups, from_zero, stretches
from longspan.attention.functional import Kernel, assemble, batched, tokens
from longspan.attention.online import merge_
from longspan.attention.schemes.base import Scheme
from longspan.attention.selection import select
from longspan.attention.walk import Merge, backward_in_parts, forward_in_blocks, parts_of

# Documents below this share one call of the slower kernel that takes any lengths: cuDNN builds a plan for each, which
# pays from 16,384 tokens on in the first step of a model of 32 layers. Rows of one length need one plan only.
SHORT_TOKENS, SHORT_ROWS_TOKENS = 16384, 2048
LONG_TOKENS = 98304  # documents from here on are faster or smaller in several calls
BLOCK_TOKENS = 32768


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one way of working: short documents together, or long ones of one length as a batch."""

    start: int
    stop: int
    runs: Runs  # counted from the piece's first token
    together: bool


@dataclass(frozen=True, kw_only=True)
class Local(Scheme):
    """No exchange: one kernel call for each stretch of short documents and for each group of longer ones.

    Runs of `long_tokens` or more go forward in blocks of `block_tokens` queries, merged in float32 by `merge` or a
    faster twin of it, and backward in single query heads. `kernel` forces one kernel for everything.
    """

    kernel: Kernel | None = None
    short_tokens: int = SHORT_TOKENS
    long_tokens: int = LONG_TOKENS
    block_tokens: int = BLOCK_TOKENS
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

    # -- for schemes that bring keys from elsewhere ---------------------------------------------------------------

    def full(
        self, q: Float[Tensor, "h s d"], k: Float[Tensor, "g t d"], v: Float[Tensor, "g t d"]
    ) -> tuple[Float[Tensor, "h s d"], Float[Tensor, "h s"]]:
        """Every query sees every key: a part of attention, to be merged with others by `merge`."""
        o, lse = self._kernel(q, k).forward(q[None], k[None], v[None], causal=False)
        return o[0], lse[0]

    def full_backward(
        self,
        do: Float[Tensor, "h s d"],
        q: Float[Tensor, "h s d"],
        k: Float[Tensor, "g t d"],
        v: Float[Tensor, "g t d"],
        o: Float[Tensor, "h s d"],
        lse: Float[Tensor, "h s"],
    ) -> tuple[Float[Tensor, "h s d"], Float[Tensor, "g t d"], Float[Tensor, "g t d"]]:
        """The share of these keys in the gradients; o and lse are those over all keys."""
        call = functools.partial(self._kernel(q, k).backward, causal=False)
        rows = tuple(x[None] for x in (do, q, k, v, o, lse))
        if max(q.shape[1], k.shape[1]) >= self.long_tokens:
            dq, dk, dv = backward_in_parts(call, parts_of(rows[1], rows[2], rows=1, heads=1), *rows)
        else:
            dq, dk, dv = call(*rows)
        return dq[0], dk[0], dv[0]

    def _plan(self, runs: Runs, length: int, window: int | None) -> tuple[int | None, tuple[Piece, ...]]:
        """The window, if it hides anything, and the pieces; under a window all documents go together."""
        if window is not None and window < max(stop - start for start, stop in runs):
            return window, pieces_of(runs, length, short_tokens=length + 1)
        alike = len({stop - start for start, stop in runs}) == 1
        short = min(self.short_tokens, SHORT_ROWS_TOKENS) if alike else self.short_tokens
        return None, pieces_of(runs, length, short_tokens=short)

    def _forward(self, piece: Piece, *tensors: Tensor, window: int | None) -> tuple[Tensor, ...]:
        q, k, v = (x[:, piece.start : piece.stop] for x in tensors)
        kernel = self._kernel(q, k, window=window is not None, short=piece.together)
        if piece.together:
            return kernel.forward_documents(q, k, v, runs=piece.runs, window=window)
        (group,) = equal_groups(piece.runs)
        rows = batched(group, q, k, v)
        # cuDNN on an H200, TFLOP/s of one call and in blocks: 579 and 566 at 64K, 549 and 577 at 128K, 508 and 585 at
        # 256K; blocks of keys reached 578 and 573-580, and wanted an accumulator for the whole row.
        if group.length >= self.long_tokens:
            found = forward_in_blocks(kernel, *rows, block=self.block_tokens, merge=self.merge)
        else:
            found = kernel.forward(*rows, causal=True)
        return tuple(tokens(x) for x in found)

    def _backward(self, piece: Piece, *tensors: Tensor, window: int | None) -> tuple[Tensor, ...]:
        do, q, k, v, o, lse = (x[:, piece.start : piece.stop] for x in tensors)
        kernel = self._kernel(q, k, window=window is not None, short=piece.together)
        if piece.together:
            return kernel.backward_documents(do, q, k, v, o, lse, runs=piece.runs, window=window)
        (group,) = equal_groups(piece.runs)
        rows = batched(group, do, q, k, v, o, lse)
        # cuDNN on an H200, TFLOP/s of one call and of single heads: 532 and 522 at 64K, 535 and 532 at 128K, 534 and
        # 533 at 256K, and a call of 1,284 instead of 5,648 bytes a token; blocks of queries and keys: only 504-528.
        if group.length >= self.long_tokens:
            call = functools.partial(kernel.backward, causal=True)
            parts = parts_of(rows[1], rows[2], rows=group.count, heads=1)
            found = backward_in_parts(call, parts, *rows)
        else:
            found = kernel.backward(*rows, causal=True)
        return tuple(tokens(x) for x in found)

    def _kernel(self, q: Tensor, k: Tensor, *, window: bool = False, short: bool = False) -> Kernel:
        return self.kernel or select(
            q.device, q.dtype, head_dim=q.shape[2], ratio=q.shape[0] // k.shape[0], window=window, short=short
        )


ONE_DEVICE = Local()


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
