"""Every kernel path against the float64 reference, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention.kernels import attend, partial_attention
from longspan.attention.reference import reference_attention


def inputs(rows, heads, kv_heads, length, *, seed=0, dim=8):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, heads, length, dim, generator=generator)
    k, v = (torch.randn(rows, kv_heads, length, dim, generator=generator) for _ in range(2))
    return [x.requires_grad_() for x in (q, k, v)]


def compare(q, k, v, **options):
    out = attend(q, k, v, **options)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = reference_attention(*wide, **options)[0]
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad(out, (q, k, v), upstream.float())
    for mine, reference in zip(got, torch.autograd.grad(want, wide, upstream), strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 2, 97, 128])
def test_causal(heads, kv_heads, length):
    compare(*inputs(2, heads, kv_heads, length))


@pytest.mark.parametrize("window", [1, 5, 130, 400])
def test_window(window):
    compare(*inputs(1, 4, 2, 301), window=window)


@settings(max_examples=25, deadline=None)
@given(
    borders=st.lists(st.sets(st.integers(1, 39), max_size=6), min_size=2, max_size=2),
    window=st.sampled_from([None, 3]),
    seed=st.integers(0, 99),
)
def test_documents(borders, window, seed):
    spans = tuple((0, *sorted(row), 40) for row in borders)
    compare(*inputs(2, 4, 2, 40, seed=seed), window=window, spans=spans)


@pytest.mark.parametrize("new", [1, 2, 33])
@pytest.mark.parametrize("window", [None, 20])
def test_queries_after_a_cache_see_all_of_it(new, window):
    q, k, v = (x.detach() for x in inputs(1, 4, 2, 200))
    q = q[:, :, -new:]
    want = reference_attention(q.double(), k.double(), v.double(), window=window)[0]
    torch.testing.assert_close(attend(q, k, v, window=window).double(), want, rtol=1e-5, atol=1e-5)


def test_partial_attention_gives_the_log_sum_exp():
    q, k, v = (x.detach() for x in inputs(1, 4, 2, 50))
    o, lse = partial_attention(q, k, v, causal=True)
    want_o, want_lse = reference_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(o.double(), want_o, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)
