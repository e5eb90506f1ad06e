"""Qwen2 and Qwen2.5: Llama with biases on q, k and v only, and windows layer by layer."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from longspan.model.families._qwen import DEFAULTS, read_windows, write_windows
from longspan.model.families.base import Family, Keys, llama_names, read_sizes, write_sizes
from longspan.shape import ModelShape


class Qwen2(Family):
    """Grouped-query heads with biases on q, k and v; full or sliding attention layer by layer."""

    kind: Literal["qwen2"] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a config describes. Raises `ModelError` for what longspan does not compute."""
        keys = Keys(config, DEFAULTS)
        sizes = read_sizes(keys)
        return ModelShape(
            family=self.kind,
            qkv_bias=True,
            out_bias=False,
            mlp_bias=False,
            qk_norm=False,
            windows=read_windows(keys, sizes["layers"]),
            **sizes,
        )

    def config(self, shape: ModelShape) -> dict[str, Any]:
        """The config keys that say all of `shape`."""
        return {**write_sizes(shape, self.architecture), **write_windows(shape)}

    def names(self, shape: ModelShape) -> dict[str, str]:
        """Our parameter names to the family's tensor names."""
        return llama_names(shape)
