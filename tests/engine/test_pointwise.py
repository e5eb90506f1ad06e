"""The token-wise steps in plain PyTorch against float64 autograd, and their roundings against the plain decoder's."""

import pointwise_cases as cases
import pytest
import torch

from longspan.engine import pointwise
from longspan.model.decoder import Norm
from longspan.rope.rotate import rotate

LIKES = [torch.empty(0, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
like = pytest.mark.parametrize("like", LIKES, ids=lambda x: str(x.dtype).removeprefix("torch."))


@like
def test_norm(like):
    cases.check(cases.norm_case(pointwise, like, t=5, m=24))


def test_norm_rounds_as_the_decoder_does():
    x, norm = torch.randn(64, 48).bfloat16() * 5, Norm(48, 1e-6)
    for dtype in (torch.float32, torch.bfloat16):
        norm.weight.data = torch.randn(48).to(dtype)
        assert torch.equal(pointwise.norm(x, norm.weight.data, 1e-6), norm(x).detach())


@like
@pytest.mark.parametrize("alias", ["", "x", "dn", "residual"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dweight", [True, False])
def test_norm_backward(like, alias, residual, dweight):
    case = cases.norm_backward_case(pointwise, like, t=7, m=24, residual=residual, dweight=dweight, alias=alias)
    cases.check(case)


@like
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("pairs", [8, 3])
def test_rotation_there_and_back(like, normed, pairs):
    cases.check(cases.rotate_case(pointwise, like, t=5, n=3, d=16, pairs=pairs, normed=normed))
    cases.check(cases.rotate_back_case(pointwise, like, t=5, n=3, d=16, pairs=pairs))


def test_rotation_rounds_as_the_decoders_does():
    x, angles = torch.randn(9, 2 * 16).bfloat16(), torch.rand(9, 6) * 6
    cos, sin, out = angles.cos(), angles.sin(), torch.empty(2, 9, 16, dtype=torch.bfloat16)
    pointwise.rotate_into(x, cos, sin, out)
    assert torch.equal(out, rotate(x.view(1, 9, 2, 16).transpose(1, 2), cos[None], sin[None])[0])


@pytest.mark.parametrize("d", [16, 6, 5])
@pytest.mark.parametrize("start", [0, 1])
def test_heads_and_tokens_change_places(d, start):
    """d 16 is copied in words of eight bytes, d 5 cannot be; neither touches what lies beside."""
    buffer = torch.full((3, 9, d), cases.BESIDE, dtype=torch.bfloat16)
    view = buffer[:, start : start + 4]
    x = torch.randn(4, 3 * d).bfloat16()
    pointwise.tokens_to_heads(x, view)
    for token in range(4):
        for head in range(3):
            assert torch.equal(buffer[head, start + token], x[token, head * d : (head + 1) * d])
    assert (buffer == cases.BESIDE).sum() >= 3 * 5 * d
    assert torch.equal(pointwise.heads_to_tokens(view), x)


@like
def test_swiglu(like):
    cases.check(cases.swiglu_case(pointwise, like, t=5, f=40))
    cases.check(cases.swiglu_backward_case(pointwise, like, t=5, f=40))


@like
@pytest.mark.parametrize("v", [3, 200])
def test_cross_entropy(like, v):
    cases.check(cases.cross_entropy_case(pointwise, like, t=9, v=v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_of_huge_logits(dtype):
    cases.huge_logits_case(pointwise, torch.empty(0, dtype=dtype))


@like
def test_merge(like):
    cases.check(cases.merge_case(pointwise, like, n=3, s=10, d=16))


def test_without_triton_there_are_no_kernels(monkeypatch):
    pointwise._triton_kernels.cache_clear()
    monkeypatch.setattr(pointwise.importlib.util, "find_spec", lambda name: None)
    assert pointwise._triton_kernels() is None
    pointwise._triton_kernels.cache_clear()
