"""Inputs of attention and what float64 autograd through the reference makes of them."""

import itertools

import torch

from longspan.attention.reference import reference_attention

LIMITS = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 0.01, torch.bfloat16: 0.03}


def line(heads, kv_heads, tokens, *, dim=8, dtype=torch.float32, seed=0, device="cpu"):
    """do, q, k, v as `[heads, tokens, dim]`: slices of larger buffers, as the engine has them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count + 1, tokens, dim) for count in (heads, heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(device, dtype)[1:] for shape in shapes]


def wanted(do, q, k, v, *, runs=None, window=None):
    """o, lse, dq, dk, dv in float64, in plain tensor operations; fewer queries than keys are the last ones."""
    do, q, k, v = (x.detach().double()[None] for x in (do, q, k, v))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    spans = None if runs is None else ((0, *(stop for _, stop in runs)),)
    o, lse = reference_attention(*leaves, window=window, spans=spans)
    return [x[0].detach() for x in (o, lse, *torch.autograd.grad(o, leaves, do))]


def errors(found, want):
    """The largest difference of each tensor, as a share of its largest value; shapes must agree."""
    found, want = list(found), list(want)
    assert [x.shape for x in found] == [x.shape for x in want]
    pairs = zip(found, want, strict=True)
    return [float((a.double() - b).abs().max() / b.abs().max().clamp_min(0.1)) for a, b in pairs]


def check(found, want, dtype):
    found = list(found)
    wide = torch.promote_types(dtype, torch.float32)
    assert [x.dtype for x in found] == [dtype, wide, dtype, dtype, dtype]
    worst = errors(found, want)
    assert all(error <= LIMITS[dtype] for error in worst), worst  # NaN fails, too


def cut(length, borders):
    """Runs of `length` tokens with documents that begin at `borders`."""
    edges = sorted({0, length, *(border for border in borders if 0 < border < length)})
    return tuple(itertools.pairwise(edges))
