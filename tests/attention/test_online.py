"""The merge of partial results against attention over all keys at once."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention.online import merge, merge_


def part(q, k, v):
    scores = q @ k.transpose(-1, -2)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 23), min_size=2, max_size=2, unique=True), seed=st.integers(0, 1000))
def test_any_split_and_order_gives_the_whole(cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=generator)
    k, v = (torch.randn(1, 2, 24, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    low, high = sorted(cuts)
    a, b, c = (part(q, k[:, :, s], v[:, :, s]) for s in (slice(0, low), slice(low, high), slice(high, 24)))
    want_o, want_lse = part(q, k, v)
    for o, lse in (merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c)), merge(*c, *merge(*b, *a))):
        torch.testing.assert_close(o, want_o, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(lse, want_lse, rtol=1e-9, atol=1e-9)


def test_empty_parts_change_nothing_and_give_no_nan():
    o, lse = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2)
    nothing, never = torch.zeros(1, 1, 2, 4), torch.full((1, 1, 2), float("-inf"))
    for result in (merge(o, lse, nothing, never), merge(nothing, never, o, lse)):
        torch.testing.assert_close(result[0], o)
        torch.testing.assert_close(result[1], lse)
    empty_o, empty_lse = merge(nothing, never, nothing, never)
    assert torch.equal(empty_o, nothing)
    assert torch.isneginf(empty_lse).all()


def test_large_logits_do_not_overflow():
    o, other = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    merged, lse = merge(o, torch.full((1, 1, 1), 5e4), other, torch.full((1, 1, 1), -5e4))
    assert merged.item() == 1.0
    assert lse.item() == 5e4


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 23), dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 1000))
def test_in_place_is_the_same(cut, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, 4, dtype=dtype, generator=generator) for n in (3, 24, 24))
    want_o, want_lse = part(q, k, v)
    o, lse = part(q, k[:, :cut], v[:, :cut])
    merge_(o, lse, *part(q, k[:, cut:], v[:, cut:]))
    torch.testing.assert_close(o, want_o, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, want_lse, rtol=1e-4, atol=1e-5)


def test_in_place_with_rows_without_keys():
    """Rows in turn: only the first part has keys, only the second, neither, both."""
    never = float("-inf")
    o, other = torch.tensor([1.0, 0, 0, 1])[:, None], torch.tensor([0.0, 3, 0, 3])[:, None]
    lse, other_lse = torch.tensor([0.5, never, never, 0]), torch.tensor([never, 0.25, never, 0])
    merge_(o, lse, other.bfloat16(), other_lse)
    torch.testing.assert_close(o[:, 0], torch.tensor([1.0, 3, 0, 2]))
    torch.testing.assert_close(lse, torch.tensor([0.5, 0.25, never, math.log(2)]))


def test_in_place_takes_slices():
    o, lse = torch.randn(2, 9, 4), torch.randn(2, 9)
    other, other_lse = torch.randn(2, 3, 4), torch.randn(2, 3)
    want_o, want_lse = merge(o[None, :, 4:7], lse[None, :, 4:7], other[None], other_lse[None])
    before, before_lse = o.clone(), lse.clone()
    merge_(o[:, 4:7], lse[:, 4:7], other, other_lse)
    torch.testing.assert_close(o[:, 4:7], want_o[0])
    torch.testing.assert_close(lse[:, 4:7], want_lse[0])
    outside = [0, 1, 2, 3, 7, 8]
    assert torch.equal(o[:, outside], before[:, outside])
    assert torch.equal(lse[:, outside], before_lse[:, outside])
