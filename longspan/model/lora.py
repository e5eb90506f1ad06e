"""Low-rank adapters put onto a decoder's projections, and folded into them (LoRA, arXiv:2106.09685)."""

import torch
from torch import nn

from longspan.model.decoder import Adapter, Decoder, Projection
from longspan.model.settings import PROJECTIONS, LoraSettings, WholePart
from longspan.utils.errors import ModelError


def whole_part(name: str) -> WholePart | None:
    """The part that may be trained whole to which the decoder's parameter `name` belongs, or None."""
    if name == "embed.weight":
        return "embed"
    if name == "head.weight":
        return "head"
    return "norms" if name.endswith("norm.weight") else None


def add_lora(decoder: Decoder, settings: LoraSettings, seed: int) -> None:
    """Put adapters onto the decoder, in float32 beside its weights, and freeze all but them and `also_train`.

    `down` is drawn as PEFT draws it and depends on the seed alone; `up` is zero, so that nothing changes yet.
    Raises `ModelError` (`model.adapters`) when there are adapters already, `ConfigError` as `LoraSettings.check` does.
    """
    if decoder.adapters:
        raise ModelError(
            "model.adapters", "the decoder carries adapters already", fix="merge them first, with merge_lora"
        )
    settings.check(decoder.shape)
    generator = torch.Generator().manual_seed(seed)
    for block in decoder.blocks:
        for name in PROJECTIONS:
            if name in settings.projections:
                projection = block.get_submodule(name)
                assert isinstance(projection, Projection)
                projection.lora = _fresh(projection, settings, generator)
    for parameter, weight in decoder.named_parameters():
        weight.requires_grad_(".lora." in parameter or whole_part(parameter) in settings.also_train)
    decoder.lora_settings = settings


def _fresh(projection: Projection, settings: LoraSettings, generator: torch.Generator) -> Adapter:
    down = torch.empty(settings.rank, projection.in_features, dtype=torch.float32)  # on the CPU: one stream of numbers
    nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)  # uniform within ±1/sqrt(in_features)
    up = torch.zeros(projection.out_features, settings.rank, dtype=torch.float32)
    device = "cpu" if projection.weight.is_meta else projection.weight.device  # unread weights move later, with these
    return Adapter(down.to(device), up.to(device), settings.scale)


@torch.no_grad()
def merge_lora(decoder: Decoder) -> None:
    """Fold every adapter into its projection, rounding once, and remove it; every weight can be trained again."""
    for name, adapter in decoder.adapters.items():
        projection = decoder.get_submodule(name)
        assert isinstance(projection, Projection)
        change = adapter.scale * (adapter.up.double() @ adapter.down.double())
        projection.weight.copy_(projection.weight.double() + change)
        projection.lora = None
    decoder.requires_grad_(True)
    decoder.lora_settings = None
