"""Small decoders that carry adapters, for the tests of LoRA."""

import dataclasses

import torch
from weights_toys import SHAPE, new

from longspan.model.decoder import Decoder
from longspan.model.families.base import family_named
from longspan.model.lora import add_lora
from longspan.model.settings import PROJECTIONS, LoraSettings
from longspan.shape import ModelShape

ALL = LoraSettings(rank=3, alpha=5.0, projections=PROJECTIONS)
TOKENS = torch.arange(12).reshape(1, 12) % 33


def shape_of(family: str) -> ModelShape:
    """A small shape with whatever the family has."""
    mine = family_named(family)
    biases = {"qkv_bias": family != "mistral", "out_bias": family in ("llama", "qwen3"), "mlp_bias": family == "llama"}
    windows = (None,) * 2 if family in ("llama", "mistral") else (None, 5)
    shape = dataclasses.replace(SHAPE, family=family, qk_norm=family == "qwen3", windows=windows, **biases)
    assert mine.shape(mine.config(shape)) == shape
    return shape


def adapted(shape: ModelShape = SHAPE, settings: LoraSettings = ALL) -> Decoder:
    """A decoder whose adapters already do something."""
    decoder = new(shape)
    add_lora(decoder, settings, 0)
    with torch.no_grad():
        for adapter in decoder.adapters.values():
            adapter.up.normal_(std=0.3)
    return decoder
