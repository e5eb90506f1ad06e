"""Long forward passes through the plain decoder: what `engine/prefill.py` is compared with, at start and in tests."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from longspan.engine.precision import autocast, compute_dtype
from longspan.engine.step import LOSS_TILE_TOKENS
from longspan.model.cache import KVCache
from longspan.model.decoder import Decoder

CHUNK_TOKENS = 4096


def new_cache(decoder: Decoder, capacity_tokens: int) -> KVCache:
    """An empty cache that fits the decoder, its device and the type it computes in."""
    return KVCache(decoder.shape, capacity_tokens, device=decoder.device, dtype=compute_dtype(decoder))


@torch.no_grad()
def prefill(decoder: Decoder, tokens: Int[Tensor, " S"], cache: KVCache, *, chunk_tokens: int = CHUNK_TOKENS) -> None:
    """Append a context to the cache, chunk by chunk; no logits are formed."""
    for chunk in torch.split(tokens.to(decoder.device), chunk_tokens):
        with autocast(decoder):
            decoder.hidden(chunk[None], cache=cache)


@torch.no_grad()
def extend(decoder: Decoder, tokens: Int[Tensor, " n"], cache: KVCache) -> Float[Tensor, "n v"]:
    """Float32 logits of a short suffix after the cache, which grows by its n tokens; `cache.crop` takes them back."""
    with autocast(decoder):
        return decoder.logits(decoder.hidden(tokens.to(decoder.device)[None], cache=cache)[0])


@torch.no_grad()
def token_nll(
    decoder: Decoder, tokens: Int[Tensor, " S"], *, chunk_tokens: int = CHUNK_TOKENS
) -> Float[Tensor, " targets"]:
    """Loss in nats of tokens[1:], each given all tokens before it; float32 `[S − 1]`, logits never whole."""
    tokens = tokens.to(decoder.device)
    inputs, targets = tokens[:-1], tokens[1:]
    cache = new_cache(decoder, inputs.shape[0])
    losses = []
    for chunk, wanted in zip(torch.split(inputs, chunk_tokens), torch.split(targets, chunk_tokens), strict=True):
        with autocast(decoder):
            hidden = decoder.hidden(chunk[None], cache=cache)[0]
            tiles = torch.split(hidden, LOSS_TILE_TOKENS)
            for tile, goal in zip(tiles, torch.split(wanted, LOSS_TILE_TOKENS), strict=True):
                losses.append(functional.cross_entropy(decoder.logits(tile), goal, reduction="none"))
    return torch.cat(losses)
