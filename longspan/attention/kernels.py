"""Local attention calls: one entry for every device, document border and window."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from longspan.attention.online import merge
from longspan.attention.reference import visible
from longspan.batch import Spans


def attend(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b g S d"],
    v: Float[Tensor, "b g S d"],
    *,
    window: int | None = None,
    spans: Spans | None = None,
) -> Float[Tensor, "b h s d"]:
    """Causal grouped-query attention; the s queries are the last s of the S positions.

    Differentiable when s = S. With `spans` (then s = S) no token sees another document. `window` is the number of
    keys a query sees, itself included.
    """
    if spans is not None and any(len(row) > 2 for row in spans):
        return _documents(q, k, v, window=window, spans=spans)
    queries, keys = q.shape[2], k.shape[2]
    if window is not None and window < keys:
        return _windowed(q, k, v, window=window)
    if queries == keys:
        return _sdpa(q, k, v, causal=True)
    if queries == 1:
        return _sdpa(q, k, v, causal=False)
    # A square causal call and a full call, merged: kernels disagree on how they align a rectangular causal mask.
    old = keys - queries
    full, full_lse = partial_attention(q, k[:, :, :old], v[:, :, :old], causal=False)
    own, own_lse = partial_attention(q, k[:, :, old:], v[:, :, old:], causal=True)
    return merge(full, full_lse, own, own_lse)[0].to(q.dtype)


def partial_attention(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b g t d"], v: Float[Tensor, "b g t d"], *, causal: bool
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:
    """Attention over some of the keys, with its float32 log-sum-exp for `merge`. Not differentiable."""
    if q.device.type == "cpu":
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        return o, lse
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if q.dtype == torch.float32:
        o, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal)
        return o, lse[..., : q.shape[2]]  # the kernel pads lse to a multiple of 32
    o, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False)
    return o, lse


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, mask: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _windowed(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
    """Blocks of queries, each against only the keys its window can reach: memory O(window²), not O(S²)."""
    queries, keys = q.shape[2], k.shape[2]
    old, block = keys - queries, max(window, 128)
    parts = []
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        low, high = max(0, old + start - window + 1), old + stop
        mask = visible(stop - start, high - low, window=window, device=q.device)
        parts.append(_sdpa(q[:, :, start:stop], k[:, :, low:high], v[:, :, low:high], causal=False, mask=mask))
    return torch.cat(parts, dim=2)


def _documents(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, spans: Spans) -> Tensor:
    """Each document on its own; documents of equal length share one call."""
    rows, length = q.shape[0], q.shape[2]
    starts: dict[int, list[int]] = {}
    for row, borders in enumerate(spans):
        for low, high in itertools.pairwise(borders):
            starts.setdefault(high - low, []).append(row * length + low)
    flat = [x.transpose(1, 2).reshape(rows * length, x.shape[1], x.shape[3]) for x in (q, k, v)]
    outputs, places = [], []
    for size, begin in starts.items():
        index = torch.tensor(begin, device=q.device)[:, None] + torch.arange(size, device=q.device)
        parts = (x[index].transpose(1, 2) for x in flat)
        o = attend(*parts, window=window)
        outputs.append(o.transpose(1, 2).reshape(-1, *flat[0].shape[1:]))
        places.append(index.reshape(-1))
    order = torch.cat(places).argsort()
    return torch.cat(outputs)[order].reshape(rows, length, *flat[0].shape[1:]).transpose(1, 2)
