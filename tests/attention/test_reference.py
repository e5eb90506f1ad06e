"""The reference against a loop over single tokens, written here."""

import math

import pytest
import torch

from longspan.attention.reference import reference_attention


def by_hand(q, k, v, *, window, borders):
    """One query at a time, in plain sums."""
    rows, heads, length, dim = q.shape
    group = heads // k.shape[1]
    o, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=q.dtype)
    for row in range(rows):
        for head in range(heads):
            for i in range(length):
                first = max(border for border in borders[row][:-1] if border <= i)
                if window is not None:
                    first = max(first, i - window + 1)
                scores = [
                    float(q[row, head, i] @ k[row, head // group, j]) / math.sqrt(dim) for j in range(first, i + 1)
                ]
                total = math.fsum(math.exp(score) for score in scores)
                lse[row, head, i] = math.log(total)
                o[row, head, i] = sum(
                    math.exp(score) / total * v[row, head // group, first + n] for n, score in enumerate(scores)
                )
    return o, lse


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (3, 1)])
def test_equals_a_loop_over_tokens(heads, kv_heads, window):
    q = torch.randn(2, heads, 7, 4, dtype=torch.float64)
    k, v = (torch.randn(2, kv_heads, 7, 4, dtype=torch.float64) for _ in range(2))
    borders = ((0, 3, 4, 7), (0, 7))
    o, lse = reference_attention(q, k, v, window=window, spans=borders)
    want_o, want_lse = by_hand(q, k, v, window=window, borders=borders)
    torch.testing.assert_close(o, want_o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=1e-12, atol=1e-12)


def test_fewer_queries_are_the_last_ones():
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    whole, whole_lse = reference_attention(q, k, v)
    o, lse = reference_attention(q[:, :, 6:], k, v)
    torch.testing.assert_close(o, whole[:, :, 6:])
    torch.testing.assert_close(lse, whole_lse[:, :, 6:])
