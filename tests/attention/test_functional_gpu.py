"""The kernels of a CUDA device, forward and backward, against plain float64."""

import math

import pytest
import torch
from attention_cases import check, cut, errors, line, wanted

from longspan.attention.cuda import Cudnn, Flash
from longspan.attention.documents import Group
from longspan.attention.functional import Cpu, Need, Reference, batched, tokens
from longspan.attention.online import merge, merge_
from longspan.attention.schemes.local import Local
from longspan.attention.selection import activate_newest_flash, select, verdicts
from longspan.engine import pointwise

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")
BF16 = torch.bfloat16
HEADS = [(4, 1, 128), (8, 2, 128), (3, 1, 64), (2, 2, 64)]
heads = pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
kernels = pytest.mark.parametrize("kernel", [Cudnn(), Flash(), Reference()], ids=lambda kernel: kernel.name)


@pytest.fixture(autouse=True)
def _newest_devices():
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("cuDNN's kernel asks for compute capability 9.0")


def on_gpu(heads, kv_heads, dim, length, *, dtype=BF16):
    return line(heads, kv_heads, length, dim=dim, dtype=dtype, device=CUDA)


@kernels
@heads
@pytest.mark.parametrize("length", [131, 192, 777])
def test_rows_as_strided_views(kernel, heads, kv_heads, dim, length):
    tensors = on_gpu(heads, kv_heads, dim, 2 * length)
    do, q, k, v = batched(Group(0, length, 2), *tensors)
    o, lse = kernel.forward(q, k, v, causal=True)
    found = (o, lse, *kernel.backward(do, q, k, v, o, lse, causal=True))
    check([tokens(x) for x in found], wanted(*tensors, runs=((0, length), (length, 2 * length))), BF16)


class AnyLength(Cudnn):
    """cuDNN's kernel without its refusal."""

    least_tokens = 1


# Of HEADS at 64 tokens only this one failed, as strided views. An XPASS here says that it was not the length.
unsound = pytest.mark.xfail(reason="below the least tokens of cuDNN's kernel", strict=False)


@pytest.mark.parametrize("length", [pytest.param(64, marks=unsound), pytest.param(96, marks=unsound), 128, 192, 256])
@pytest.mark.parametrize("copy", [True, False], ids=["contiguous", "views"])
def test_short_rows_of_cudnn(length, copy):
    tensors = on_gpu(4, 1, 128, 2 * length)
    do, q, k, v = (x.contiguous() if copy else x for x in batched(Group(0, length, 2), *tensors))
    o, lse = AnyLength().forward(q, k, v, causal=True)
    found = (o, lse, *AnyLength().backward(do, q, k, v, o, lse, causal=True))
    check([tokens(x) for x in found], wanted(*tensors, runs=((0, length), (length, 2 * length))), BF16)


@kernels
@heads
@pytest.mark.parametrize("length", [192, 704, 777])
def test_scores_far_below_zero(kernel, heads, kv_heads, dim, length):
    """Some models have heads whose scores are all near -120, where exp(0 - lse) is infinite.

    With a mask, cuDNN's backward pass gives NaN then if 64 keys are left over (pytorch#196678); it must not without.
    """
    do, q, k, v = on_gpu(heads, kv_heads, dim, length)
    q[..., 0], k[..., 0] = 1, -120 * math.sqrt(dim)
    o, lse = (x[0] for x in kernel.forward(q[None], k[None], v[None], causal=True))
    found = kernel.backward(*(x[None] for x in (do, q, k, v, o, lse)), causal=True)
    want = wanted(do, q, k, v)
    assert want[1].max() < -89
    # The first column of dq is a sum of terms of size 1,000 that cancel to 0.
    dq, dk, dv = (x[0] for x in found)
    assert dq.isfinite().all()
    check((o, lse, dq[..., 1:], dk, dv), (*want[:2], want[2][..., 1:], *want[3:]), BF16)


