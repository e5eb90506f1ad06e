"""What Qwen2 and Qwen3 share: defaults of missing keys, and windows that are set layer by layer."""

from typing import Any

from longspan.model.families.base import Keys
from longspan.shape import ModelShape

# What transformers' Qwen2Config and Qwen3Config take for a missing key (4.57 to 5.23).
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read_windows(keys: Keys, layers: int) -> tuple[int | None, ...]:
    """One window a layer: `layer_types` where it stands, else the layers from `max_window_layers` on.

    Without `use_sliding_window` every layer attends fully, whatever `sliding_window` says.
    """
    window = keys.maybe_count("sliding_window", most=2**40) if keys.flag("use_sliding_window") else None
    types = keys.get("layer_types")
    if types is None:
        first = keys.get("max_window_layers")
        if type(first) is not int or first < 0:
            raise keys.bad("max_window_layers", "a whole number, 0 or more,")
        return tuple(window if layer >= first else None for layer in range(layers))
    allowed = ["full_attention"] if window is None else ["full_attention", "sliding_attention"]
    if not isinstance(types, list) or len(types) != layers or any(kind not in allowed for kind in types):
        raise keys.bad("layer_types", f"a list of {layers} out of {', '.join(allowed)}")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def write_windows(shape: ModelShape) -> dict[str, Any]:
    """The config keys that say `shape.windows`."""
    windowed = [window for window in shape.windows if window is not None]
    return {
        "use_sliding_window": bool(windowed),
        "sliding_window": windowed[0] if windowed else None,
        "max_window_layers": next((i for i, window in enumerate(shape.windows) if window), shape.layers),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in shape.windows],
    }
