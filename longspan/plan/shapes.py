"""Shapes of models that everybody can look up, for planning and measuring without their weights."""

from longspan.shape import ModelShape
from longspan.utils.errors import ConfigError
from longspan.utils.values import nearest

# family, L, m, h, g, d, f, v, tied, norms of q and k, N0. Source: the config.json of each model's own repository.
_Row = tuple[str, int, int, int, int, int, int, int, bool, bool, int]
_ROWS: dict[str, _Row] = {
    "llama3-8b": ("llama", 32, 4096, 32, 8, 128, 14336, 128256, False, False, 8192),
    "llama3-70b": ("llama", 80, 8192, 64, 8, 128, 28672, 128256, False, False, 8192),
    "llama3.2-1b": ("llama", 16, 2048, 32, 8, 64, 8192, 128256, True, False, 131072),
    "llama3.2-3b": ("llama", 28, 3072, 24, 8, 128, 8192, 128256, True, False, 131072),
    "qwen2.5-7b": ("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, False, False, 32768),
    "qwen3-4b": ("qwen3", 36, 2560, 32, 8, 128, 9728, 151936, True, True, 40960),
    "qwen3-8b": ("qwen3", 36, 4096, 32, 8, 128, 12288, 151936, False, True, 40960),
    "qwen3-32b": ("qwen3", 64, 5120, 64, 8, 128, 25600, 151936, False, True, 40960),
    "smollm2-135m": ("llama", 30, 576, 9, 3, 64, 1536, 49152, True, False, 8192),
    "tiny": ("llama", 2, 64, 4, 2, 16, 160, 257, False, False, 512),
}
NAMES = tuple(_ROWS)


def named_shape(name: str, *, layers: int | None = None) -> ModelShape:
    """The shape of a known model, with other layers if asked. Raises `ConfigError` with a suggestion."""
    if name not in _ROWS:
        near = nearest(name, NAMES)
        raise ConfigError(
            "plan.shape",
            f"no shape {name!r} (have: {', '.join(NAMES)})",
            fix=f"did you mean {near!r}?" if near else "choose one of these, or name a model folder",
        )
    family, own_layers, m, h, g, d, f, v, tied, qk_norm, trained = _ROWS[name]
    count = layers or own_layers
    return ModelShape(
        family=family,
        layers=count,
        width=m,
        heads=h,
        kv_heads=g,
        head_dim=d,
        mlp_width=f,
        vocabulary=v,
        norm_epsilon=1e-5 if family == "llama" else 1e-6,
        tied=tied,
        qkv_bias=family == "qwen2",
        out_bias=False,
        mlp_bias=False,
        qk_norm=qk_norm,
        windows=(None,) * count,
        trained_length=trained,
    )
