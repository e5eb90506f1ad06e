"""Qwen3, the dense models: a head dim of its own, norms on every q and k head, optional biases."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from longspan.model.families._qwen import DEFAULTS, read_windows, write_windows
from longspan.model.families.base import Family, Keys, llama_names, read_sizes, write_sizes
from longspan.shape import ModelShape


class Qwen3(Family):
    """Grouped-query heads with q and k norms; optional biases on all four attention projections."""

    kind: Literal["qwen3"] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a config describes. Raises `ModelError` for what longspan does not compute."""
        keys = Keys(config, {**DEFAULTS, "head_dim": 128, "attention_bias": False})
        sizes, bias = read_sizes(keys), keys.flag("attention_bias")
        return ModelShape(
            family=self.kind,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=False,
            qk_norm=True,
            windows=read_windows(keys, sizes["layers"]),
            **sizes,
        )

    def config(self, shape: ModelShape) -> dict[str, Any]:
        """The config keys that say all of `shape`."""
        return {**write_sizes(shape, self.architecture), **write_windows(shape), "attention_bias": shape.qkv_bias}

    def names(self, shape: ModelShape) -> dict[str, str]:
        """Our parameter names to the family's tensor names."""
        return llama_names(shape)
