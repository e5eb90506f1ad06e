"""Small decoders that carry adapters, for the tests of LoRA."""

import dataclasses

import torch
from weights_toys import SHAPE, new

from longspan.model.decoder import Decoder
from longspan.model.families.base import family_named
from longspan.model.lora import add_lora
from longspan.model.settings import PROJECTIONS, LoraSettings
from longspan.rope.export import config_rope
from longspan.shape import ModelShape, OwnPositions

ALL = LoraSettings(rank=3, alpha=5.0, projections=PROJECTIONS)
TOKENS = torch.arange(12).reshape(1, 12) % 33


def shape_of(family: str) -> ModelShape:
    """A small shape with whatever the family has."""
    mine = family_named(family)
    own_bias = ("llama", "qwen3", "smollm3", "mellum")
    biases = {
        "qkv_bias": family != "mistral",
        "out_bias": family in own_bias,
        "mlp_bias": family in ("llama", "smollm3"),
    }
    windows = (None,) * 2 if family in ("llama", "mistral", "smollm3") else (None, 5)
    own = {"smollm3": (None, OwnPositions(theta=None)), "mellum": (None, OwnPositions(theta=50.0))}.get(family, ())
    kind = {"family": family, "qk_norm": family in ("qwen3", "mellum"), "windows": windows, "own_positions": own}
    shape = dataclasses.replace(SHAPE, **kind, **biases)
    rope = mine.rope(shape, config_rope(new(shape).frequencies, head_dim=shape.head_dim))
    back = mine.shape({**mine.config(shape), **rope})
    assert dataclasses.replace(back, trained_length=shape.trained_length) == shape
    return shape


def adapted(shape: ModelShape = SHAPE, settings: LoraSettings = ALL) -> Decoder:
    """A decoder whose adapters already do something."""
    decoder = new(shape)
    add_lora(decoder, settings, 0)
    with torch.no_grad():
        for adapter in decoder.adapters.values():
            adapter.up.normal_(std=0.3)
    return decoder
