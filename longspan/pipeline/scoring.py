"""Perplexities of pieces of text under a small model, for the filter that asks whether documents hang together."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from longspan.data.filters.base import Ids, Tools
from longspan.data.tokenize import encode_document, load_tokenizer
from longspan.model.decoder import Decoder
from longspan.model.weights import load_to_read

PASS_TOKENS = 8_192  # of one forward pass


def scoring_tools(folder: Path, *, gpu: bool) -> Tools:
    """Tools that score with the model of a folder, on a GPU if there is one and `gpu` allows it.

    Raises `ModelError` and `DataError` for a folder that will not load.
    """
    decoder = load_to_read(folder, "cuda" if gpu and torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(folder, vocabulary=decoder.shape.vocabulary)

    def encode(text: str) -> Ids:
        return encode_document(text, tokenizer).astype(np.int64)

    return Tools(encode=encode, perplexities=functools.partial(perplexities, decoder))


@torch.inference_mode()
def perplexities(decoder: Decoder, asked: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """The perplexity of each piece after its context; its first token is never counted, so that all compare."""
    found = [0.0] * len(asked)
    lengths = [len(context) + len(piece) for context, piece in asked]
    order = sorted(range(len(asked)), key=lengths.__getitem__)
    while order:
        length = lengths[order[0]]
        same = [index for index in order[: max(1, PASS_TOKENS // length)] if lengths[index] == length]
        order = order[len(same) :]
        rows = torch.tensor(np.stack([np.concatenate(asked[index]) for index in same]), device=decoder.device)
        logits = decoder(rows)[:, :-1]
        losses = functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").double()
        for loss, index in zip(losses, same, strict=True):
            found[index] = float(loss[len(asked[index][0]) :].mean().exp())
    return found
