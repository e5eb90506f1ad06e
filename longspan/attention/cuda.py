"""The kernels of NVIDIA devices: cuDNN for long rows, FlashAttention for short documents and windows.

They are private functions of torch, so nothing here is trusted before the self-test of `selection` has seen it.
"""

import functools
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs
from longspan.attention.functional import Gradients, Kernel, Need, Output, straight
from longspan.attention.walk import backward_in_parts, parts_of
from longspan.utils.errors import LongspanError

HALF = (torch.bfloat16, torch.float16)


def _reason(need: Need, *, capability: tuple[int, int], widest: int) -> str | None:
    """What both kernels ask for."""
    if need.device.type != "cuda":
        return "runs on a CUDA device only"
    if need.dtype not in HALF:
        return f"takes bfloat16 or float16, not {str(need.dtype).removeprefix('torch.')}"
    if need.head_dim % 8 or need.head_dim > widest:
        return f"takes heads of at most {widest} in steps of 8, not {need.head_dim}"
    if torch.cuda.get_device_capability(need.device) < capability:
        return f"asks for compute capability {capability[0]}.{capability[1]}"
    return None


class Cudnn(Kernel):
    """cuDNN's attention: the fastest for long rows (Hopper and newer). It builds a plan for every new shape.

    Rows below `least_tokens` are a mistake of the caller: of four shapes tried with 64 tokens one failed. In a call of
    more than `most_elements` its backward pass silently gives wrong dq and dk (torch 2.11, cuDNN 9.19).
    """

    name = "cudnn"
    least_tokens: ClassVar[int] = 128
    most_elements: ClassVar[int] = 2**31 - 1

    def reason_against(self, need: Need) -> str | None:
        """Windows and short documents are left to FlashAttention."""
        if need.window:
            return "takes no window"
        if need.short:
            return "builds a plan for every length, too dear for short documents"
        return _reason(need, capability=(9, 0), widest=128)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Output:
        """One call."""
        self._refuse(q, window)
        op = torch.ops.aten._scaled_dot_product_cudnn_attention
        o, lse, *_ = op(straight(q), straight(k), straight(v), None, True, 0.0, causal, False)
        return o, lse.reshape(q.shape[:3])  # it comes as [n, h, s, 1]

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
        """One call, or several where it would pass `most_elements`."""
        self._refuse(q, window)
        do, q, k, v, o = (straight(x) for x in (do, q, k, v, o))
        rows, heads = self._at_once(do, q, o, kv_heads=k.shape[1])
        call = functools.partial(self._backward_call, causal=causal)
        if (rows, heads) == q.shape[:2]:
            return call(do, q, k, v, o, lse)
        return backward_in_parts(call, parts_of(q, k, rows=rows, heads=heads), do, q, k, v, o, lse)

    def _refuse(self, q: Tensor, window: int | None) -> None:
        assert window is None, "cuDNN's kernel takes no window"
        assert q.shape[2] >= self.least_tokens, f"cuDNN's kernel takes rows of {self.least_tokens} tokens or more"

    def _at_once(self, do: Tensor, q: Tensor, o: Tensor, *, kv_heads: int) -> tuple[int, int]:
        """The rows and query heads of a call. Heads are split first: in the engine's buffers they lie far apart."""
        n, h, length, d = q.shape
        for rows, heads in ((n, h), (n, h // kv_heads), (n, 1), (1, 1)):
            if max(_reach(x[:rows, :heads]) for x in (do, q, o)) <= self.most_elements:
                return rows, heads
        raise LongspanError(
            "attention.row-length",
            f"a row of {length:,} tokens with heads of {d} is too long for cuDNN's backward pass on one device",
            where=f"its indices end at {self.most_elements:,} elements of one head",
            fix=f"use rows of at most {self.most_elements // d:,} tokens",
        )

    def _backward_call(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *, causal: bool
    ) -> Gradients:
        op = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
        _, _, cum_q, cum_k, _, _, seed, offset, _ = _cudnn_example(q.device, q.dtype)
        dq, dk, dv = op(
            *(do, q, k, v, o),
            lse.contiguous().unsqueeze(-1),
            *(seed, offset, None, cum_q, cum_k, q.shape[2], k.shape[2], 0.0, causal),
        )
        return dq, dk, dv


def _reach(x: Tensor) -> int:
    """Elements of a tensor, or of the memory that its strides span: whichever index of a kernel grows larger."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return max(x.numel(), span)


class Flash(Kernel):
    """FlashAttention as torch has it: version 2, or the newest that `activate_newest_flash` found."""

    name = "flash"

    def reason_against(self, need: Need) -> str | None:
        """It takes windows, and documents of any length in one call."""
        return _reason(need, capability=(8, 0), widest=256)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Output:
        """One call; the kernel wants tokens before heads, which strides can say."""
        parts = [straight(x).transpose(1, 2) for x in (q, k, v)]
        o, lse = _flash_forward(parts, None, (q.shape[2], k.shape[2]), causal=causal, window=window)
        return o.transpose(1, 2), lse

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
        """One call."""
        parts = [straight(x).transpose(1, 2) for x in (do, q, k, v, o)]
        longest = (q.shape[2], k.shape[2])
        dq, dk, dv = _flash_backward(parts, lse, None, longest, causal=causal, window=window)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)

    def forward_documents(
        self,
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        *,
        runs: Runs,
        window: int | None = None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
        """One call for all documents."""
        parts = [straight(x).transpose(0, 1) for x in (q, k, v)]
        borders = _borders(runs, q.device)
        o, lse = _flash_forward(parts, borders, _longest(runs), causal=True, window=window)
        return o.transpose(0, 1), lse

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
        """One call for all documents."""
        parts = [straight(x).transpose(0, 1) for x in (do, q, k, v, o)]
        borders = _borders(runs, q.device)
        dq, dk, dv = _flash_backward(parts, lse, borders, _longest(runs), causal=True, window=window)
        return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)


def _flash_forward(
    parts: list[Tensor],
    borders: Tensor | None,
    longest: tuple[int, int],
    *,
    causal: bool,
    window: int | None,
) -> Output:
    sides, plain = _sides(causal=causal, window=window, length=longest[0])
    op = torch.ops.aten._flash_attention_forward
    o, lse, *_ = op(*parts, borders, borders, *longest, 0.0, plain, False, **sides)
    return o, lse


def _flash_backward(
    parts: list[Tensor],
    lse: Tensor,
    borders: Tensor | None,
    longest: tuple[int, int],
    *,
    causal: bool,
    window: int | None,
) -> Gradients:
    sides, plain = _sides(causal=causal, window=window, length=longest[0])
    *_, state, unused, _ = _flash_example(parts[1].device, parts[1].dtype)
    op = torch.ops.aten._flash_attention_backward
    dq, dk, dv = op(*parts, lse.contiguous(), borders, borders, *longest, 0.0, plain, state, unused, **sides)
    return dq, dk, dv


def _sides(*, causal: bool, window: int | None, length: int) -> tuple[dict[str, int], bool]:
    """Keys to the left and right that a query sees, itself not counted, and whether the mask is plainly causal."""
    if window is None or window >= length:
        return {}, causal
    return {"window_size_left": window - 1, "window_size_right": 0}, False


@functools.lru_cache(maxsize=8)
def _borders(runs: Runs, device: torch.device) -> Tensor:
    """Where documents begin, and the end: kept, because every layer and head group asks for the same."""
    return torch.tensor([0, *(stop for _, stop in runs)], dtype=torch.int32, device=device)


def _longest(runs: Runs) -> tuple[int, int]:
    """The longest document, for queries and keys. With 1 the kernel would take a path of its own, made for decoding."""
    longest = max(2, *(stop - start for start, stop in runs))
    return longest, longest


# A backward call wants back what forward returned besides o and lse: random state (unused, nothing is dropped) and
# borders (undefined). The forward call may be long past or one of several, so a small call gives the same kinds.


@functools.lru_cache(maxsize=8)
def _cudnn_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.zeros(1, 1, 64, 64, device=device, dtype=dtype)
    return tuple(torch.ops.aten._scaled_dot_product_cudnn_attention(x, x, x, None, True, 0.0, True, False))


@functools.lru_cache(maxsize=8)
def _flash_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.zeros(1, 64, 1, 64, device=device, dtype=dtype)
    return tuple(torch.ops.aten._flash_attention_forward(x, x, x, None, None, 64, 64, 0.0, True, False))
