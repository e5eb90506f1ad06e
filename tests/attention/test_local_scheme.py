"""Attention on one device over documents, windows, head ratios and long runs, against float64 autograd."""

import itertools
from functools import partial
from unittest.mock import patch

import pytest
import torch
from attention_cases import check, cut, errors, line, wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention import functional
from longspan.attention.documents import runs_of
from longspan.attention.functional import Cpu, Reference, tokens
from longspan.attention.online import merge_
from longspan.attention.schemes.local import Local, Piece, pieces_of
from longspan.attention.walk import backward_in_parts, blocks_of, forward_in_blocks, parts_of


def through(scheme, tensors, *, runs, window=None):
    do, q, k, v = tensors
    o, lse = scheme.forward(q, k, v, runs=runs, window=window)
    return o, lse, *scheme.backward(do, q, k, v, o, lse, runs=runs, window=window)


@pytest.mark.parametrize("kernel", [None, Reference()])
@settings(max_examples=60)
@given(
    borders=st.sets(st.integers(1, 39), max_size=8),
    length=st.integers(1, 40),
    window=st.sampled_from([None, 1, 3, 17, 100]),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 2), (8, 2), (5, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    short=st.sampled_from([1, 5, 100]),
    long=st.sampled_from([1, 5, 100]),
    block=st.sampled_from([1, 3, 7, 16, 100]),
)
def test_everything(kernel, borders, length, window, heads, dtype, short, long, block):
    scheme = Local(kernel=kernel, short_tokens=short, long_tokens=long, block_tokens=block)
    runs, tensors = cut(length, borders), line(*heads, length, dtype=dtype)
    with patch.object(functional, "WINDOW_BLOCK", 4):
        found = through(scheme, tensors, runs=runs, window=window)
    check(found, wanted(*tensors, runs=runs, window=window), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"long_tokens": 130, "block_tokens": 64}])
def test_half_precision(dtype, options):
    tensors = line(4, 2, 300, dtype=dtype, dim=16)
    runs = ((0, 11), (11, 12), (12, 160), (160, 300))
    found = through(Local(short_tokens=50, **options), tensors, runs=runs)
    check(found, wanted(*tensors, runs=runs), dtype)


def test_rows_of_one_length_share_a_call():
    calls = []

    class Counting(Cpu):
        def forward(self, q, k, v, *, causal, window=None):
            calls.append(q.shape)
            return super().forward(q, k, v, causal=causal, window=window)

    tensors = line(4, 2, 3 * 50)
    runs = runs_of(((0, 50),) * 3, 50)
    check(through(Local(kernel=Counting()), tensors, runs=runs), wanted(*tensors, runs=runs), torch.float32)
    assert calls == [(3, 4, 50, 8)]


def test_pieces():
    """Long runs of one length are a batch; short ones in between share a call."""
    runs = ((0, 10), (10, 20), (20, 22), (22, 25), (25, 37))
    assert pieces_of(runs, 37, short_tokens=5) == (
        Piece(0, 20, ((0, 10), (10, 20)), together=False),
        Piece(20, 25, ((0, 2), (2, 5)), together=True),
        Piece(25, 37, ((0, 12),), together=False),
    )
    assert pieces_of(runs, 37, short_tokens=38) == (Piece(0, 37, runs, together=True),)


def test_runs_that_leave_tokens_out_are_a_mistake():
    _, q, k, v = line(1, 1, 10)
    with pytest.raises(AssertionError, match="cover all tokens"):
        Local().forward(q, k, v, runs=((0, 9),), window=None)


def test_one_document_is_not_copied():
    _, q, k, v = line(2, 1, 20)
    whole = (torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20))

    class Fixed(Cpu):
        def forward(self, q, k, v, *, causal, window=None):
            return whole

    o, _ = Local(kernel=Fixed(), short_tokens=5).forward(q, k, v, runs=((0, 20),), window=None)
    assert o.data_ptr() == whole[0].data_ptr()


def test_long_runs_are_those_of_so_many_tokens():
    """And a batch of them is worked on as one: two calls for the second block of both rows, eight heads backward."""
    forward, backward = [], []

    class Counting(Cpu):
        def forward(self, q, k, v, *, causal, window=None):
            forward.append((*q.shape[:3], k.shape[2], causal))
            return super().forward(q, k, v, causal=causal, window=window)

        def backward(self, do, q, k, v, o, lse, *, causal, window=None):
            backward.append((*q.shape[:3], k.shape[1]))
            return super().backward(do, q, k, v, o, lse, causal=causal, window=window)

    tensors = line(4, 2, 99)
    runs = ((0, 29), (29, 59), (59, 89), (89, 99))
    scheme = Local(kernel=Counting(), short_tokens=1, long_tokens=30, block_tokens=20)
    check(through(scheme, tensors, runs=runs), wanted(*tensors, runs=runs), torch.float32)
    blocks = [(2, 4, 20, 20, True), (2, 4, 10, 10, True), (2, 4, 10, 20, False)]
    assert forward == [(1, 4, 29, 29, True), *blocks, (1, 4, 10, 10, True)]
    assert backward == [(1, 4, 29, 2), *[(2, 1, 30, 1)] * 4, (1, 4, 10, 2)]