@kernels
@heads
@pytest.mark.parametrize(("old", "new"), [(515, 131), (64, 700)])
def test_backward_of_a_part_takes_the_merged_result(kernel, heads, kv_heads, dim, old, new):
    do, q, k, v = on_gpu(heads, kv_heads, dim, old + new)
    do, q = do[:, old:], q[:, old:]
    parts = [(k[:, :old], v[:, :old], False), (k[:, old:], v[:, old:], True)]
    results = [kernel.forward(q[None], a[None], b[None], causal=causal) for a, b, causal in parts]
    o, lse = merge(*results[0], *results[1])
    o = o.to(BF16)
    full, own = (kernel.backward(do[None], q[None], a[None], b[None], o, lse, causal=c) for a, b, c in parts)
    found = (o, lse, full[0] + own[0], torch.cat((full[1], own[1]), 2), torch.cat((full[2], own[2]), 2))
    check([x[0] for x in found], wanted(do, q, k, v), BF16)


@pytest.mark.parametrize("kernel", [Flash(), Reference()], ids=lambda kernel: kernel.name)
@heads
@pytest.mark.parametrize("window", [1, 100, 333, 700])
def test_windows(kernel, heads, kv_heads, dim, window):
    tensors = on_gpu(heads, kv_heads, dim, 777)
    do, q, k, v = (x[None] for x in tensors)
    o, lse = kernel.forward(q, k, v, causal=True, window=window)
    found = (o, lse, *kernel.backward(do, q, k, v, o, lse, causal=True, window=window))
    check([x[0] for x in found], wanted(*tensors, window=window), BF16)


