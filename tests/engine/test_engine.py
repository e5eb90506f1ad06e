"""The engine against whole-logits autograd, and prefill against one plain forward."""

import copy
import itertools

import pytest
import torch
from engine_toys import plain_loss, toy_decoder
from torch.nn import functional

from longspan.batch import Batch
from longspan.engine import step
from longspan.engine.plain import extend, new_cache, prefill, token_nll
from longspan.engine.step import forward_backward
from longspan.model.cache import KVCache


def tiny_decoder(*, tied=True, windows=(None, 5)):
    return toy_decoder(layers=2, tied=tied, windows=windows, qkv_bias=True, qk_norm=True)


def ragged_batch(rows=3, length=21):
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 53, (rows, length + 1), generator=generator)
    weights = torch.rand(rows, length, generator=generator) * 3
    weights[0, :7] = 0
    weights[2] = 0  # a row without any target
    spans = ((0, length), (0, 4, 9, length), (0, 1, length))
    positions = torch.stack([torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(s)]) for s in spans])
    return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights, positions=positions, spans=spans)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tile", [7, 2048])
def test_loss_and_every_gradient_equal_whole_logits(tied, tile, monkeypatch):
    monkeypatch.setattr(step, "LOSS_TILE_TOKENS", tile)
    decoder, batch = tiny_decoder(tied=tied), ragged_batch()
    oracle = copy.deepcopy(decoder)
    want = plain_loss(oracle, batch)
    (want / 17.5).backward()
    loss = forward_backward(decoder, batch, divisor=17.5)
    torch.testing.assert_close(loss, want.detach(), rtol=1e-5, atol=1e-6)
    for (name, mine), other in zip(decoder.named_parameters(), oracle.parameters(), strict=True):
        scale = other.grad.abs().max().item()
        torch.testing.assert_close(
            mine.grad, other.grad, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradients_of_micro_batches_add_up():
    decoder, batch = tiny_decoder(), ragged_batch()
    parts = copy.deepcopy(decoder)
    forward_backward(decoder, batch, divisor=9.0)
    for row in range(3):
        one = slice(row, row + 1)
        part = Batch(
            tokens=batch.tokens[one],
            targets=batch.targets[one],
            weights=batch.weights[one],
            positions=batch.positions[one],
            spans=batch.spans[one],
        )
        forward_backward(parts, part, divisor=9.0)
    for mine, other in zip(parts.parameters(), decoder.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [1, 6, 13, 64])
def test_prefill_in_chunks_then_a_suffix_equals_one_forward(chunk_tokens):
    decoder = tiny_decoder()
    tokens = torch.randint(0, 53, (41,), generator=torch.Generator().manual_seed(2))
    cache = new_cache(decoder, 41)
    prefill(decoder, tokens[:30], cache, chunk_tokens=chunk_tokens)
    with torch.no_grad():
        want = decoder(tokens[None])[0, 30:]
    for _ in range(2):  # the second time after a crop: nothing of the first may remain
        torch.testing.assert_close(extend(decoder, tokens[30:], cache), want, rtol=1e-4, atol=1e-4)
        assert cache.length == 41
        cache.crop(30)


@pytest.mark.parametrize("chunk_tokens", [5, 64])
def test_token_nll_equals_whole_logits(chunk_tokens):
    decoder = tiny_decoder(tied=False)
    tokens = torch.randint(0, 53, (38,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = functional.cross_entropy(decoder(tokens[None])[0, :-1], tokens[1:], reduction="none")
    torch.testing.assert_close(token_nll(decoder, tokens, chunk_tokens=chunk_tokens), want, rtol=1e-4, atol=1e-5)


def test_a_cache_works_under_autocast_with_head_norms():
    # On a GPU the engine computes in bfloat16 under autocast, with float32 weights: the norms of heads must not
    # widen q and k, or they no longer fit the cached values. Autocast on the CPU shows the same.
    decoder = tiny_decoder()
    tokens = torch.randint(0, 53, (41,), generator=torch.Generator().manual_seed(2))
    cache = KVCache(decoder.shape, 41, device=decoder.device, dtype=torch.bfloat16)
    with torch.no_grad():
        want = decoder(tokens[None])[0, 30:]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoder.hidden(tokens[None, :30], cache=cache)
            found = decoder.logits(decoder.hidden(tokens[None, 30:], cache=cache))[0]
    assert (found - want).abs().max() < 0.05 * want.abs().max()
