"""Llama 2, 3, 3.1 and 3.2, and models of the same form such as SmolLM2."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from longspan.model.families.base import Family, Keys, llama_names, read_sizes, write_sizes
from longspan.shape import ModelShape

# What transformers' LlamaConfig takes for a missing key (4.57 to 5.23).
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


class Llama(Family):
    """Grouped-query heads, optional biases on all four attention projections and on the MLP, full attention."""

    kind: Literal["llama"] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a config describes. Raises `ModelError` for what longspan does not compute."""
        keys = Keys(config, DEFAULTS)
        sizes, bias = read_sizes(keys), keys.flag("attention_bias")
        return ModelShape(
            family=self.kind,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=keys.flag("mlp_bias"),
            qk_norm=False,
            windows=(None,) * sizes["layers"],
            **sizes,
        )

    def config(self, shape: ModelShape) -> dict[str, Any]:
        """The config keys that say all of `shape`."""
        biases = {"attention_bias": shape.qkv_bias, "mlp_bias": shape.mlp_bias}
        return {**write_sizes(shape, self.architecture), **biases}

    def names(self, shape: ModelShape) -> dict[str, str]:
        """Our parameter names to the family's tensor names."""
        return llama_names(shape)
