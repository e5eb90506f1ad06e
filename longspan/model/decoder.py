"""The plain decoder: ordinary PyTorch with autograd, written for reading. Every faster path is tested against it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longspan.attention.kernels import attend
from longspan.batch import Spans
from longspan.model.cache import KVCache
from longspan.model.settings import LoraSettings
from longspan.rope.frequencies import Frequencies
from longspan.rope.layers import layer_sets
from longspan.rope.rotate import Angles, cos_sin, rotate
from longspan.shape import ModelShape


class Norm(nn.Module):
    """Root-mean-square norm with a weight, formed in float32 or wider."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
        """The normalised x, in the type of x."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (self.weight * wide.to(x.dtype)).to(x.dtype)  # under autocast the weight is wider than x


class Adapter(nn.Module):
    """A low-rank change of one projection (LoRA, Hu et al. 2021): `scale * up @ down` is added to its weight."""

    def __init__(self, down: Float[Tensor, "r i"], up: Float[Tensor, "o r"], scale: float) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.scale = scale

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """What is added to the projection's output, in the type of the adapter's weights or of autocast."""
        return self.scale * functional.linear(functional.linear(x.to(self.down.dtype), self.down), self.up)


class Projection(nn.Linear):
    """A linear map that may carry an adapter; `longspan.model.lora` puts it there and takes it away."""

    lora: Adapter | None

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.register_module("lora", None)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """The map of x, and what the adapter adds, in the type of the map."""
        y = super().forward(x)
        return y if self.lora is None else y + self.lora(x).to(y.dtype)


class Block(nn.Module):
    """One layer: attention and a gated MLP, each behind a norm and added to the residual stream."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.window = layer, shape.head_dim, shape.windows[layer]
        self.position_set = shape.position_set(layer)  # which of the decoder's angles it turns by
        m, f, d = shape.width, shape.mlp_width, shape.head_dim
        self.attention_norm = Norm(m, shape.norm_epsilon)
        self.q = Projection(m, shape.heads * d, bias=shape.qkv_bias)
        self.k = Projection(m, shape.kv_heads * d, bias=shape.qkv_bias)
        self.v = Projection(m, shape.kv_heads * d, bias=shape.qkv_bias)
        self.o = Projection(shape.heads * d, m, bias=shape.out_bias)
        self.q_norm = Norm(d, shape.norm_epsilon) if shape.qk_norm else None
        self.k_norm = Norm(d, shape.norm_epsilon) if shape.qk_norm else None
        self.mlp_norm = Norm(m, shape.norm_epsilon)
        self.gate = Projection(m, f, bias=shape.mlp_bias)
        self.up = Projection(m, f, bias=shape.mlp_bias)
        self.down = Projection(f, m, bias=shape.mlp_bias)

    def forward(
        self,
        x: Float[Tensor, "b S m"],
        cos: Float[Tensor, "#b S pairs"],
        sin: Float[Tensor, "#b S pairs"],
        *,
        spans: Spans | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b S m"]:
        """The residual stream after this layer. With a cache, x holds the newest positions only."""
        n = self.attention_norm(x)
        q, k, v = (self._heads(project(n)) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.put(self.layer, k, v)
        o = attend(q, k, v, window=self.window, spans=spans)
        x = x + self.o(o.transpose(1, 2).flatten(2))
        n = self.mlp_norm(x)
        mlp: Tensor = self.down(functional.silu(self.gate(n)) * self.up(n))
        return x + mlp

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class Decoder(nn.Module):
    """A decoder-only language model of the Llama kind: tokens `[b, S]` in, float32 logits `[b, S, v]` out.

    `frequencies` may be replaced between runs; nothing is cached from it. `source` is the folder the weights came
    from (its tokenizer files travel with a save) and `config` the Hugging Face config found there. `angle_dtype` is
    float64; float32 imitates the angles of serving engines. `lora_settings` is what its adapters were made by.
    """

    def __init__(self, shape: ModelShape, frequencies: Frequencies) -> None:
        super().__init__()
        self.shape = shape
        self.frequencies = frequencies
        self.source: Path | None = None
        self.config: dict[str, Any] = {}
        self.lora_settings: LoraSettings | None = None
        self.angle_dtype = torch.float64
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.norm = Norm(shape.width, shape.norm_epsilon)
        if not shape.tied:
            self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def parts(self) -> list[nn.Module]:
        """What holds the weights, in the order in which it works: embedding, blocks, last norm, head unless tied."""
        return [self.embed, *self.blocks, self.norm, *([] if self.shape.tied else [self.head])]

    @property
    def adapters(self) -> dict[str, Adapter]:
        """Every adapter by the name of its projection, such as `blocks.0.q`; `longspan.model.lora` puts them there."""
        return {
            name.removesuffix(".lora"): module for name, module in self.named_modules() if isinstance(module, Adapter)
        }

    def forward(self, tokens: Int[Tensor, "b S"]) -> Float[Tensor, "b S v"]:
        """Float32 logits of the next token at every position."""
        return self.logits(self.hidden(tokens))

    def hidden(
        self,
        tokens: Int[Tensor, "b S"],
        *,
        positions: Int[Tensor, "b S"] | None = None,
        spans: Spans | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b S m"]:
        """The residual stream after the last norm. Positions count on from the cache unless they are given."""
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        return self.rotated(tokens, self.angles(positions), spans=spans, cache=cache)

    def angles(self, positions: Int[Tensor, "b S"]) -> tuple[Angles, ...]:
        """Cosine and sine of the frequencies, and of each set that layers have of their own (`shape.position_sets`)."""
        sets = layer_sets(self.frequencies, self.shape.position_sets)
        return tuple(cos_sin(positions, one, angle_dtype=self.angle_dtype) for one in sets)

    def rotated(
        self,
        tokens: Int[Tensor, "b S"],
        angles: Sequence[Angles],
        *,
        spans: Spans | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b S m"]:
        """`hidden` under given angles, as `angles` gives them, which may differ from row to row."""
        x = self.embed(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, *angles[self.shape.position_set(layer)], spans=spans, cache=cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Float[Tensor, "... m"]) -> Float[Tensor, "... v"]:
        """Logits from the residual stream after the last norm, in float32 or wider."""
        logits = functional.linear(hidden, self.embed.weight if self.shape.tied else self.head.weight)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Random weights that depend on the seed alone: normal with deviation 0.02, norms 1, biases 0.

        What adds to the residual stream starts smaller by sqrt(2L), as in GPT-2 (section 2.3 of its report).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = 0.02 / (2 * self.shape.layers) ** 0.5 if name.endswith(("o.weight", "down.weight")) else 0.02
            weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)
