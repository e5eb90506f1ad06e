"""The token-wise steps of a block and of the loss, without autograd: each with its gradient written out.

Tensors on a CUDA device go to the kernels of `engine/triton_kernels.py` where Triton is installed; all others, and
float64 everywhere, to the plain PyTorch below. Both widen to float32 (float64 stays float64) and round once. Callers
hold `torch.no_grad()`; names that end in an underscore overwrite their inputs. Rows may be strided; what lies inside
a row (the last dim) is contiguous. `t` counts the tokens of a tile, `n` heads of one kind.
"""

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longspan.attention import online


def norm(x: Float[Tensor, "t m"], weight: Float[Tensor, " m"], epsilon: float) -> Float[Tensor, "t m"]:
    """Root-mean-square norm, rounded as `longspan.model.decoder.Norm` rounds: before and after the weight."""
    if kernels := _kernels(x):
        out: Tensor = kernels.norm(x, weight, epsilon)
        return out
    wide = _wide(x)
    return (weight * (wide * _scale(wide, epsilon)).to(x.dtype)).to(x.dtype)


def norm_backward(
    dn: Float[Tensor, "t m"],
    x: Float[Tensor, "t m"],
    weight: Float[Tensor, " m"],
    epsilon: float,
    *,
    residual: Float[Tensor, "t m"] | None = None,
    dweight: Float[Tensor, " m"] | None = None,
    out: Float[Tensor, "t m"] | None = None,
) -> Float[Tensor, "t m"]:
    """`residual` plus the gradient of `norm` with respect to x; the gradient of the weight is added to `dweight`.

    `out` receives the result and may be any of the three inputs itself. `dweight` is float32 or wider; its sums are
    formed in one order, so the same call gives the same bits. For norms of heads a row is a head of a token, m is d.
    """
    if kernels := _kernels(x):
        found: Tensor = kernels.norm_backward(dn, x, weight, epsilon, residual=residual, dweight=dweight, out=out)
        return found
    wide, slope = _wide(x), _wide(dn)
    scale = _scale(wide, epsilon)
    unit, weighted = wide * scale, slope * weight
    dx = (weighted - unit * (weighted * unit).mean(-1, keepdim=True)) * scale
    if residual is not None:
        dx += residual
    if dweight is not None:
        dweight += (slope * unit).sum(0)
    return dx.to(x.dtype) if out is None else out.copy_(dx)


def rotate_into(
    x: Float[Tensor, "t nd"],
    cos: Float[Tensor, "t pairs"],
    sin: Float[Tensor, "t pairs"],
    out: Float[Tensor, "n t d"],
    *,
    norm_weight: Float[Tensor, " d"] | None = None,
    epsilon: float = 0.0,
) -> None:
    """Rotate every head as `longspan.rope.rotate.rotate` does and write it head-major, after its norm if it has one.

    `out` may be a view of some heads and tokens of a larger buffer; dims from 2·pairs on pass unrotated.
    """
    if kernels := _kernels(x):
        kernels.rotate_into(x, cos, sin, out, norm_weight=norm_weight, epsilon=epsilon)
        return
    heads = x.view(len(x), out.shape[0], out.shape[2])
    if norm_weight is not None:
        heads = norm(heads.flatten(0, 1), norm_weight, epsilon).view_as(heads)
    out.copy_(_turn(heads, cos, sin).transpose(0, 1))


def rotate_back(
    dx: Float[Tensor, "n t d"], cos: Float[Tensor, "t pairs"], sin: Float[Tensor, "t pairs"]
) -> Float[Tensor, "t nd"]:
    """The transpose of `rotate_into` without a norm: the gradient of its x, token-major."""
    if kernels := _kernels(dx):
        found: Tensor = kernels.rotate_back(dx, cos, sin)
        return found
    return _turn(dx.transpose(0, 1), cos, -sin).flatten(1)


def heads_to_tokens(o: Float[Tensor, "n t d"]) -> Float[Tensor, "t nd"]:
    """A head-major tensor, which may be a view of a larger buffer, copied token-major."""
    out = torch.empty((o.shape[1], o.shape[0], o.shape[2]), dtype=o.dtype, device=o.device)
    _copy(out, o.transpose(0, 1))
    return out.flatten(1)