@pytest.mark.parametrize("block", [1, 5, 8, 16, 20, 100])
def test_blocks_of_queries_see_every_key_once(block):
    """Causal calls are square and on the diagonal; the calls together see every pair once."""
    seen = torch.zeros(20, 20, dtype=torch.int)

    class Marking(Reference):
        def forward(self, q, k, v, *, causal, window=None):
            first_query, first_key = (int(x[0, 0, 0, 0]) for x in (q, k))
            size, keys = q.shape[2], k.shape[2]
            assert size == keys or not causal
            mask = torch.ones(size, keys, dtype=torch.int)
            seen[first_query : first_query + size, first_key : first_key + keys] += mask.tril() if causal else mask
            return super().forward(q, k, v, causal=causal, window=window)

    x = torch.arange(20.0).view(1, 1, 20, 1)
    forward_in_blocks(Marking(), x, x, x, block=block)
    assert torch.equal(seen, torch.ones(20, 20, dtype=torch.int).tril())


@given(length=st.integers(1, 10_000_000), block=st.sampled_from([1000, 1024, 32768]))
def test_blocks_have_fixed_borders(length, block):
    found = list(blocks_of(length, block))
    assert found[0].start == 0
    assert found[-1].stop == length
    for i, (own, after) in enumerate(itertools.pairwise(found), start=1):
        assert own.stop == after.start == i * block
    last = found[-1].stop - found[-1].start
    assert last < block + block // 8
    assert last >= min(length, block // 8)


def test_short_rests_join_the_block_before():
    k = 1024
    assert list(blocks_of(96 * k, 32 * k)) == [slice(32 * k * i, 32 * k * (i + 1)) for i in range(3)]
    assert list(blocks_of(68 * k, 32 * k))[1:] == [slice(32 * k, 64 * k), slice(64 * k, 68 * k)]
    assert list(blocks_of(68 * k - 1, 32 * k))[1:] == [slice(32 * k, 68 * k - 1)]
    assert list(blocks_of(15, 7)) == [slice(0, 7), slice(7, 14), slice(14, 15)]
    assert list(blocks_of(3, 100)) == [slice(0, 3)]


def test_another_merge():
    calls = []

    def counted(o, lse, other_o, other_lse):
        calls.append((tuple(o.shape), o.dtype, other_o.dtype))
        merge_(o, lse, other_o, other_lse)

    tensors = line(4, 2, 50, dtype=torch.bfloat16)
    scheme = Local(short_tokens=1, long_tokens=50, block_tokens=20, merge=counted)
    check(through(scheme, tensors, runs=((0, 50),)), wanted(*tensors), torch.bfloat16)
    assert calls == [((4, size, 8), torch.float32, torch.bfloat16) for size in (20, 10)]


def test_long_runs_lose_nothing_in_half_precision():
    """Merged and added up in float32: the error of many calls is no more than twice that of one."""
    tensors = line(4, 1, 512, dtype=torch.bfloat16, dim=16)
    want = wanted(*tensors)
    once = errors(through(Local(short_tokens=1), tensors, runs=((0, 512),)), want)
    many = errors(through(Local(short_tokens=1, long_tokens=1, block_tokens=32), tensors, runs=((0, 512),)), want)
    assert all(b <= 2 * a + 1e-4 for a, b in zip(once, many, strict=True)), (once, many)


def test_gradients_of_a_shared_key_head_are_rounded_once():
    """256 + 1 + 1 + 1 is 260 in bfloat16, where rounding after every sum would give 256."""
    shares = itertools.cycle([256.0, 1.0, 1.0, 1.0])

    class Fixed(Cpu):
        def backward(self, do, q, k, v, o, lse, *, causal, window=None):
            value = next(shares)
            return q.clone(), torch.full_like(k, value), torch.full_like(v, -value)

    do, q, k, v = line(8, 2, 10, dtype=torch.bfloat16)
    scheme = Local(kernel=Fixed(), short_tokens=1, long_tokens=1)
    dq, dk, dv = scheme.backward(do, q, k, v, q, q[..., 0].float(), runs=((0, 10),), window=None)
    assert torch.equal(dq, q)
    assert dk.dtype == dv.dtype == torch.bfloat16
    assert torch.equal(dk, torch.full_like(k, 260))
    assert torch.equal(dv, torch.full_like(v, -260))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_runs_are_not_copied_once_more(dtype):
    """Rows of a batch are laid out as tokens in a line from the start."""
    _, q, k, _ = (x[None].view(1, -1, 2, 10, 8)[0].transpose(0, 1) for x in line(4, 2, 20, dtype=dtype))
    o, lse = forward_in_blocks(Cpu(), q, k, k, block=7)
    found = backward_in_parts(partial(Cpu().backward, causal=True), parts_of(q, k, rows=2, heads=1), q, q, k, k, o, lse)
    assert all(tokens(x).data_ptr() == x.data_ptr() for x in (o, *found))


def test_a_wrong_pairing_of_heads_is_seen():
    """The check of these tests tells query head i with key head i // 2 from i % 2: no gradient would pass."""
    do, q, k, v = line(4, 2, 30)
    crossed = [x.repeat(2, 1, 1) for x in (k, v)]
    o, lse, dq, dk, dv = through(Local(), (do, q, *crossed), runs=((0, 30),))
    found = (o, lse, dq, *(x.view(2, 2, 30, 8).sum(0) for x in (dk, dv)))
    assert min(errors(found, wanted(do, q, k, v))) > 0.1
