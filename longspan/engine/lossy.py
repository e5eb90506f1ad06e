"""Lossy anchors: numbers in fp8, each block of the last dim with a float32 scale of its own.

A code has three bits of mantissa: a number of at least 2⁻⁶ scales is wrong by 1/16 of itself at most, a smaller one by
2⁻¹⁰ scales, and the scale is the block's largest number over 448. What is not finite makes its block NaN.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CODE, SCALE = torch.float8_e4m3fn, torch.float32
LARGEST_CODE = torch.finfo(CODE).max  # 448


def encode(value: Float[Tensor, "*rows width"], codes: Float[Tensor, "*rows width"], scales: Tensor) -> None:
    """Fill `codes` and `scales [*rows, blocks]` from a tensor; blocks without a number but zero stay exact."""
    blocks = value.view(*scales.shape, -1)
    largest = torch.linalg.vector_norm(blocks, torch.inf, -1)
    # Not below float32's normal numbers: a device may take those for zero, and there must be no division by it.
    scales.copy_((largest.to(SCALE) / LARGEST_CODE).clamp_min_(torch.finfo(SCALE).tiny))
    codes.copy_((blocks / scales[..., None]).flatten(-2))


def decode(codes: Float[Tensor, "*rows width"], scales: Tensor, out: Float[Tensor, "*rows width"]) -> None:
    """Fill the contiguous `out`, in its own type, from what `encode` wrote."""
    out.copy_(codes)
    out.view(*scales.shape, -1).mul_(scales[..., None])
