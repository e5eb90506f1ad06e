"""Small decoders for the tests of weights, and what compares and spoils them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from longspan.model.decoder import Decoder
from longspan.model.families.base import family_named
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape

SHAPE = ModelShape(
    family="qwen3",
    layers=2,
    width=12,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=20,
    vocabulary=33,
    norm_epsilon=1e-6,
    tied=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=False,
    qk_norm=True,
    windows=(None, 5),
    trained_length=16,
)
PLAIN = Frequencies(theta=1e4, factors=(1.0,) * 3, attention_factor=1.0, length=16, trained_length=16)
SCALED = Frequencies(theta=1e4, factors=(1.0, 1.5, 4.0), attention_factor=1.25, length=64, trained_length=16)


def new(shape: ModelShape = SHAPE, frequencies: Frequencies = PLAIN) -> Decoder:
    decoder = Decoder(shape, frequencies)
    decoder.initialise(0)
    return decoder


def tied_shape() -> ModelShape:
    return family_named("llama").shape(
        {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 9,
            "tie_word_embeddings": True,
            "max_position_embeddings": 16,
        }
    )


def tied() -> Decoder:
    return new(
        tied_shape(), Frequencies(theta=1e4, factors=(1.0,) * 2, attention_factor=1.0, length=16, trained_length=16)
    )


def assert_equal(first: Decoder, second: Decoder) -> None:
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
