"""Long rows in several calls of a kernel: forward in blocks of queries, backward by heads; exact up to rounding."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.attention.functional import Gradients, Kernel, wide
from longspan.attention.online import merge_

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], None]  # `merge_` of `online` or a twin of it, any strides
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Gradients]  # of do, q, k, v, o, lse


def forward_in_blocks(
    kernel: Kernel,
    q: Float[Tensor, "n h s d"],
    k: Float[Tensor, "n g s d"],
    v: Float[Tensor, "n g s d"],
    *,
    block: int,
    merge: Merge = merge_,
) -> tuple[Float[Tensor, "n h s d"], Float[Tensor, "n h s"]]:
    """Causal attention of whole rows: for each block of queries its own square and all keys before it, merged."""
    o = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3], dtype=wide(q))
    for own in blocks_of(q.shape[2], block):
        before = keys_before(own, block)
        o[:, :, own], lse[:, :, own] = _block(kernel, q, k, v, own, before, merge=merge)
    return o, lse


def _block(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, own: slice, before: Iterable[slice], *, merge: Merge
) -> tuple[Tensor, Tensor]:
    """Some queries of the rows against all keys that they may see."""
    o, lse = kernel.forward(q[:, :, own], k[:, :, own], v[:, :, own], causal=True)
    for keys in before:
        o = o.to(lse.dtype)
        part, part_lse = kernel.forward(q[:, :, own], k[:, :, keys], v[:, :, keys], causal=False)
        for row in range(q.shape[0]):
            merge(o[row], lse[row], part[row], part_lse[row])
        del part, part_lse  # before the next call makes its own
    return o, lse


def blocks_of(length: int, block: int) -> Iterator[slice]:
    """Blocks of `block` tokens and a rest; a rest below an eighth of a block joins the one before it.

    Borders do not depend on the length: cuDNN builds a plan for every shape, and so documents share most of theirs.
    """
    least = max(block // 8, 1)
    starts = range(0, max(length - least + 1, 1), block)
    for start, stop in zip(starts, [*starts[1:], length], strict=True):
        yield slice(start, stop)


def keys_before(own: slice, block: int) -> Iterator[slice]:
    """The keys before a block of queries in pieces of 2^i blocks, the largest first.

    A million tokens make 31 lengths of what lies before a block of 32,768, and these pieces five: cuDNN takes about a
    third of a second to build a plan for each.
    """
    start, left = 0, own.start // block
    while left:
        size = 1 << (left.bit_length() - 1)
        yield slice(start, start + size * block)
        start, left = start + size * block, left - size


@dataclass(frozen=True)
class Part:
    """Some rows of a batch and some query heads, with the KV heads that these use."""

    rows: slice
    heads: slice
    kv_heads: slice


def parts_of(q: Float[Tensor, "n h s d"], k: Float[Tensor, "n g S d"], *, rows: int, heads: int) -> Iterator[Part]:
    """Parts of so many rows and query heads; `heads` divides h/g or is a multiple of it."""
    ratio = q.shape[1] // k.shape[1]
    for row in range(0, q.shape[0], rows):
        for head in range(0, q.shape[1], heads):
            kv_heads = slice(head // ratio, (head + heads - 1) // ratio + 1)
            yield Part(slice(row, row + rows), slice(head, head + heads), kv_heads)


def backward_in_parts(
    backward: Backward,
    parts: Iterable[Part],
    do: Float[Tensor, "n h s d"],
    q: Float[Tensor, "n h s d"],
    k: Float[Tensor, "n g S d"],
    v: Float[Tensor, "n g S d"],
    o: Float[Tensor, "n h s d"],
    lse: Float[Tensor, "n h s"],
) -> tuple[Float[Tensor, "n h s d"], Float[Tensor, "n g S d"], Float[Tensor, "n g S d"]]:
    """One call for each part. What several parts give to one KV head adds up in float32 and is rounded once."""
    dq = torch.zeros_like(q)
    dk, dv = (torch.zeros_like(x, dtype=wide(x)) for x in (k, v))
    for part in parts:
        mine, keys = (part.rows, part.heads), (part.rows, part.kv_heads)
        shares = backward(do[mine], q[mine], k[keys], v[keys], o[mine], lse[mine])
        for total, share in zip((dq[mine], dk[keys], dv[keys]), shares, strict=True):
            total += share
        del shares, share  # before the next call makes its own
    return dq, dk.to(k.dtype), dv.to(v.dtype)
