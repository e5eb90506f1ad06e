# ruff: noqa: PLR0913 - a kernel is told every size and stride by itself
"""Triton kernels of the token-wise steps, each as fast as memory; what they mean is said in `engine/pointwise.py`.

Numbers are widened to float32 inside and rounded once. Sizes of the model are compile-time constants; numbers of tokens
are not, so tiles of any length share one compiled kernel, and offsets are 64-bit wherever tokens are multiplied.
`no_type_check` keeps the tests' type checker away from kernels: Triton reads their source.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers of a tile that one program of 8 warps holds in registers, 16 a thread
LOSS_BLOCK = 16384  # logits at once: one program fills a multiprocessor, so that its row is still in L2 when read again


@triton.jit
@no_type_check
def _normed(wide, scale, weight, dtype: tl.constexpr):
    """The rounding order of `Norm`: normalise, round, times weight, round."""
    return ((wide * scale).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
@no_type_check
def _norm_kernel(
    x, weight, out, x_row, rows, epsilon, M: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < M)
    w = tl.load(weight + column, mask=column < M, other=0.0).to(tl.float32)
    wide = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / M + epsilon)[:, None]
    tl.store(out + row * M + column, _normed(wide, scale, w, x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
@no_type_check
def _norm_backward_kernel(
    dn, x, weight, residual, dx, partial, dn_row, x_row, residual_row, dx_row, rows, epsilon,
    M: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Each program walks over its share of the rows and leaves one row of partial sums of the weight's gradient."""
    column = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + column, mask=column < M, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(tl.program_id(0).to(tl.int64) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS))[:, None]
        inside = (row < rows) & (column < M)
        dy = tl.load(dn + row * dn_row + column, mask=inside, other=0.0).to(tl.float32)
        wide = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL:
            above = tl.load(residual + row * residual_row + column, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / M + epsilon)[:, None]
        unit = wide * scale
        along = (tl.sum(w * dy * unit, axis=1) / M)[:, None]
        slope = (w * dy - unit * along) * scale
        if RESIDUAL:
            slope += above
        tl.store(dx + row * dx_row + column, slope, mask=inside)
        if WEIGHT:
            dweight += dy * unit
    if WEIGHT:
        total = tl.sum(dweight, axis=0)[None, :]
        tl.store(partial + tl.program_id(0) * M + column, total, mask=column < M)


