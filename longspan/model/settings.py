"""How a recipe may ask for LoRA: the rank, the projections that carry adapters, the parts trained whole. No torch."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from longspan.config import Settings
from longspan.shape import ModelShape
from longspan.utils.errors import ConfigError

ProjectionName = Literal["q", "k", "v", "o", "gate", "up", "down"]
WholePart = Literal["embed", "norms", "head"]
PROJECTIONS: tuple[ProjectionName, ...] = get_args(ProjectionName)  # in the order of a block
WHOLE_PARTS: tuple[WholePart, ...] = get_args(WholePart)


class LoraSettings(Settings):
    """Low-rank adapters on `projections`: the change of a weight is (alpha / rank) · up · down, all else is frozen.

    `also_train` names parts that are trained whole beside them; LongLoRA (arXiv:2309.12307) trains embedding and norms.
    There is no dropout: the backward pass is written by hand and computes parts of the forward pass again.
    """

    rank: Annotated[int, Field(ge=1, le=2**14)] = 16
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] = 32.0
    projections: Annotated[tuple[ProjectionName, ...], Field(min_length=1)] = ("q", "k", "v", "o")
    also_train: tuple[WholePart, ...] = ()

    @model_validator(mode="after")
    def _named_once(self) -> "LoraSettings":
        for names in (self.projections, self.also_train):
            if len(set(names)) < len(names):
                raise ValueError(f"a name stands twice in {', '.join(names)}")
        return self

    @property
    def scale(self) -> float:
        """What up · down is multiplied by."""
        return self.alpha / self.rank

    def check(self, shape: ModelShape) -> None:
        """Raise `ConfigError` when this cannot be done to a model of `shape`."""
        if shape.family == "mellum":  # PEFT 0.21.2 with transformers 5.24 gave other logits, without a word
            raise ConfigError(
                "lora.family",
                "PEFT takes every Mellum for a model of experts, and would put adapters of a dense one elsewhere",
                where="recipe: lora",
                fix="train the whole model, or use a model of another family",
            )
        if "head" in self.also_train and shape.tied:
            raise ConfigError(
                "lora.tied-head",
                "this model's head is its embedding",
                where="recipe: lora.also_train",
                fix='name "embed" instead of "head": it trains both',
            )

    def trained_parameters(self, shape: ModelShape) -> int:
        """Number of weights that are trained: adapters, and the parts that are trained whole."""
        m, f, d = shape.width, shape.mlp_width, shape.head_dim
        q, kv = shape.heads * d, shape.kv_heads * d
        ends = {"q": m + q, "k": m + kv, "v": m + kv, "o": q + m, "gate": m + f, "up": m + f, "down": f + m}
        whole = {
            "embed": shape.vocabulary * m,
            "norms": shape.layers * (2 * m + (2 * d if shape.qk_norm else 0)) + m,
            "head": shape.vocabulary * m,
        }
        adapters = shape.layers * self.rank * sum(ends[name] for name in self.projections)
        return adapters + sum(whole[part] for part in self.also_train)
