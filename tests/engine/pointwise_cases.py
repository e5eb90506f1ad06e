"""Cases for the token-wise steps: inputs, and what must come out, from float64 formulas and autograd.

`ops` is a module with the functions of `engine/pointwise.py`. Each case gives what was found and what is wanted, and,
where an error may be larger than the number itself suggests, the size that it is compared with.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

Pairs = dict[str, tuple[Tensor, ...]]
EPSILON = 1e-5
BESIDE = 7.0  # fills buffers around the views that are written to


def check(pairs: Pairs, *, times: float = 1.0) -> None:
    """Within a few roundings of the type found, for the size of each number and for the mean."""
    for name, (found, want, *sizes) in pairs.items():
        assert found.shape == want.shape, name
        several = (2 if found.dtype == torch.bfloat16 else 64) * torch.finfo(found.dtype).eps
        mean = want[want.isfinite()].abs().mean()
        allowed = times * several * ((sizes[0] if sizes else want.abs()) + mean)
        error = torch.where(found == want, 0.0, (found.double() - want).abs())
        assert (error <= allowed).all(), f"{name}: off by {(error / allowed).max():.3g} times what is allowed"


def draw(*shape: int, like: Tensor) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, device=like.device).to(like.dtype)


def padded(x: Tensor) -> Tensor:
    """The same numbers as columns of a wider tensor: rows with a stride of their own."""
    wide = torch.full((x.shape[0], x.shape[1] + 16), BESIDE, dtype=x.dtype, device=x.device)
    wide[:, 8 : 8 + x.shape[1]] = x
    return wide[:, 8 : 8 + x.shape[1]]


def leaf(x: Tensor) -> Tensor:
    """A float64 copy to differentiate by."""
    return x.detach().double().clone().requires_grad_()


def grad(output: Tensor, inputs: list[Tensor], slope: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, slope.double())


def norm_formula(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) / x.shape[-1] + EPSILON).sqrt() * weight


def norm_case(ops, like: Tensor, *, t: int, m: int, weight_dtype: torch.dtype | None = None) -> Pairs:
    x, weight = padded(draw(t, m, like=like) * 3), draw(m, like=like).to(weight_dtype or like.dtype)
    return {"n": (ops.norm(x, weight, EPSILON), norm_formula(x.double(), weight.double()))}


def norm_backward_case(ops, like: Tensor, *, t: int, m: int, residual: bool, dweight: bool, alias: str = "") -> Pairs:
    """`alias` names the input that is to be overwritten with the result."""
    x, dn, above = (padded(draw(t, m, like=like) * scale) for scale in (3, 1, 2))
    weight = draw(m, like=like)
    leaves = [leaf(x), leaf(weight)]
    want_x, want_weight = grad(norm_formula(*leaves), leaves, dn)
    want_x = want_x + above.double() if residual else want_x
    sums = torch.full((m,), 2.0, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    out = {"x": x, "dn": dn, "residual": above}.get(alias)
    found = ops.norm_backward(
        dn, x, weight, EPSILON, residual=above if residual else None, dweight=sums if dweight else None, out=out
    )
    assert out is None or found.data_ptr() == out.data_ptr()
    return {
        "dx": (found, want_x),
        "dweight": (sums, want_weight + 2.0 if dweight else torch.full_like(want_weight, 2.0)),
    }


def turn_formula(heads: Tensor, angles: Tensor, factor: float) -> Tensor:
    """Pairs of dims as complex numbers times factor·e^(i·angle), for heads `[t, n, d]`."""
    pairs = angles.shape[1]
    z = torch.complex(heads[..., :pairs], heads[..., pairs : 2 * pairs]) * torch.polar(
        torch.full_like(angles, factor), angles
    ).unsqueeze(1)
    return torch.cat((z.real, z.imag, heads[..., 2 * pairs :]), dim=-1)


def angles_of(t: int, pairs: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Angles, their cosines and sines times an attention factor in the type that the engine holds them, the factor."""
    angles, factor = torch.rand((t, pairs), dtype=torch.float64, device=like.device) * 6.28, 1.25
    held = torch.promote_types(like.dtype, torch.float32)
    return angles, (angles.cos() * factor).to(held), (angles.sin() * factor).to(held), factor