@triton.jit(do_not_specialize=["tokens"])
@no_type_check
def _rotate_kernel(
    x, out, cos, sin, weight, x_head, x_token, out_head, out_token, cos_token, sin_token, tokens, heads, epsilon,
    D: tl.constexpr, PAIRS: tl.constexpr, P: tl.constexpr, REST: tl.constexpr, NORM: tl.constexpr,
    BACK: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """A block of tokens of some heads; angles are read once for those heads. P and REST are padded powers of two."""
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    pair = tl.arange(0, P)[None, :]
    other = 2 * PAIRS + tl.arange(0, REST)[None, :]
    inside, beyond = (token < tokens) & (pair < PAIRS), (token < tokens) & (other < D)
    c = tl.load(cos + token * cos_token + pair, mask=inside, other=0.0)
    s = tl.load(sin + token * sin_token + pair, mask=inside, other=0.0)
    if BACK:
        s = -s
    dtype: tl.constexpr = x.dtype.element_ty
    start = tl.program_id(1).to(tl.int64) * HEADS
    for head in range(start, tl.minimum(start + HEADS, heads)):
        source = x + head * x_head + token * x_token
        target = out + head * out_head + token * out_token
        first = tl.load(source + pair, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(source + PAIRS + pair, mask=inside, other=0.0).to(tl.float32)
        if 2 * PAIRS < D:
            rest = tl.load(source + other, mask=beyond, other=0.0).to(tl.float32)
        if NORM:
            square = tl.sum(first * first + second * second, axis=1)
            if 2 * PAIRS < D:
                square += tl.sum(rest * rest, axis=1)
                w = tl.load(weight + other, mask=other < D, other=0.0).to(tl.float32)
            scale = tl.rsqrt(square / D + epsilon)[:, None]
            if 2 * PAIRS < D:
                rest = _normed(rest, scale, w, dtype)
            w_first = tl.load(weight + pair, mask=pair < PAIRS, other=0.0).to(tl.float32)
            w_second = tl.load(weight + PAIRS + pair, mask=pair < PAIRS, other=0.0).to(tl.float32)
            first = _normed(first, scale, w_first, dtype)
            second = _normed(second, scale, w_second, dtype)
        tl.store(target + pair, first * c - second * s, mask=inside)
        tl.store(target + PAIRS + pair, second * c + first * s, mask=inside)
        if 2 * PAIRS < D:
            tl.store(target + other, rest, mask=beyond)


@triton.jit
@no_type_check
def _swiglu_kernel(gate, up, z, gate_row, up_row, F: tl.constexpr, BLOCK: tl.constexpr):
    blocks: tl.constexpr = (F + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + row * gate_row + column, mask=column < F, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=column < F, other=0.0).to(tl.float32)
    tl.store(z + row * F + column, g * tl.sigmoid(g) * u, mask=column < F)


@triton.jit
@no_type_check
def _swiglu_backward_kernel(gate, up, dz, gate_row, up_row, dz_row, F: tl.constexpr, BLOCK: tl.constexpr):
    blocks: tl.constexpr = (F + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    gates, ups, slopes = gate + row * gate_row + column, up + row * up_row + column, dz + row * dz_row + column
    g = tl.load(gates, mask=column < F, other=0.0).to(tl.float32)
    u = tl.load(ups, mask=column < F, other=0.0).to(tl.float32)
    d = tl.load(slopes, mask=column < F, other=0.0).to(tl.float32)
    share = tl.sigmoid(g)
    silu = g * share
    tl.store(gates, d * u * share * (1.0 + g * (1.0 - share)), mask=column < F)
    tl.store(ups, d * silu, mask=column < F)
    tl.store(slopes, silu * u, mask=column < F)


@triton.jit
@no_type_check
def _cross_entropy_kernel(logits, targets, scale, losses, logits_row, V: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row, twice over it: the running maximum and sum, then the slope in place of the logits."""
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * logits_row
    target = tl.load(targets + row)
    factor = tl.load(scale + row)
    hit = tl.load(line + target).to(tl.float32)
    most = tl.full((), float("-inf"), dtype=tl.float32)
    sums = tl.zeros((BLOCK,), dtype=tl.float32)  # added up at the end: one reduction a block, of the maximum, suffices
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        wide = tl.load(line + column, mask=column < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(wide, axis=0))
        sums = sums * tl.exp(most - higher) + tl.exp(wide - higher)
        most = higher
    total = tl.sum(sums, axis=0)
    tl.store(losses + row, most - hit + tl.log(total))
    part = 1.0 / total
    tl.debug_barrier()  # no warp may overwrite a logit that another has yet to read
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        wide = tl.load(line + column, mask=column < V, other=float("-inf")).to(tl.float32)
        slope = tl.exp(wide - most) * part - tl.where(column == target, 1.0, 0.0)
        tl.store(line + column, slope * factor, mask=column < V)


@triton.jit(do_not_specialize=["tokens"])
@no_type_check
def _merge_kernel(
    o_acc, lse_acc, o, lse, o_acc_head, o_acc_token, lse_acc_head, lse_acc_token, o_head, o_token, lse_head, lse_token,
    tokens, D: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (token < tokens)[:, None] & (column < D)
    places = lse_acc + head * lse_acc_head + token * lse_acc_token
    old = tl.load(places, mask=token < tokens, other=0.0)
    new = tl.load(lse + head * lse_head + token * lse_token, mask=token < tokens, other=0.0)
    empty = (old == float("-inf")) & (new == float("-inf"))
    difference = tl.where(empty, 0.0, new - old)  # -inf - (-inf) would be NaN
    share = tl.sigmoid(difference)[:, None]
    sums = o_acc + head * o_acc_head + token[:, None] * o_acc_token + column
    mine = tl.load(sums, mask=inside, other=0.0)
    theirs = tl.load(o + head * o_head + token[:, None] * o_token + column, mask=inside, other=0.0).to(tl.float32)
    tl.debug_barrier()  # several warps read one lse; none may overwrite it before all have
    tl.store(sums, mine + share * (theirs - mine), mask=inside)
    both = tl.maximum(old, new) + tl.log(1.0 + tl.exp(-tl.abs(difference)))
    tl.store(places, tl.where(empty, float("-inf"), both), mask=token < tokens)


# -- launches --------------------------------------------------------------------------------------------------------


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`pointwise.norm`."""
    (rows, m), out = x.shape, torch.empty(x.shape, dtype=x.dtype, device=x.device)
    height, block, warps = _tile(m)
    assert x.stride(1) == weight.stride(0) == 1
    with _device(x):
        _norm_kernel[(triton.cdiv(rows, height),)](
            x, weight, out, x.stride(0), rows, epsilon, M=m, ROWS=height, BLOCK=block, num_warps=warps
        )
    return out


def norm_backward(
    dn: Tensor,
    x: Tensor,
    weight: Tensor,
    epsilon: float,
    *,
    residual: Tensor | None = None,
    dweight: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`pointwise.norm_backward`; the order of summation depends on the device and the number of rows alone."""
    rows, m = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    above = out if residual is None else residual
    height, block, warps = _tile(m)
    programs = min(triton.cdiv(rows, height), 2 * _multiprocessors(x.device))
    partial = torch.empty((0 if dweight is None else programs, m), dtype=torch.float32, device=x.device)
    assert dn.stride(1) == x.stride(1) == above.stride(1) == out.stride(1) == weight.stride(0) == 1
    with _device(x):
        _norm_backward_kernel[(programs,)](
            dn, x, weight, above, out, partial, dn.stride(0), x.stride(0), above.stride(0), out.stride(0), rows,
            epsilon, M=m, ROWS=height, BLOCK=block, RESIDUAL=residual is not None, WEIGHT=dweight is not None,
            num_warps=warps,
        )  # fmt: skip
    if dweight is not None:
        dweight += partial.sum(0)
    return out


def rotate_into(
    x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, norm_weight: Tensor | None = None, epsilon: float = 0.0
) -> None:
    """`pointwise.rotate_into`."""
    source = x.view(len(x), out.shape[0], out.shape[2]).transpose(0, 1)
    _rotate(source, out, cos, sin, weight=norm_weight, epsilon=epsilon, back=False)


def rotate_back(dx: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`pointwise.rotate_back`."""
    heads, tokens, d = dx.shape
    out = torch.empty((tokens, heads, d), dtype=dx.dtype, device=dx.device)
    _rotate(dx, out.transpose(0, 1), cos, sin, weight=None, epsilon=0.0, back=True)
    return out.flatten(1)


def _rotate(
    x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, *, weight: Tensor | None, epsilon: float, back: bool
) -> None:
    """From one `[n, t, d]` view to another."""
    (heads, tokens, d), pairs = x.shape, cos.shape[1]
    padded = triton.next_power_of_2(pairs)
    height, group = max(1, 2048 // padded), 4
    assert x.stride(2) == out.stride(2) == cos.stride(1) == sin.stride(1) == 1
    with _device(x):
        _rotate_kernel[(triton.cdiv(tokens, height), triton.cdiv(heads, group))](
            x, out, cos, sin, cos if weight is None else weight, x.stride(0), x.stride(1), out.stride(0),
            out.stride(1), cos.stride(0), sin.stride(0), tokens, heads, epsilon, D=d, PAIRS=pairs, P=padded,
            REST=triton.next_power_of_2(max(1, d - 2 * pairs)), NORM=weight is not None, BACK=back, TOKENS=height,
            HEADS=group, num_warps=4,
        )  # fmt: skip


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`pointwise.swiglu`."""
    (rows, f), z = gate.shape, torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    assert gate.stride(1) == up.stride(1) == 1
    with _device(gate):
        _swiglu_kernel[(rows * triton.cdiv(f, 2048),)](
            gate, up, z, gate.stride(0), up.stride(0), F=f, BLOCK=2048, num_warps=4
        )
    return z


def swiglu_backward_(gate: Tensor, up: Tensor, dz: Tensor) -> None:
    """`pointwise.swiglu_backward_`."""
    rows, f = gate.shape
    assert gate.stride(1) == up.stride(1) == dz.stride(1) == 1
    with _device(gate):
        _swiglu_backward_kernel[(rows * triton.cdiv(f, 2048),)](
            gate, up, dz, gate.stride(0), up.stride(0), dz.stride(0), F=f, BLOCK=2048, num_warps=4
        )


def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    """`pointwise.cross_entropy_`."""
    (rows, v), losses = logits.shape, torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    block = min(LOSS_BLOCK, max(2048, triton.next_power_of_2(v)))
    assert logits.stride(1) == targets.stride(0) == scale.stride(0) == 1
    with _device(logits):
        _cross_entropy_kernel[(rows,)](
            logits, targets, scale, losses, logits.stride(0), V=v, BLOCK=block, num_warps=block // 512
        )
    return losses


def merge_(o_acc: Tensor, lse_acc: Tensor, o: Tensor, lse: Tensor) -> None:
    """`pointwise.merge_`."""
    heads, tokens, d = o.shape
    height, block, warps = _tile(d)
    assert o_acc.stride(2) == o.stride(2) == 1
    with _device(o):
        _merge_kernel[(triton.cdiv(tokens, height), heads)](
            o_acc, lse_acc, o, lse, o_acc.stride(0), o_acc.stride(1), lse_acc.stride(0), lse_acc.stride(1),
            o.stride(0), o.stride(1), lse.stride(0), lse.stride(1), tokens, D=d, TOKENS=height, BLOCK=block,
            num_warps=warps,
        )  # fmt: skip


def _tile(width: int) -> tuple[int, int, int]:
    """Rows, padded width and warps of one program's tile."""
    block = triton.next_power_of_2(width)
    height = max(1, TILE // block)
    return height, block, min(32, height * block // 512)


def _device(x: Tensor) -> AbstractContextManager[None]:
    """Launches go to the current stream of the tensor's device, whichever device is current."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
