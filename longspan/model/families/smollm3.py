"""SmolLM3, and models of its form: Llama with layers that have no positions."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from longspan.model.families.base import Family, Keys, llama_names, read_sizes, write_sizes
from longspan.shape import ModelShape, OwnPositions, plain_if_none

# What transformers' SmolLM3Config takes for a missing key (4.57 to 5.24), but for a theta of 2,000,000.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "no_rope_layer_interval": 4,
}
STILL = OwnPositions(theta=None)


class Smollm3(Family):
    """Grouped-query heads and full attention; `no_rope_layers` has a 0 for every layer that sees no positions."""

    kind: Literal["smollm3"] = "smollm3"
    architecture: ClassVar[str] = "SmolLM3ForCausalLM"

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a config describes. Raises `ModelError` for what longspan does not compute."""
        keys = Keys(config, DEFAULTS)
        sizes, bias = read_sizes(keys), keys.flag("attention_bias")
        if keys.flag("use_sliding_window"):
            raise keys.bad("use_sliding_window", "false")
        turned = _turned(keys, sizes["layers"])
        return ModelShape(
            family=self.kind,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=keys.flag("mlp_bias"),
            qk_norm=False,
            windows=(None,) * sizes["layers"],
            own_positions=plain_if_none([None if turns else STILL for turns in turned]),
            **sizes,
        )

    def config(self, shape: ModelShape) -> dict[str, Any]:
        """The config keys that say all of `shape`."""
        own = shape.own_positions or (None,) * shape.layers
        return {
            **write_sizes(shape, self.architecture),
            "attention_bias": shape.qkv_bias,
            "mlp_bias": shape.mlp_bias,
            "use_sliding_window": False,
            "sliding_window": None,
            "layer_types": ["full_attention"] * shape.layers,
            "no_rope_layers": [int(entry is None) for entry in own],
        }

    def names(self, shape: ModelShape) -> dict[str, str]:
        """Our parameter names to the family's tensor names."""
        return llama_names(shape)


def _turned(keys: Keys, layers: int) -> list[bool]:
    """Which layers turn: `no_rope_layers` where it stands, else all but every `no_rope_layer_interval`th."""
    listed = keys.get("no_rope_layers")
    if listed is None:
        every = keys.count("no_rope_layer_interval")
        return [(layer + 1) % every != 0 for layer in range(layers)]
    if not isinstance(listed, list) or len(listed) < layers or any(entry not in (0, 1) for entry in listed):
        raise keys.bad("no_rope_layers", f"a list of at least {layers} zeros and ones")
    return [bool(entry) for entry in listed[:layers]]
