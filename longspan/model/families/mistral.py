"""Mistral 7B and models of its form: Llama without biases, with one sliding window in every layer or in none."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from longspan.model.families.base import Family, Keys, llama_names, read_sizes, write_sizes
from longspan.shape import ModelShape

# What transformers' MistralConfig takes for a missing key (4.57 to 5.23). A missing window is 4096, a null one none.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
}


class Mistral(Family):
    """Grouped-query heads without biases; `sliding_window` counts the keys that a query sees, itself included."""

    kind: Literal["mistral"] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a config describes. Raises `ModelError` for what longspan does not compute."""
        keys = Keys(config, DEFAULTS)
        sizes, window = read_sizes(keys), keys.maybe_count("sliding_window", most=2**40)
        expected = "full_attention" if window is None else "sliding_attention"
        # transformers' Mistral ignores layer_types, other engines do not: a mixed list has no one meaning.
        if keys.get("layer_types") not in (None, [expected] * sizes["layers"]):
            raise keys.bad("layer_types", f"{expected!r} in every layer, or no such key,")
        return ModelShape(
            family=self.kind,
            qkv_bias=False,
            out_bias=False,
            mlp_bias=False,
            qk_norm=False,
            windows=(window,) * sizes["layers"],
            **sizes,
        )

    def config(self, shape: ModelShape) -> dict[str, Any]:
        """The config keys that say all of `shape`."""
        return {**write_sizes(shape, self.architecture), "sliding_window": shape.windows[0]}

    def names(self, shape: ModelShape) -> dict[str, str]:
        """Our parameter names to the family's tensor names."""
        return llama_names(shape)
