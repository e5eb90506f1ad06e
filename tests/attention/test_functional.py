"""The portable kernels, forward and backward, against float64 autograd through the reference."""

from unittest.mock import patch

import pytest
import torch
from attention_cases import check, cut, line, wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention import functional
from longspan.attention.documents import Group
from longspan.attention.functional import Cpu, Reference, assemble, batched, tokens
from longspan.attention.online import merge

KERNELS = [Cpu(), Reference()]
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def rows(kernel, tensors, count, *, window=None):
    """One batched call on equal rows, in the views of the engine."""
    do, q, k, v = batched(Group(0, tensors[0].shape[1] // count, count), *tensors)
    o, lse = kernel.forward(q, k, v, causal=True, window=window)
    found = (o, lse, *kernel.backward(do, q, k, v, o, lse, causal=True, window=window))
    return [tokens(x) for x in found]


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 1), (6, 2)])
@pytest.mark.parametrize("length", [1, 2, 67, 130])
def test_rows(kernel, dtype, heads, kv_heads, length):
    tensors = line(heads, kv_heads, 2 * length, dtype=dtype)
    want = wanted(*tensors, runs=((0, length), (length, 2 * length)))
    check(rows(kernel, tensors, 2), want, dtype)


@kernels
@pytest.mark.parametrize("window", [1, 5, 130, 301, 400])
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows(kernel, window, dtype):
    tensors = line(4, 2, 301, dtype=dtype)
    check(rows(kernel, tensors, 1, window=window), wanted(*tensors, window=window), dtype)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("old", "new"), [(1, 1), (50, 3), (3, 50), (67, 65)])
def test_backward_of_a_part_takes_the_merged_result(kernel, dtype, old, new):
    """The last queries of a row: a full call on earlier keys, a causal one on their own, both with the whole's lse."""
    do, q, k, v = line(4, 2, old + new, dtype=dtype)
    do, q = do[:, old:], q[:, old:]
    parts = [(k[:, :old], v[:, :old], False), (k[:, old:], v[:, old:], True)]
    results = [kernel.forward(q[None], a[None], b[None], causal=causal) for a, b, causal in parts]
    o, lse = merge(*results[0], *results[1])
    o = o.to(dtype)
    full, own = (kernel.backward(do[None], q[None], a[None], b[None], o, lse, causal=c) for a, b, c in parts)
    found = (o, lse, full[0] + own[0], torch.cat((full[1], own[1]), 2), torch.cat((full[2], own[2]), 2))
    check([x[0] for x in found], wanted(do, q, k, v), dtype)


@kernels
@settings(max_examples=30)
@given(
    borders=st.sets(st.integers(1, 39), max_size=8),
    length=st.integers(1, 40),
    window=st.sampled_from([None, 1, 3, 17]),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (5, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_documents(kernel, borders, length, window, heads, dtype):
    runs, tensors = cut(length, borders), line(*heads, length, dtype=dtype)
    do, q, k, v = tensors
    with patch.object(functional, "WINDOW_BLOCK", 4), patch.object(functional, "SCORES", 64):
        o, lse = kernel.forward_documents(q, k, v, runs=runs, window=window)
        found = (o, lse, *kernel.backward_documents(do, q, k, v, o, lse, runs=runs, window=window))
    check(found, wanted(*tensors, runs=runs, window=window), dtype)


@kernels
def test_any_strides(kernel):
    """Transposed and expanded inputs: kernels read by strides, or copy."""
    _, q, k, v = line(4, 2, 33, dim=16)
    odd = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    upstream = torch.ones(1, 1, 1).expand(4, 33, 16)
    o, lse = kernel.forward(*(x[None] for x in odd), causal=True)
    turned = o.transpose(1, 3).contiguous().transpose(1, 3)
    gradients = kernel.backward(upstream[None], *(x[None] for x in odd), turned, lse, causal=True)
    check([x[0] for x in (o, lse, *gradients)], wanted(upstream, q, k, v), torch.float32)


@kernels
def test_a_window_needs_memory_of_the_window_only(kernel):
    """Score-like tensors of a whole row would be 4,001² elements: none of that size is ever made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            found = result if isinstance(result, tuple | list) else (result,)
            largest = max(largest, *(x.numel() for x in found if isinstance(x, torch.Tensor)), 0)
            return result

    do, q, k, v = (x[None] for x in line(1, 1, 4001, dim=4))
    with Watch():
        o, lse = kernel.forward(q, k, v, causal=True, window=16)
        kernel.backward(do, q, k, v, o, lse, causal=True, window=16)
    assert largest <= 160 * 160


def test_batched_is_a_view_and_tokens_its_inverse():
    x = torch.arange(2 * 20 * 3).view(2, 20, 3)
    (found,) = batched(Group(start=2, length=4, count=3), x)
    assert found.data_ptr() == x[:, 2:].data_ptr()
    assert torch.equal(found[1, 0], x[0, 6:10])
    assert torch.equal(tokens(found), x[:, 2:14])


def test_assemble_copies_parts_and_hands_a_whole_through():
    whole = (torch.randn(2, 5), torch.randn(3, 5, 4))
    assert assemble([whole], 5) is whole
    parts = [tuple(x[:, a:b] for x in whole) for a, b in ((0, 2), (2, 3), (3, 5))]
    assert all(torch.equal(a, b) for a, b in zip(assemble(parts, 5), whole, strict=True))
