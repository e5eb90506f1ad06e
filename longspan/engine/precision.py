"""Which number format the engine computes in: float32 on a CPU, bfloat16 on a GPU with float32 weights."""

import torch

from longspan.model.decoder import Decoder


def compute_dtype(decoder: Decoder, device: torch.device | None = None) -> torch.dtype:
    """The type of matrix products, keys and values; `device` is where it will be, for one whose weights are unread."""
    return torch.bfloat16 if (device or decoder.device).type == "cuda" else decoder.embed.weight.dtype


def autocast(decoder: Decoder) -> torch.autocast:
    """The context in which every forward pass runs; it does nothing on a CPU."""
    device = decoder.device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")
