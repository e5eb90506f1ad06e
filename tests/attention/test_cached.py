"""Attention over kept keys, in pieces and under masks, against softmax written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention.cached import masked, merge_all, over_all, pieces_for
from longspan.attention.online import merge


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def oracle(q, k, v, seen=None):
    """One head at a time, every score: o and log-sum-exp."""
    ratio, outputs, sums = q.shape[0] // k.shape[0], [], []
    for head in range(q.shape[0]):
        scores = q[head].double() @ k[head // ratio].double().T / q.shape[-1] ** 0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        sums.append(torch.logsumexp(scores, -1))
        outputs.append((scores - sums[-1][:, None]).exp() @ v[head // ratio].double())
    return torch.stack(outputs), torch.stack(sums)


@settings(max_examples=40)
@given(
    groups=st.integers(1, 3),
    ratio=st.integers(1, 4),
    queries=st.integers(1, 9),
    keys=st.integers(1, 70),
    pieces=st.integers(1, 8),
)
def test_all_keys_in_any_number_of_pieces(groups, ratio, queries, keys, pieces):
    q, k, v = drawn(groups * ratio, queries, 8), drawn(groups, keys, 8, seed=1), drawn(groups, keys, 8, seed=2)
    found = over_all(q, k, v, pieces=pieces)
    for mine, want in zip(found, oracle(q, k, v), strict=True):
        torch.testing.assert_close(mine.double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scores", [2**26, 5])
def test_masks_and_a_query_that_sees_nothing(scores, monkeypatch):
    monkeypatch.setattr("longspan.attention.cached.SCORES", scores)
    q, k, v = drawn(2, 4, 5, 8), drawn(2, 2, 7, 8, seed=1), drawn(2, 2, 7, 8, seed=2)
    seen = drawn(2, 5, 7, seed=3) > 0
    seen[:, :, 0] = True
    seen[1, 2] = False
    o, lse = masked(q, k, v, seen)
    for row in range(2):
        some = seen[row].any(-1)
        want_o, want_lse = oracle(q[row], k[row], v[row], seen[row])
        torch.testing.assert_close(o[row][:, some].double(), want_o[:, some], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse[row][:, some].double(), want_lse[:, some], atol=1e-5, rtol=1e-5)
    assert torch.equal(o[1, :, 2], torch.zeros(4, 8))
    assert bool(torch.isneginf(lse[1, :, 2]).all())


def test_merging_many_equals_merging_two_by_two():
    o, lse = drawn(3, 2, 5, 8), drawn(3, 2, 5, seed=1) * 9
    lse[0, 0, 0] = float("-inf")
    pair = merge(o[:1], lse[:1], o[1:2], lse[1:2])
    want = merge(*pair, o[2:], lse[2:])
    for mine, other in zip(merge_all(o, lse), want, strict=True):
        torch.testing.assert_close(mine, other[0], atol=1e-5, rtol=1e-5)


def test_a_cpu_takes_all_keys_in_one_piece():
    assert pieces_for(drawn(2, 3, 8), 10**6) == 1