def rotate_case(
    ops, like: Tensor, *, t: int, n: int, d: int, pairs: int, normed: bool = False, length: int = 0
) -> Pairs:
    """Into the last t tokens of a buffer of `length` tokens."""
    x, (angles, cos, sin, factor) = padded(draw(t, n * d, like=like)), angles_of(t, pairs, like)
    weight = draw(d, like=like) if normed else None
    buffer = torch.full((n, max(length, t + 3), d), BESIDE, dtype=like.dtype, device=like.device)
    ops.rotate_into(x, cos, sin, buffer[:, -t:], norm_weight=weight, epsilon=EPSILON)
    heads = x.double().reshape(t, n, d)
    heads = heads if weight is None else norm_formula(heads, weight.double())
    assert (buffer[:, -t - 3 : -t] == BESIDE).all()
    want = turn_formula(heads, angles, factor).transpose(0, 1)
    size = want.abs()  # the norm is rounded before the rotation, so both dims of a pair share their errors
    size[..., : 2 * pairs] = torch.hypot(want[..., :pairs], want[..., pairs : 2 * pairs]).repeat(1, 1, 2)
    return {"rotated": (buffer[:, -t:], want, size)}


def rotate_back_case(ops, like: Tensor, *, t: int, n: int, d: int, pairs: int, length: int = 0) -> Pairs:
    angles, cos, sin, factor = angles_of(t, pairs, like)
    buffer = torch.full((n, max(length, t + 3), d), BESIDE, dtype=like.dtype, device=like.device)
    dx = buffer[:, -t:]
    dx.copy_(draw(n, t, d, like=like))
    heads = torch.zeros((t, n, d), dtype=torch.float64, device=like.device, requires_grad=True)
    (want,) = grad(turn_formula(heads, angles, factor), [heads], dx.transpose(0, 1))
    return {"back": (ops.rotate_back(dx, cos, sin), want.flatten(1))}


def swiglu_case(ops, like: Tensor, *, t: int, f: int) -> Pairs:
    gate, up = (padded(draw(t, f, like=like) * 3) for _ in range(2))
    return {"z": (ops.swiglu(gate, up), functional.silu(gate.double()) * up.double())}


def swiglu_backward_case(ops, like: Tensor, *, t: int, f: int) -> Pairs:
    gate, up, dz = (padded(draw(t, f, like=like) * 3) for _ in range(3))
    leaves = [leaf(gate), leaf(up)]
    z = functional.silu(leaves[0]) * leaves[1]
    want = grad(z, leaves, dz)
    ops.swiglu_backward_(gate, up, dz)
    return {"dgate": (gate, want[0]), "dup": (up, want[1]), "z": (dz, z.detach())}


def cross_entropy_case(ops, like: Tensor, *, t: int, v: int) -> Pairs:
    logits = padded(draw(t, v, like=like) * 4)
    targets = torch.randint(0, v, (t,), device=like.device)
    held = torch.promote_types(like.dtype, torch.float32)
    scale = (torch.arange(t, device=like.device) % 3 / 64).to(held)  # the first of every three is 0
    wide = leaf(logits)
    losses = functional.cross_entropy(wide, targets, reduction="none")
    (slope,) = grad(losses, [wide], scale)
    found = ops.cross_entropy_(logits, targets, scale)
    assert found.dtype == held
    assert (logits[::3] == 0).all()
    return {"losses": (found, losses.detach()), "dlogits": (logits, slope)}


def huge_logits_case(ops, like: Tensor) -> None:
    """Nothing but numbers comes out of logits as large as they get, and nothing at all where the scale is 0."""
    logits = torch.tensor([[3e38, 3e38, -1.0], [3e38, 2.0, -1.0], [3e38, 3e38, 1.0]], device=like.device).to(like.dtype)
    targets = torch.tensor([0, 0, 1], device=like.device)
    losses = ops.cross_entropy_(logits, targets, torch.tensor([1.0, 1.0, 0.0], device=like.device))
    want = [[-0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert logits.tolist() == want
    torch.testing.assert_close(losses.tolist(), [math.log(2), 0.0, math.log(2)])


def merge_case(ops, like: Tensor, *, n: int, s: int, d: int, length: int = 0) -> Pairs:
    """Sums over two sets of keys from the parts' own sums; some parts have no keys, some rows none at all."""
    held = torch.promote_types(like.dtype, torch.float32)
    sums = torch.zeros((n, max(length, s + 3), d), dtype=held, device=like.device)[:, -s:]
    sums.copy_(draw(n, s, d, like=like))
    o = padded(draw(s, n * d, like=like)).view(s, n, d).transpose(0, 1)
    lse_acc, lse = (draw(n, s, like=like).to(held) * 4 for _ in range(2))
    lse_acc[:, 0::5], lse[:, 1::5] = -math.inf, -math.inf
    lse_acc[:, 4::5] = lse[:, 4::5] = -math.inf
    sums[lse_acc.isneginf()] = 0
    o[lse.isneginf()] = 0
    shares = torch.stack((lse_acc, lse)).double().exp()
    total = shares.sum(0)
    parts = shares[0, ..., None] * sums.double() + shares[1, ..., None] * o.double()
    want = torch.where(total[..., None] > 0, parts / total[..., None], 0.0)
    ops.merge_(sums, lse_acc, o, lse)
    return {"o": (sums, want), "lse": (lse_acc, total.log())}