def tokens_to_heads(x: Float[Tensor, "t nd"], out: Float[Tensor, "n t d"]) -> None:
    """A token-major tensor copied head-major into `out`, which may be a view of a larger buffer."""
    _copy(out.transpose(0, 1), x.view(len(x), out.shape[0], out.shape[2]))


def swiglu(gate: Float[Tensor, "t f"], up: Float[Tensor, "t f"]) -> Float[Tensor, "t f"]:
    """silu(gate) · up."""
    if kernels := _kernels(gate):
        z: Tensor = kernels.swiglu(gate, up)
        return z
    wide = _wide(gate)
    return (wide * wide.sigmoid() * up).to(gate.dtype)


def swiglu_backward_(gate: Float[Tensor, "t f"], up: Float[Tensor, "t f"], dz: Float[Tensor, "t f"]) -> None:
    """The gradients of `swiglu` in place of what they belong to, and z = silu(gate) · up in place of dz."""
    if kernels := _kernels(gate):
        kernels.swiglu_backward_(gate, up, dz)
        return
    wide, wide_up, slope = _wide(gate), _wide(up), _wide(dz)
    share = wide.sigmoid()
    silu = wide * share
    z, dup = silu * wide_up, slope * silu
    gate.copy_(slope * wide_up * share * (1 + wide * (1 - share)))
    up.copy_(dup)
    dz.copy_(z)


def cross_entropy_(
    logits: Float[Tensor, "t v"], targets: Int[Tensor, " t"], scale: Float[Tensor, " t"]
) -> Float[Tensor, " t"]:
    """Loss of every token in nats, not scaled; logits become the gradient of sum(scale · loss), in their own type.

    Losses are float32, for float64 logits float64. Targets lie in [0, v), also where the scale is 0; there the
    gradient is exactly 0.
    """
    if kernels := _kernels(logits):
        found: Tensor = kernels.cross_entropy_(logits, targets, scale)
        return found
    wide, at = _wide(logits), targets[:, None]
    shifted = wide - wide.amax(-1, keepdim=True)  # the maximum is taken off first: huge logits keep their differences
    total = shifted.exp().sum(-1, keepdim=True)
    losses = (total.log() - shifted.gather(1, at))[:, 0]
    slope = shifted.exp() / total
    slope.scatter_add_(1, at, slope.new_full(at.shape, -1.0))
    logits.copy_(slope * scale[:, None])
    return losses


def merge_(
    o_acc: Float[Tensor, "n s d"], lse_acc: Float[Tensor, "n s"], o: Float[Tensor, "n s d"], lse: Float[Tensor, "n s"]
) -> None:
    """Merge attention over other keys into `o_acc` and `lse_acc`, as `longspan.attention.online.merge_` does.

    The sums are float32 (float64 for float64); a part without keys has lse −inf, and finite outputs.
    """
    if kernels := _kernels(o_acc):
        kernels.merge_(o_acc, lse_acc, o, lse)
        return
    online.merge_(o_acc, lse_acc, o, lse)


def _kernels(x: Tensor) -> Any:
    """The module with the same functions in Triton, or None where plain PyTorch is to be taken."""
    return _triton_kernels() if x.is_cuda and x.dtype != torch.float64 else None


@cache
def _triton_kernels() -> Any:
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("longspan.engine.triton_kernels")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scale(wide: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)


def _turn(x: Float[Tensor, "t n d"], cos: Float[Tensor, "t pairs"], sin: Float[Tensor, "t pairs"]) -> Tensor:
    """The half-split rotation: pair i is dims (i, i + pairs). With −sin it is its own transpose."""
    pairs = cos.shape[1]
    first, second = _wide(x[..., :pairs]), _wide(x[..., pairs : 2 * pairs])
    c, s = cos[:, None], sin[:, None]
    turned = torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x.dtype)
    return torch.cat((turned, x[..., 2 * pairs :]), dim=-1)


def _copy(target: Tensor, source: Tensor) -> None:
    """A strided copy, in words of eight bytes where both allow it: that is several times faster than by number."""
    ratio = 8 // source.element_size()
    numbers = [n for x in (target, source) for n in (x.storage_offset(), *x.stride()[:-1], x.shape[-1])]
    if target.stride(-1) == source.stride(-1) == 1 and not any(n % ratio for n in numbers):
        target, source = target.view(torch.int64), source.view(torch.int64)
    target.copy_(source)
