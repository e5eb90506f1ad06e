"""Attention kernels as plain functions, forward and backward apart: what the engine calls. The portable ones.

All take q `[n, h, s, d]` and k, v `[n, g, S, d]` with any strides; query head i uses key head i // (h/g). `causal` asks
for s = S. A backward call accepts o and lse over more keys than it is given (a block of a longer row); its gradients
are then exactly that block's share.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Group, Runs, equal_groups
from longspan.attention.reference import visible

WINDOW_BLOCK = 128  # least queries of a block under a window: smaller blocks are all overhead
SCORES = 2**27  # score elements that exist at once in the reference kernel: 512 MiB in float32

Output = tuple[Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Need:
    """What is asked of a kernel. `ratio` is h/g; `short` says that many documents of any length come in one call."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    ratio: int = 1
    window: bool = False
    short: bool = False


@dataclass(frozen=True)
class Kernel(ABC):
    """One way to form attention on one device."""

    name: ClassVar[str]

    @abstractmethod
    def reason_against(self, need: Need) -> str | None:
        """Why this kernel cannot serve; None if it should. The self-test has the last word."""

    @abstractmethod
    def forward(
        self,
        q: Float[Tensor, "n h s d"],
        k: Float[Tensor, "n g S d"],
        v: Float[Tensor, "n g S d"],
        *,
        causal: bool,
        window: int | None = None,
    ) -> tuple[Float[Tensor, "n h s d"], Float[Tensor, "n h s"]]:
        """Attention in the type of q, and its log-sum-exp in float32 (float64 for float64).

        `window` is the number of keys that a query sees, itself included; only with `causal`.
        """

    @abstractmethod
    def backward(
        self,
        do: Float[Tensor, "n h s d"],
        q: Float[Tensor, "n h s d"],
        k: Float[Tensor, "n g S d"],
        v: Float[Tensor, "n g S d"],
        o: Float[Tensor, "n h s d"],
        lse: Float[Tensor, "n h s"],
        *,
        causal: bool,
        window: int | None = None,
    ) -> tuple[Float[Tensor, "n h s d"], Float[Tensor, "n g S d"], Float[Tensor, "n g S d"]]:
        """Gradients of q, k, v."""

    def forward_documents(
        self,
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        *,
        runs: Runs,
        window: int | None = None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
        """Causal attention inside each run; the runs cover the tokens. Here one call for each length in turn."""
        parts = (
            tuple(tokens(x) for x in self.forward(*batched(group, q, k, v), causal=True, window=window))
            for group in equal_groups(runs)
        )
        o, lse = assemble(parts, q.shape[1])
        return o, lse

    def backward_documents(
        self,
        do: Float[Tensor, "h T d"],
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        o: Float[Tensor, "h T d"],
        lse: Float[Tensor, "h T"],
        *,
        runs: Runs,
        window: int | None = None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "g T d"], Float[Tensor, "g T d"]]:
        """Gradients of `forward_documents`."""
        parts = (
            tuple(tokens(x) for x in self.backward(*batched(group, do, q, k, v, o, lse), causal=True, window=window))
            for group in equal_groups(runs)
        )
        dq, dk, dv = assemble(parts, q.shape[1])
        return dq, dk, dv


# -- between tokens in a line and rows of a batch --------------------------------------------------------------------


def batched(group: Group, *tensors: Tensor) -> list[Tensor]:
    """Each `[heads, T, ...]` as the group's rows `[count, heads, length, ...]`: views, nothing is copied."""
    parts = (x[:, group.start : group.stop] for x in tensors)
    return [x.reshape(x.shape[0], group.count, group.length, *x.shape[2:]).transpose(0, 1) for x in parts]


def tokens(x: Tensor) -> Tensor:
    """The way back of `batched`: `[count, heads, length, ...]` as `[heads, count · length, ...]`."""
    return x.transpose(0, 1).flatten(1, 2)


def assemble(parts: Iterable[tuple[Tensor, ...]], length: int) -> tuple[Tensor, ...]:
    """Results over consecutive tokens (dim 1) as tensors over all `length`; a part that is the whole is not copied."""
    whole: tuple[Tensor, ...] = ()
    start = 0
    for part in parts:
        stop = start + part[0].shape[1]
        if stop - start == length:
            return part
        if not whole:
            whole = tuple(x.new_empty(x.shape[0], length, *x.shape[2:]) for x in part)
        for out, x in zip(whole, part, strict=True):
            out[:, start:stop] = x
        start = stop
    return whole


# -- the portable kernels --------------------------------------------------------------------------------------------


