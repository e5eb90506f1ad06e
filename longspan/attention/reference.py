"""Attention written for reading: whole score matrices, any dtype. The oracle of every faster path."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longspan.batch import Spans


def visible(
    queries: int, keys: int, *, window: int | None = None, device: torch.device | None = None
) -> Bool[Tensor, "queries keys"]:
    """True where a query may see a key: causal, aligned at the end (the last query sees the last key).

    `window` is the number of keys a query sees, itself included.
    """
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (distance >= 0) & (distance < (keys if window is None else window))


def reference_attention(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b g S d"],
    v: Float[Tensor, "b g S d"],
    *,
    window: int | None = None,
    spans: Spans | None = None,
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:
    """Causal attention and its log-sum-exp, in the type of the inputs; query head i uses key head i // (h/g).

    `spans` holds each row's document borders; no query sees a key of another document.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    mask = visible(q.shape[2], k.shape[2], window=window, device=q.device).expand(q.shape[0], 1, -1, -1)
    if spans is not None:
        tokens = torch.arange(k.shape[2], device=q.device)
        document = torch.stack(
            [torch.bucketize(tokens, torch.tensor(row[1:-1], device=q.device), right=True) for row in spans]
        )
        own = document[:, -q.shape[2] :]
        mask = mask & (own[:, None, :, None] == document[:, None, None, :])
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)
