"""Models whose sizes everybody can look up."""

from dataclasses import replace

from longspan.shape import ModelShape

LLAMA3_8B = ModelShape(
    family="llama",
    layers=32,
    width=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    mlp_width=14336,
    vocabulary=128256,
    norm_epsilon=1e-5,
    tied=False,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=(None,) * 32,
    trained_length=8192,
)


def cut(layers: int) -> ModelShape:
    """The same model with fewer layers."""
    return replace(LLAMA3_8B, layers=layers, windows=(None,) * layers)
