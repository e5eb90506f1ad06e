"""Attention of some queries over kept keys: every part comes with its log-sum-exp, so that parts can be merged.

A question after a context sees the keys of the context, which all questions share, and its own: two calls and a merge
(`longspan.attention.online`). Where the context lies on several ranks, each makes its call and the merge goes on.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longspan.attention.functional import Kernel, wide
from longspan.attention.selection import select

ROWS_OF_A_BLOCK = 128  # queries that one block of a GPU kernel takes
BLOCKS_WANTED = 264  # two for every multiprocessor of an H100
LEAST_KEYS = 16384  # of a piece: below it, merging costs more than idle multiprocessors
SCORES = 2**26  # score elements that exist at once under a mask


def over_all(
    q: Float[Tensor, "h T d"],
    k: Float[Tensor, "g S d"],
    v: Float[Tensor, "g S d"],
    *,
    kernel: Kernel | None = None,
    pieces: int | None = None,
) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
    """Every query sees every key; o in the type of q, and its log-sum-exp.

    Query heads that share a key/value head are rows of one matrix, so that its keys are read once. Few queries over
    many keys leave a GPU idle; then the keys are cut into `pieces` that are worked on at once, and merged.
    """
    kernel = kernel or select(q.device, q.dtype, head_dim=q.shape[2], ratio=1, short=True)
    rows = q.reshape(k.shape[0], -1, q.shape[2])
    count = pieces_for(rows, k.shape[1]) if pieces is None else min(pieces, k.shape[1])
    piece = k.shape[1] // count
    found = [_pieces(kernel, rows, *(x[:, : piece * count] for x in (k, v)), count=count)]
    if piece * count < k.shape[1]:
        found.append(_pieces(kernel, rows, *(x[:, piece * count :] for x in (k, v)), count=1))
    o, lse = (torch.cat(parts) for parts in zip(*found, strict=True))
    if len(o) > 1:
        o, lse = merge_all(o, lse)
    else:
        o, lse = o[0], lse[0]
    return o.to(q.dtype).reshape(q.shape), lse.reshape(q.shape[:2])


def pieces_for(rows: Float[Tensor, "g n d"], keys: int) -> int:
    """Into how many pieces the keys are cut: enough to keep a GPU busy; one on a CPU."""
    if rows.device.type != "cuda":
        return 1
    blocks = rows.shape[0] * -(-rows.shape[1] // ROWS_OF_A_BLOCK)
    return max(1, min(BLOCKS_WANTED // blocks, keys // LEAST_KEYS))


def _pieces(kernel: Kernel, rows: Tensor, k: Tensor, v: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """`[count, g, n, d]` and `[count, g, n]`: each piece of the keys is a row of a batch."""
    keys, values = (x.view(len(x), count, -1, x.shape[2]).transpose(0, 1) for x in (k, v))
    return kernel.forward(rows.expand(count, *rows.shape), keys, values, causal=False)


def merge_all(
    o: Float[Tensor, "sets g n d"], lse: Float[Tensor, "sets g n"]
) -> tuple[Float[Tensor, "g n d"], Float[Tensor, "g n"]]:
    """Attention over the union of some sets of keys, formed in the type of `lse`; at least one set has keys."""
    total = lse.logsumexp(0)
    return (o.to(lse.dtype) * (lse - total).exp()[..., None]).sum(0), total


def masked(
    q: Float[Tensor, "n h s d"],
    k: Float[Tensor, "n g t d"],
    v: Float[Tensor, "n g t d"],
    seen: Bool[Tensor, "n s t"],
) -> tuple[Float[Tensor, "n h s d"], Float[Tensor, "n h s"]]:
    """Attention over the keys that `seen` allows, by plain products in float32 or wider; for short keys.

    A query that sees nothing gets zeros and a log-sum-exp of −inf.
    """
    # Query heads that share a key/value head are rows of one matrix: its keys are widened once, not once a head.
    dtype, groups = wide(q), k.shape[:2]
    keys, values = k.to(dtype), v.to(dtype)
    o, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=dtype)
    step = max(1, SCORES // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    for start in range(0, q.shape[2], step):
        some, allowed = q[:, :, start : start + step].to(dtype), seen[:, None, start : start + step]
        scores = some.reshape(*groups, -1, some.shape[3]) @ keys.transpose(-1, -2) * some.shape[3] ** -0.5
        scores = scores.view(*some.shape[:3], -1).masked_fill(~allowed, float("-inf"))
        largest = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(dtype).min)  # −inf − (−inf) would be NaN
        p = (scores - largest).exp()
        total = p.sum(-1, keepdim=True)
        found = (p.view(*groups, -1, p.shape[3]) @ values).view(some.shape)
        o[:, :, start : start + step] = found / total.clamp_min(torch.finfo(dtype).tiny)
        lse[:, :, start : start + step] = (total.log() + largest)[..., 0]
    return o, lse
