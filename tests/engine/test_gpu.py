"""The engine on a CUDA device in bfloat16 against the same weights on the CPU in float32."""

import copy

import pytest
import torch
from test_engine import ragged_batch, tiny_decoder

from longspan.engine.plain import extend, new_cache, prefill, token_nll
from longspan.engine.step import forward_backward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


def test_loss_and_gradients():
    decoder, batch = tiny_decoder(), ragged_batch()
    moved = copy.deepcopy(decoder).to(CUDA)
    want = forward_backward(decoder, batch, divisor=10.0)
    found = forward_backward(moved, batch.to(CUDA), divisor=10.0)
    torch.testing.assert_close(found.cpu(), want, rtol=2e-2, atol=0)
    for mine, other in zip(moved.parameters(), decoder.parameters(), strict=True):
        assert (mine.grad.cpu() - other.grad).norm() <= 0.05 * other.grad.norm()


def test_prefill_extend_and_loss_by_token():
    decoder = tiny_decoder()
    moved = copy.deepcopy(decoder).to(CUDA)
    tokens = torch.randint(0, 53, (300,), generator=torch.Generator().manual_seed(2))
    cache = new_cache(moved, 300)
    prefill(moved, tokens[:290], cache, chunk_tokens=64)
    with torch.no_grad():
        want = decoder(tokens[None])[0, 290:]
    assert (extend(moved, tokens[290:], cache).cpu() - want).abs().max() < 0.05 * want.abs().max()
    torch.testing.assert_close(token_nll(moved, tokens).cpu(), token_nll(decoder, tokens), rtol=0.05, atol=0.1)
