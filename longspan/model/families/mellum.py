"""Dense models of the Mellum form: Qwen3's layers, of which those with a window turn by a theta of their own."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from longspan.model.families.base import Family, Keys, llama_names, read_sizes, write_sizes
from longspan.rope.layertypes import LOCAL, STRETCHED, read_local, write_layer_types
from longspan.shape import ModelShape, plain_if_none

# What transformers' MellumConfig takes for a missing key (5.24); missing mlp_layer_types mean experts everywhere.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 98304,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "sliding_window": 1024,
}


class Mellum(Family):
    """q and k norms, optional biases, full and sliding-window layers, each kind with its own rotary settings.

    Extension stretches the full-attention layers; the others keep theirs. Layers of experts are refused.
    """

    kind: Literal["mellum"] = "mellum"
    architecture: ClassVar[str] = "MellumForCausalLM"

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a config describes. Raises `ModelError` for what longspan does not compute."""
        keys = Keys(config, DEFAULTS)
        sizes, bias = read_sizes(keys), keys.flag("attention_bias")
        layers = sizes["layers"]
        if keys.get("mlp_layer_types") != ["dense"] * layers:
            raise keys.bad("mlp_layer_types", "'dense' in every layer (experts are not supported)")
        types = keys.get("layer_types") or [STRETCHED] * layers
        if not isinstance(types, list) or len(types) != layers or any(kind not in (STRETCHED, LOCAL) for kind in types):
            raise keys.bad("layer_types", f"a list of {layers} out of {STRETCHED}, {LOCAL}")
        local = read_local({**DEFAULTS, **config, "model_type": self.kind}) if LOCAL in types else None
        window = keys.count("sliding_window", most=2**40) if LOCAL in types else None
        return ModelShape(
            family=self.kind,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=False,
            qk_norm=True,
            windows=tuple(window if kind == LOCAL else None for kind in types),
            own_positions=plain_if_none([local if kind == LOCAL else None for kind in types]),
            **sizes,
        )

    def config(self, shape: ModelShape) -> dict[str, Any]:
        """The config keys that say all of `shape` but its positions, which `rope` writes."""
        return {
            **write_sizes(shape, self.architecture),
            "attention_bias": shape.qkv_bias,
            "sliding_window": next((window for window in shape.windows if window is not None), None),
            "layer_types": [STRETCHED if window is None else LOCAL for window in shape.windows],
            "mlp_layer_types": ["dense"] * shape.layers,
        }

    def rope(self, shape: ModelShape, rope: Mapping[str, Any]) -> dict[str, Any]:
        """Both kinds of layers, each with its dict."""
        return write_layer_types(rope, next(iter(shape.position_sets), None))

    def names(self, shape: ModelShape) -> dict[str, str]:
        """Our parameter names to the family's tensor names."""
        return llama_names(shape)
