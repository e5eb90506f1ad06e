"""What a model family is, and what families share: typed reading of a Hugging Face config, sizes, tensor names."""

import difflib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from longspan.config import Settings, kind_class, kinds
from longspan.shape import ModelShape
from longspan.utils.errors import ModelError

PACKAGE = "longspan.model.families"
MAX_LAYERS = 10_000
MAX_SIZE = 2**24  # of any one dim of a weight: beyond every known model, and products stay far from 2^63


class Family(Settings):
    """A family of models: maps its Hugging Face config and tensor names to ours and back. One file each.

    The file's name is the config's `model_type`; `architecture` is the only class name it stands for.
    """

    architecture: ClassVar[str]

    @abstractmethod
    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a config describes; a missing key means what it means to transformers.

        Raises `ModelError` when the config asks for something that longspan does not compute.
        """

    @abstractmethod
    def config(self, shape: ModelShape) -> dict[str, Any]:
        """The config keys that say all of `shape`: with those of `rope`, `shape` of it gives every shape back that the
        family can express.
        """

    def rope(self, shape: ModelShape, rope: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - for who needs it
        """The rotary keys of a config from those that `config_rope` wrote: the same, but for settings by layer type."""
        return dict(rope)

    @abstractmethod
    def names(self, shape: ModelShape) -> dict[str, str]:
        """Our parameter names to the family's tensor names, one to one, in the order of the layers."""


def family_named(name: str, *, where: str = "") -> Family:
    """The family whose file is `name`, which stands at `where`.

    Raises `ModelError` with the list of families when there is none.
    """
    have = kinds(PACKAGE)
    if name not in have:
        near = difflib.get_close_matches(name, have, n=1)
        raise ModelError(
            "model.unknown-family",
            f"no model family {name!r} (have: {', '.join(have)})",
            where=where,
            fix=f"did you mean {near[0]!r}?" if near else "choose a model of one of these families",
        )
    family = kind_class(PACKAGE, name)()
    assert isinstance(family, Family)
    return family


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a Hugging Face config belongs to.

    Raises `ModelError` for other families, for heads other than next-token prediction, and for quantized weights.
    """
    if config.get("quantization_config") is not None:
        raise ModelError(
            "model.quantized",
            "the weights are quantized",
            where="config.json, key quantization_config",
            fix="use the model's bfloat16, float16 or float32 weights",
        )
    family = family_named(str(config.get("model_type")), where="config.json, key model_type")
    architectures = config.get("architectures")
    if architectures not in (None, [], [family.architecture]):
        raise ModelError(
            "model.unknown-architecture",
            f"architectures is {architectures!r}; of this family only {family.architecture} is supported",
            where="config.json, key architectures",
            fix="use a model that predicts the next token",
        )
    return family


@dataclass(frozen=True)
class Keys:
    """A config whose values are checked as they are read; `defaults`: what transformers takes for a missing key."""

    config: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value as it stands; a null that was written stays None."""
        return self.config.get(key, self.defaults.get(key))

    def count(self, key: str, *, most: int = MAX_SIZE) -> int:
        """A whole number from 1 to `most`."""
        value = self.get(key)
        if type(value) is not int or not 1 <= value <= most:
            raise self.bad(key, f"a whole number from 1 to {most}")
        return value

    def maybe_count(self, key: str, *, most: int = MAX_SIZE) -> int | None:
        """A whole number from 1 to `most`, or None for a missing key or null."""
        return None if self.get(key) is None else self.count(key, most=most)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.get(key)
        if type(value) is not bool:
            raise self.bad(key, "true or false")
        return value

    def positive(self, key: str) -> float:
        """A number above zero."""
        value = self.get(key)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise self.bad(key, "a number above zero")
        return float(value)

    def bad(self, key: str, needed: str) -> ModelError:
        """The error for a value that cannot be used."""
        return ModelError(
            "model.config",
            f"{key} is {self.get(key)!r}; {needed} is needed",
            where=f"config.json, key {key}",
            fix="restore the model's own config.json",
        )


def read_sizes(keys: Keys) -> dict[str, Any]:
    """The `ModelShape` fields that every family reads from the same keys.

    A null or missing `head_dim` is hidden_size // num_attention_heads; null `num_key_value_heads` is one a query head.
    """
    if keys.get("hidden_act") != "silu":
        raise keys.bad("hidden_act", "'silu'")
    for key in ("rope_parameters", "rope_scaling"):
        found = keys.get(key)
        settings = [found, *found.values()] if isinstance(found, dict) else []
        if any(part.get("partial_rotary_factor", 1.0) != 1.0 for part in settings if isinstance(part, dict)):
            raise keys.bad(key, "a partial_rotary_factor of 1")
    if keys.get("partial_rotary_factor") not in (None, 1.0):
        raise keys.bad("partial_rotary_factor", "1, or none")
    width, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    kv_heads = keys.maybe_count("num_key_value_heads") or heads
    if heads % kv_heads:
        raise keys.bad("num_key_value_heads", f"a divisor of the {heads} query heads")
    head_dim = keys.maybe_count("head_dim") or width // heads
    if head_dim == 0 or head_dim % 2 or heads * head_dim > MAX_SIZE:
        raise keys.bad("head_dim", f"an even number of at most {MAX_SIZE} over all heads")
    return {
        "layers": keys.count("num_hidden_layers", most=MAX_LAYERS),
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "mlp_width": keys.count("intermediate_size"),
        "vocabulary": keys.count("vocab_size"),
        "norm_epsilon": keys.positive("rms_norm_eps"),
        "tied": keys.flag("tie_word_embeddings"),
        "trained_length": keys.count("max_position_embeddings", most=2**40),
    }


def write_sizes(shape: ModelShape, architecture: str) -> dict[str, Any]:
    """The config keys that say what `read_sizes` reads, with the family's names."""
    return {
        "architectures": [architecture],
        "model_type": shape.family,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_epsilon,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.trained_length,
    }


def llama_names(shape: ModelShape) -> dict[str, str]:
    """Our names to those that Llama set and its descendants kept."""
    modules = {"attention_norm": "input_layernorm"}
    modules |= {part: f"self_attn.{part}_proj" for part in ("q", "k", "v", "o")}
    if shape.qk_norm:
        modules |= {part: f"self_attn.{part}" for part in ("q_norm", "k_norm")}
    modules["mlp_norm"] = "post_attention_layernorm"
    modules |= {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    biased = [part for part in ("q", "k", "v") if shape.qkv_bias]
    biased += ["o"] if shape.out_bias else []
    biased += ["gate", "up", "down"] if shape.mlp_bias else []

    names = {"embed.weight": "model.embed_tokens.weight"}
    for layer in range(shape.layers):
        for ours, theirs in modules.items():
            for kind in ("weight", "bias") if ours in biased else ("weight",):
                names[f"blocks.{layer}.{ours}.{kind}"] = f"model.layers.{layer}.{theirs}.{kind}"
    names["norm.weight"] = "model.norm.weight"
    if not shape.tied:
        names["head.weight"] = "lm_head.weight"
    return names
