"""What cuDNN's kernel is not given: calls beyond its indices, and rows too short. Its place is taken by the CPU's."""

import pytest
import torch
from attention_cases import check, line, wanted
from hypothesis import given
from hypothesis import strategies as st

from longspan.attention.cuda import Cudnn
from longspan.attention.documents import Group
from longspan.attention.functional import Cpu, batched, tokens
from longspan.utils.errors import LongspanError

LENGTH, DIM = 10, 8
ROW = LENGTH * DIM  # elements of one head of one row


def limited(most):
    """cuDNN's kernel with lower limits, and the query shapes of the calls that it makes."""
    calls = []

    class Small(Cudnn):
        least_tokens = 1
        most_elements = most

        def _backward_call(self, do, q, k, v, o, lse, *, causal):
            calls.append(tuple(q.shape[:2]))
            for x in (do, q, o):
                assert x.numel() <= most
                assert x[-1, -1, -1, -1].storage_offset() - x.storage_offset() < most
            return Cpu().backward(do, q, k, v, o, lse, causal=causal)

    return Small(), calls


def backward(most, heads, kv_heads, rows, *, dtype=torch.float32, copy=False):
    """The calls of a batch of rows, in the views of the engine or contiguous, once the gradients are found right."""
    tensors = line(heads, kv_heads, rows * LENGTH, dim=DIM, dtype=dtype)
    do, q, k, v = (x.contiguous() if copy else x for x in batched(Group(0, LENGTH, rows), *tensors))
    kernel, calls = limited(most)
    o, lse = Cpu().forward(q, k, v, causal=True)
    found = (o, lse, *kernel.backward(do, q, k, v, o, lse, causal=True))
    runs = tuple((LENGTH * i, LENGTH * (i + 1)) for i in range(rows))
    check([tokens(x) for x in found], wanted(*tensors, runs=runs), dtype)
    return calls


@given(
    most=st.integers(ROW, 20 * ROW),
    heads=st.sampled_from([(1, 1), (4, 1), (6, 2), (4, 4), (8, 2)]),
    rows=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    copy=st.booleans(),
)
def test_no_call_passes_the_limit(most, heads, rows, dtype, copy):
    calls = backward(most, *heads, rows, dtype=dtype, copy=copy)
    assert sum(n * h for n, h in calls) == rows * heads[0]


@pytest.mark.parametrize(
    ("most", "calls"),
    [
        (24 * ROW, [(3, 8)]),
        (24 * ROW - 1, [(3, 4)] * 2),
        (12 * ROW - 1, [(3, 1)] * 8),
        (3 * ROW - 1, [(1, 1)] * 24),
        (ROW, [(1, 1)] * 24),
    ],
)
def test_heads_are_split_before_rows(most, calls):
    assert backward(most, 8, 2, 3) == calls


def test_a_row_beyond_the_limit_is_refused():
    with pytest.raises(LongspanError) as caught:
        backward(ROW - 1, 2, 1, 1)
    assert caught.value.code == "attention.row-length"
    assert "use rows of at most 9 tokens" in str(caught.value)


def test_limits_of_the_kernel():
    assert Cudnn.most_elements == 2_147_483_647
    x = torch.zeros(1, 1, 127, 8)
    with pytest.raises(AssertionError, match="rows of 128 tokens or more"):
        Cudnn().forward(x, x, x, causal=True)
    with pytest.raises(AssertionError, match="rows of 128 tokens or more"):
        Cudnn().backward(x, x, x, x, x, x[..., 0], causal=True)
    with pytest.raises(AssertionError, match="no window"):
        Cudnn().forward(x, x, x, causal=True, window=3)
