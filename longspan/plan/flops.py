"""Floating-point operations of a training step, and the one convention in which shares of a device's peak are told.

Model FLOPs: three times the forward pass (one forward, two backward), attention halved because it is causal, nothing
computed twice counted, embeddings looked up for free. Divided by the dense bf16 peak this is *causal MFU*. Hardware
FLOPs count what the engine runs, what it computes again included; over the peak they are *HFU*. With adapters the
linears count two (forward, gradient of the input) instead of three.
"""

from collections.abc import Sequence

from longspan.engine.anchors import segments_of
from longspan.engine.settings import EngineChoice
from longspan.shape import ModelShape

ATTENTION_BACKWARD = 2.5  # of a forward pass: five products instead of two


def attention_parameters(shape: ModelShape) -> int:
    """Weights of a block's q, k, v and o."""
    return (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim * shape.width


def mlp_parameters(shape: ModelShape) -> int:
    """Weights of a block's gate, up and down."""
    return 3 * shape.width * shape.mlp_width


def matmul_parameters(shape: ModelShape) -> int:
    """Weights that take part in matrix products: all blocks and the head, which counts also when it is tied."""
    return shape.layers * (attention_parameters(shape) + mlp_parameters(shape)) + shape.vocabulary * shape.width


def linear_forward_flops(shape: ModelShape, tokens: int) -> float:
    """All projections of one forward pass over so many tokens: two operations a weight."""
    return 2.0 * matmul_parameters(shape) * tokens


def attention_forward_flops(shape: ModelShape, lengths: Sequence[int], *, layers: int | None = None) -> float:
    """Both products of attention, forward, over documents of these lengths: 2·n²·h·d a layer, less in a window.

    `layers` counts only so many of the lowest layers.
    """
    width = shape.heads * shape.head_dim
    return sum(4.0 * width * _pairs(n, window) for n in lengths for window in shape.windows[:layers])


def model_flops(shape: ModelShape, lengths: Sequence[int], *, adapters: bool = False) -> float:
    """Model FLOPs of a step over documents of these lengths: 3·(2P + 2·S·h·d·L) a token for one document of S.

    `adapters`: the weights themselves are frozen, so linears count two passes.
    """
    linear = linear_forward_flops(shape, sum(lengths))
    return (2 if adapters else 3) * linear + 3 * attention_forward_flops(shape, lengths)


def hardware_flops(shape: ModelShape, lengths: Sequence[int], choice: EngineChoice, *, adapters: bool = False) -> float:
    """What the engine runs under a choice: model FLOPs with the kernel's own backward, and all that is rebuilt."""
    linear = (2 if adapters else 3) * linear_forward_flops(shape, sum(lengths))
    attention = (1 + ATTENTION_BACKWARD) * attention_forward_flops(shape, lengths)
    return (
        linear
        + rebuilt_linear_flops(shape, sum(lengths), choice)
        + attention
        + repeated_attention_flops(shape, lengths, choice)
    )


def rebuilt_linear_flops(shape: ModelShape, tokens: int, choice: EngineChoice) -> float:
    """Linears that the backward pass computes again.

    Every block: q, k, v, o, gate and up. In every segment but the top one: o and the MLP of every block but its last,
    for the input of the block above; and q, k, v too when attention runs again.
    """
    if choice.keep == "everything":
        return 0.0
    o = shape.heads * shape.head_dim * shape.width
    qkv = attention_parameters(shape) - o
    mlp = mlp_parameters(shape)
    weights = shape.layers * (qkv + o + 2 * mlp // 3)
    for segment in segments_of(shape.layers, choice.segment)[:-1]:
        weights += (len(segment) - 1) * (o + mlp) + (len(segment) * qkv if choice.keep == "inputs" else 0)
    return 2.0 * weights * tokens


def repeated_attention_flops(shape: ModelShape, lengths: Sequence[int], choice: EngineChoice) -> float:
    """Attention's second forward pass: with `inputs`, in every segment but the top one, which is still at hand."""
    if choice.keep != "inputs":
        return 0.0
    return attention_forward_flops(shape, lengths, layers=segments_of(shape.layers, choice.segment)[-1].start)


def share_of_peak(flops: float, *, seconds: float, peak_flops: float | None) -> float | None:
    """Causal MFU from model FLOPs, HFU from hardware FLOPs; None when the device's peak is not known."""
    return None if peak_flops is None or seconds <= 0 else flops / seconds / peak_flops


def _pairs(length: int, window: int | None) -> float:
    """Pairs of query and key that see each other, by the convention of half a square."""
    if window is None or window >= length:
        return length * length / 2
    return length * window - window * window / 2