def blocks(length: int, *, rows: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of `rows` queries of a causal square, each with only the keys that it can reach."""
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        yield slice(start, stop), slice(0 if window is None else max(0, start - window + 1), stop)


class Cpu(Kernel):
    """torch's fused kernel for the CPU. A window is walked in blocks of queries: memory O(window²), not O(S²)."""

    name = "cpu"

    def reason_against(self, need: Need) -> str | None:
        """It serves every type and width on a CPU."""
        return None if need.device.type == "cpu" else "runs on a CPU only"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Output:
        """One call, or one for each block of queries."""
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        if window is None or window >= q.shape[2]:
            o, lse = op(*(straight(x) for x in (q, k, v)), 0.0, causal)
            return o, lse
        parts = [
            op(*(straight(x) for x in (q[:, :, rows], k[:, :, keys], v[:, :, keys])), 0.0, False, attn_mask=mask)
            for rows, keys, mask in self._windowed(q, window)
        ]
        outputs, sums = zip(*parts, strict=True)
        return torch.cat(outputs, dim=2), torch.cat(sums, dim=2)

    def backward(
        self,
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Tensor,
        *,
        causal: bool,
        window: int | None = None,
    ) -> Gradients:
        """One call, or one for each block; gradients of keys that several blocks see add up in float32."""
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        do, q, k, v, o = (straight(x) for x in (do, q, k, v, o))
        if window is None or window >= q.shape[2]:
            dq, dk, dv = op(do, q, k, v, o, lse, 0.0, causal)
            return dq, dk, dv
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=wide(x)) for x in (k, v))
        for rows, keys, mask in self._windowed(q, window):
            queries = (x[:, :, rows] for x in (do, q))
            own = (o[:, :, rows], lse[:, :, rows])
            part = op(*queries, k[:, :, keys], v[:, :, keys], *own, 0.0, False, attn_mask=mask)
            dq[:, :, rows] = part[0]
            dk[:, :, keys] += part[1]
            dv[:, :, keys] += part[2]
        return dq, dk.to(k.dtype), dv.to(v.dtype)

    def _windowed(self, q: Tensor, window: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Blocks with their additive masks."""
        for rows, keys in blocks(q.shape[2], rows=max(window, WINDOW_BLOCK), window=window):
            seen = visible(rows.stop - rows.start, keys.stop - keys.start, window=window, device=q.device)
            yield rows, keys, torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, float("-inf"))


class Reference(Kernel):
    """Plain matrix products, some queries at a time, formed in float32 or wider: slow, and at home everywhere."""

    name = "reference"

    def reason_against(self, need: Need) -> str | None:  # noqa: ARG002
        """Nothing: it is the last resort."""
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Output:
        """Softmax of the scores of some queries at a time."""
        o = torch.empty_like(q)
        lse = torch.empty(q.shape[:3], dtype=wide(q), device=q.device)
        for rows, keys in self._blocks(q, k, causal=causal, window=window):
            scores = self._scores(q[:, :, rows], k[:, :, keys], causal=causal, window=window)
            lse[:, :, rows] = scores.logsumexp(-1).flatten(1, 2)
            o[:, :, rows] = _spread(scores.softmax(-1).flatten(2, 3) @ v[:, :, keys].to(scores.dtype), q.shape[1])
        return o, lse

    def backward(
        self,
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Tensor,
        *,
        causal: bool,
        window: int | None = None,
    ) -> Gradients:
        """The softmax is formed again from the scores and lse."""
        dtype, heads, kv_heads = wide(q), q.shape[1], k.shape[1]
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=dtype) for x in (k, v))
        for rows, keys in self._blocks(q, k, causal=causal, window=window):
            key, value = k[:, :, keys].to(dtype), v[:, :, keys].to(dtype)
            scores = self._scores(q[:, :, rows], k[:, :, keys], causal=causal, window=window).flatten(2, 3)
            p = torch.exp(scores - _gather(lse[:, :, rows, None].to(dtype), kv_heads))
            upstream = _gather(do[:, :, rows].to(dtype), kv_heads)
            delta = (upstream * _gather(o[:, :, rows].to(dtype), kv_heads)).sum(-1, keepdim=True)
            ds = p * (upstream @ value.transpose(-1, -2) - delta) * q.shape[-1] ** -0.5
            dq[:, :, rows] = _spread(ds @ key, heads)
            dk[:, :, keys] += ds.transpose(-1, -2) @ _gather(q[:, :, rows].to(dtype), kv_heads)
            dv[:, :, keys] += p.transpose(-1, -2) @ upstream
        return dq, dk.to(k.dtype), dv.to(v.dtype)

    def _blocks(self, q: Tensor, k: Tensor, *, causal: bool, window: int | None) -> Iterator[tuple[slice, slice]]:
        n, h, length, _ = q.shape
        reach = k.shape[2] if window is None else window + WINDOW_BLOCK
        rows = max(1, min(length, SCORES // max(1, n * h * reach)))
        if window is not None:
            rows = min(rows, max(window, WINDOW_BLOCK))
        for queries, keys in blocks(length, rows=rows, window=window):
            yield queries, keys if causal else slice(0, k.shape[2])

    def _scores(self, q: Tensor, k: Tensor, *, causal: bool, window: int | None) -> Tensor:
        """`[n, g, h/g, s, S]`, −inf where a query may not look."""
        dtype = wide(q)
        scores: Tensor = _gather(q.to(dtype), k.shape[1]) @ k.to(dtype).transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores.view(*k.shape[:2], -1, q.shape[2], k.shape[2])
        if causal:
            seen = visible(q.shape[2], k.shape[2], window=window, device=q.device)
            scores = scores.masked_fill(~seen, float("-inf"))
        return scores


def _gather(x: Tensor, kv_heads: int) -> Tensor:
    """`[n, h, s, ·]` as `[n, g, h/g · s, ·]`: the queries of one key head are rows of one matrix."""
    n, heads, length, width = x.shape
    return x.reshape(n, kv_heads, heads // kv_heads * length, width)


def _spread(x: Tensor, heads: int) -> Tensor:
    """The way back of `_gather`."""
    n, kv_heads, rows, width = x.shape
    return x.reshape(n, heads, rows * kv_heads // heads, width)


def wide(x: Tensor) -> torch.dtype:
    """The type in which partial results of x add up: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def straight(x: Tensor) -> Tensor:
    """Kernels take any strides but that of the last dim."""
    return x if x.stride(-1) == 1 else x.contiguous()
