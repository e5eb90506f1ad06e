"""The token-wise kernels on a CUDA device in bfloat16 against float64, at the widths of real models and past 2^31."""

import pointwise_cases as cases
import pytest
import torch

from longspan.engine import pointwise

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
FAR = 2**31  # numbers that 32-bit offsets reach


@pytest.fixture
def like():
    pytest.importorskip("triton")
    torch.cuda.empty_cache()
    return torch.empty(0, dtype=torch.bfloat16, device="cuda")


@pytest.mark.parametrize(("t", "m"), [(1000, 4096), (3, 5120), (8000, 128), (77, 64), (5, 16384)])
def test_norm(like, t, m):
    cases.check(cases.norm_case(pointwise, like, t=t, m=m))
    cases.check(cases.norm_case(pointwise, like, t=t, m=m, weight_dtype=torch.float32))


@pytest.mark.parametrize(("t", "m"), [(1000, 4096), (3, 5120), (8000, 128), (77, 64), (5, 16384)])
def test_norm_backward(like, t, m):
    cases.check(cases.norm_backward_case(pointwise, like, t=t, m=m, residual=True, dweight=True))
    cases.check(cases.norm_backward_case(pointwise, like, t=t, m=m, residual=False, dweight=True))
    for alias in ("x", "dn", "residual"):
        cases.check(cases.norm_backward_case(pointwise, like, t=t, m=m, residual=True, dweight=False, alias=alias))


def test_norm_backward_gives_the_same_bits_twice(like):
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        case = cases.norm_backward_case(pointwise, like, t=3000, m=4096, residual=True, dweight=True)
        found.append(case["dweight"][0])
    assert torch.equal(*found)


@pytest.mark.parametrize(("n", "d", "pairs"), [(32, 128, 64), (9, 64, 32), (8, 128, 32), (3, 80, 40)])
@pytest.mark.parametrize("normed", [False, True])
def test_rotation(like, n, d, pairs, normed):
    cases.check(cases.rotate_case(pointwise, like, t=500, n=n, d=d, pairs=pairs, normed=normed))
    cases.check(cases.rotate_back_case(pointwise, like, t=500, n=n, d=d, pairs=pairs))


def test_heads_and_tokens_change_places(like):
    x, buffer = cases.draw(500, 32 * 128, like=like), torch.zeros((32, 700, 128), dtype=like.dtype, device="cuda")
    pointwise.tokens_to_heads(x, buffer[:, 100:600])
    assert torch.equal(buffer[:, 100:600].transpose(0, 1).reshape(500, -1), x)
    assert buffer[:, :100].count_nonzero() == buffer[:, 600:].count_nonzero() == 0
    assert torch.equal(pointwise.heads_to_tokens(buffer[:, 100:600]), x)


@pytest.mark.parametrize("f", [14336, 2500, 64])
def test_swiglu(like, f):
    cases.check(cases.swiglu_case(pointwise, like, t=300, f=f))
    cases.check(cases.swiglu_backward_case(pointwise, like, t=300, f=f))


@pytest.mark.parametrize("v", [128256, 256512, 49152, 53])
def test_cross_entropy(like, v):
    cases.check(cases.cross_entropy_case(pointwise, like, t=40, v=v))
    cases.check(cases.cross_entropy_case(pointwise, like.float(), t=4, v=v))


def test_cross_entropy_of_huge_logits(like):
    cases.huge_logits_case(pointwise, like)


@pytest.mark.parametrize(("n", "s", "d"), [(4, 1000, 128), (3, 77, 16), (1, 5000, 64)])
def test_merge(like, n, s, d):
    cases.check(cases.merge_case(pointwise, like, n=n, s=s, d=d))


# -- past 2^31 numbers -----------------------------------------------------------------------------------------------


def test_far_heads(like):
    """The third head of these buffers begins past 2^31 numbers."""
    sizes = {"n": 3, "d": 128, "length": FAR // 256 + 100}
    cases.check(cases.rotate_case(pointwise, like, t=50, pairs=64, **sizes))
    cases.check(cases.rotate_back_case(pointwise, like, t=50, pairs=64, **sizes))
    cases.check(cases.merge_case(pointwise, like, s=50, **sizes))
    assert sizes["length"] * 128 * 2 > FAR


def test_far_rows_of_norms(like):
    x = torch.zeros((FAR // 4096 + 20, 4096), dtype=like.dtype, device="cuda")
    last, dn = cases.leaf(cases.draw(10, 4096, like=like)), cases.draw(10, 4096, like=like)
    x[-10:] = last.to(like.dtype)
    weight = cases.draw(4096, like=like)
    formula = cases.norm_formula(last, weight.double())
    cases.check({"n": (pointwise.norm(x, weight, cases.EPSILON)[-10:], formula.detach())})
    slopes = torch.zeros_like(x)
    slopes[-10:] = dn
    found = pointwise.norm_backward(slopes, x, weight, cases.EPSILON, residual=x, out=slopes)
    want = cases.grad(formula, [last], dn)[0] + last.detach()
    cases.check({"dx": (found[-10:], want)})
    assert not found[:-10].any()


def test_far_rows_of_swiglu(like):
    gate, up, dz = (torch.zeros((FAR // 14336 + 20, 14336), dtype=like.dtype, device="cuda") for _ in range(3))
    parts = [x[-10:].copy_(cases.draw(10, 14336, like=like)).clone() for x in (gate, up, dz)]
    leaves = [cases.leaf(x) for x in parts[:2]]
    z = torch.nn.functional.silu(leaves[0]) * leaves[1]
    want = cases.grad(z, leaves, parts[2])
    cases.check({"z": (pointwise.swiglu(gate, up)[-10:], z.detach())})
    pointwise.swiglu_backward_(gate, up, dz)
    cases.check({"dgate": (gate[-10:], want[0]), "dup": (up[-10:], want[1]), "z": (dz[-10:], z.detach())})


def test_far_rows_of_logits(like):
    rows, v = FAR // 128256 + 20, 128256
    logits = torch.zeros((rows, v), dtype=like.dtype, device="cuda")
    wide = cases.leaf(logits[-10:].copy_(cases.draw(10, v, like=like)))
    targets, scale = torch.randint(0, v, (rows,), device="cuda"), torch.full((rows,), 0.25, device="cuda")
    losses = torch.nn.functional.cross_entropy(wide, targets[-10:], reduction="none")
    (want,) = cases.grad(losses, [wide], scale[-10:])
    found = pointwise.cross_entropy_(logits, targets, scale)
    cases.check({"losses": (found[-10:], losses.detach()), "dlogits": (logits[-10:], want)})