@pytest.mark.parametrize("kernel", [Flash(), Reference()], ids=lambda kernel: kernel.name)
@heads
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("borders", [(1, 2, 3, 67, 300, 301), range(1000), range(0, 900, 7), ()])
def test_documents(kernel, heads, kv_heads, dim, window, borders):
    runs, tensors = cut(700, borders), on_gpu(heads, kv_heads, dim, 700)
    do, q, k, v = tensors
    o, lse = kernel.forward_documents(q, k, v, runs=runs, window=window)
    found = (o, lse, *kernel.backward_documents(do, q, k, v, o, lse, runs=runs, window=window))
    check(found, wanted(*tensors, runs=runs, window=window), BF16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_types_find_a_kernel(dtype):
    tensors = on_gpu(4, 2, 64, 300, dtype=dtype)
    do, q, k, v = tensors
    o, lse = Local().forward(q, k, v, runs=((0, 300),), window=None)
    found = (o, lse, *Local().backward(do, q, k, v, o, lse, runs=((0, 300),), window=None))
    check(found, wanted(*tensors), dtype)


@heads
@pytest.mark.parametrize("window", [None, 200])
def test_local(heads, kv_heads, dim, window):
    """Long rows of a batch, a single call for a shorter one, and short documents in between."""
    runs = ((0, 700), (700, 1400), (1400, 1401), (1401, 1450), (1450, 1777))
    tensors = on_gpu(heads, kv_heads, dim, 1777)
    do, q, k, v = tensors
    scheme = Local(short_tokens=256, long_tokens=700, block_tokens=256)
    o, lse = scheme.forward(q, k, v, runs=runs, window=window)
    found = (o, lse, *scheme.backward(do, q, k, v, o, lse, runs=runs, window=window))
    check(found, wanted(*tensors, runs=runs, window=window), BF16)


@heads
@pytest.mark.parametrize("merging", [merge_, pointwise.merge_])
@pytest.mark.parametrize("kernel", [Cudnn(), Flash()], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("block", [512, 1024, 2900])
def test_a_long_run(heads, kv_heads, dim, merging, kernel, block):
    """Blocks of queries with a rest of 440, of 952, or one that joins; single heads backward."""
    tensors = on_gpu(heads, kv_heads, dim, 3000)
    do, q, k, v = tensors
    scheme = Local(kernel=kernel, long_tokens=3000, block_tokens=block, merge=merging)
    o, lse = scheme.forward(q, k, v, runs=((0, 3000),), window=None)
    found = (o, lse, *scheme.backward(do, q, k, v, o, lse, runs=((0, 3000),), window=None))
    check(found, wanted(*tensors), BF16)


# -- what is chosen --------------------------------------------------------------------------------------------------


@heads
def test_the_fast_kernels_pass_their_self_test(heads, kv_heads, dim):
    need = Need(device=CUDA, dtype=BF16, head_dim=dim, ratio=heads // kv_heads)
    assert [verdict.reason for verdict in verdicts(need)] == ["", "", "runs on a CPU only", ""]


def test_choices():
    assert select(CUDA, BF16, head_dim=128, ratio=4) == Cudnn()
    assert select(CUDA, BF16, head_dim=256, ratio=4) == Flash()
    assert select(CUDA, BF16, head_dim=128, ratio=4, window=True) == Flash()
    assert select(CUDA, BF16, head_dim=128, ratio=4, short=True) == Flash()
    assert select(CUDA, torch.float32, head_dim=128, ratio=4) == Reference()
    assert select(torch.device("cpu"), BF16, head_dim=128, ratio=4) == Cpu()


def test_the_newest_flash_is_sound():
    need = Need(device=CUDA, dtype=BF16, head_dim=128, ratio=4)
    assert activate_newest_flash(need) in ("FA2", "FA3", "FA4")
    assert verdicts(need)[1].reason == ""


# -- more than 2^31 elements -----------------------------------------------------------------------------------------

LONG = 2**31 // (8 * 128) + 129  # tokens; 8 heads of 128 pass 2^31 elements


def large(count, length):
    generator = torch.Generator(CUDA).manual_seed(count)
    return torch.randn(count, length, 128, generator=generator, device=CUDA, dtype=BF16)


@pytest.mark.parametrize("kernel", [Cudnn(), Flash()], ids=lambda kernel: kernel.name)
def test_long_rows(kernel):
    """All queries against few keys, backward in several calls of cuDNN's.

    Only sampled queries have a gradient, so float64 needs only those.
    """
    rows = torch.tensor([0, 1, 12345, LONG // 2, LONG - 200, LONG - 2, LONG - 1], device=CUDA)
    q, k, v = large(8, LONG), large(2, 512), large(2, 512)
    do = torch.zeros_like(q)
    do[:, rows] = large(8, len(rows))
    o, lse = (x[0] for x in kernel.forward(q[None], k[None], v[None], causal=False))
    found = kernel.backward(*(x[None] for x in (do, q, k, v, o, lse)), causal=False)
    dq, dk, dv = (x[0] for x in found)
    few = [x.double().requires_grad_() for x in (q[:, rows], k, v)]
    key, value = (x.repeat_interleave(4, 0) for x in few[1:])
    scores = few[0] @ key.transpose(1, 2) / math.sqrt(128)
    want = scores.softmax(-1) @ value
    gradients = torch.autograd.grad(want, few, do[:, rows].double())
    pairs = [(o[:, rows], want), (lse[:, rows], scores.logsumexp(-1)), (dq[:, rows], gradients[0])]
    pairs += [(dk, gradients[1]), (dv, gradients[2])]
    worst = errors(*zip(*((a, b.detach()) for a, b in pairs), strict=True))
    assert max(worst) <= 0.03, worst
    dq[:, rows] = 0
    assert not dq.any()


@pytest.mark.parametrize(("size", "window"), [(1001, None), (1001, 300), (2049, None)])
def test_many_documents(size, window):
    """Documents of one call, or rows of one batch: the first, the middle one and the last."""
    runs = tuple((start, start + size) for start in range(0, LONG, size))
    length = runs[-1][1]
    assert 8 * 128 * length > 2**31
    do, q, k, v = large(8, length), large(8, length), large(2, length), large(2, length)
    o, lse = Local().forward(q, k, v, runs=runs, window=window)
    dq, dk, dv = Local().backward(do, q, k, v, o, lse, runs=runs, window=window)
    for start, stop in (runs[0], runs[len(runs) // 2], runs[-1]):
        part = [x[:, start:stop] for x in (do, q, k, v)]
        found = [x[:, start:stop] for x in (o, lse, dq, dk, dv)]
        check(found, wanted(*part, window=window), BF16)
