"""Attention on one device over documents, windows, head ratios and walks, against float64 autograd."""

from unittest.mock import patch

import pytest
import torch
from attention_cases import check, cut, errors, line, wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention import functional
from longspan.attention.documents import runs_of
from longspan.attention.functional import Cpu, Reference
from longspan.attention.online import merge_
from longspan.attention.schemes.local import Local, Piece, pieces_of
from longspan.attention.walk import Walk, even


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
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (5, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    blocks=st.tuples(*[st.sampled_from([None, 1, 3, 7, 100])] * 3),
    short=st.sampled_from([1, 5, 100]),
)
def test_everything(kernel, borders, length, window, heads, dtype, blocks, short):
    keys, rows, backward_keys = blocks
    scheme = Local(
        kernel=kernel, walk_tokens=keys, walk_rows=rows, backward_walk_tokens=backward_keys, short_tokens=short
    )
    runs, tensors = cut(length, borders), line(*heads, length, dtype=dtype)
    with patch.object(functional, "WINDOW_BLOCK", 4):
        found = through(scheme, tensors, runs=runs, window=window)
    check(found, wanted(*tensors, runs=runs, window=window), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"walk_tokens": 64, "backward_walk_tokens": 64, "walk_rows": 64}])
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


@pytest.mark.parametrize("rows", [None, 8, 5])
def test_a_walk_calls_no_more_than_it_must(rows):
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
    Walk(kernel=Marking(), keys=8, rows=rows).forward(x, x, x)
    assert torch.equal(seen, torch.ones(20, 20, dtype=torch.int).tril())


@given(
    start=st.integers(0, 1000), length=st.integers(0, 10_000_000), most=st.sampled_from([None, 128, 1000, 1024, 65536])
)
def test_blocks_of_a_walk_are_even(start, length, most):
    found = list(even(start, start + length, most))
    sizes = [block.stop - block.start for block in found]
    assert sum(sizes) == length
    assert [block.start for block in found] == [start + sum(sizes[:i]) for i in range(len(sizes))]
    if most is not None and sizes:
        assert len(sizes) == -(-length // most)
        assert max(sizes) <= most
        assert min(sizes) >= max(sizes) - 256 if most > 1000 else min(sizes) >= 1


def test_large_blocks_of_a_walk_are_whole_tiles():
    blocks = [block.stop - block.start for block in even(0, 2**20 + 1, 65536)]
    assert len(blocks) == 17
    assert all(size % 128 == 0 for size in blocks[:-1])
    assert [block.stop for block in even(0, 2**20, 65536)] == [65536 * i for i in range(1, 17)]


def test_a_walk_with_another_merge():
    calls = []

    def counted(o, lse, other_o, other_lse):
        calls.append((tuple(o.shape), other_o.dtype))
        merge_(o, lse, other_o, other_lse)

    tensors = line(4, 2, 50, dtype=torch.bfloat16)
    found = through(Local(walk_tokens=20, short_tokens=1, merge=counted), tensors, runs=((0, 50),))
    check(found, wanted(*tensors), torch.bfloat16)
    # Blocks end at 16, 33, 50. Tokens from 16 on meet the first in their first call; then 16-33 and 33-50 meet the
    # second, and 33-50 the third.
    assert calls == [((4, size, 8), torch.bfloat16) for size in (17, 17, 17)]


def test_a_walk_loses_nothing_in_half_precision():
    """Merged in float32: the error of many blocks is no more than twice that of one call."""
    tensors = line(2, 1, 512, dtype=torch.bfloat16, dim=16)
    want = wanted(*tensors)
    once = errors(through(Local(short_tokens=1), tensors, runs=((0, 512),)), want)
    walk = Local(short_tokens=1, walk_tokens=32, backward_walk_tokens=32)
    many = errors(through(walk, tensors, runs=((0, 512),)), want)
    assert all(b <= 2 * a + 1e-4 for a, b in zip(once, many, strict=True)), (once, many)


def test_a_wrong_pairing_of_heads_is_seen():
    """The check of these tests tells query head i with key head i // 2 from i % 2: no gradient would pass."""
    do, q, k, v = line(4, 2, 30)
    crossed = [x.repeat(2, 1, 1) for x in (k, v)]
    o, lse, dq, dk, dv = through(Local(), (do, q, *crossed), runs=((0, 30),))
    found = (o, lse, dq, *(x.view(2, 2, 30, 8).sum(0) for x in (dk, dv)))
    assert min(errors(found, wanted(do, q, k, v))) > 0.1


def test_traits_of_one_device():
    assert Local.traits.sent_forward_bytes == Local.traits.sent_backward_bytes == 0
