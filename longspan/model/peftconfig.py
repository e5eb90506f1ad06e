"""Reading PEFT's adapter_config.json: what of it plain LoRA can do, and the rest refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longspan.model.families.base import family_named
from longspan.model.lora import whole_part
from longspan.model.settings import PROJECTIONS, WHOLE_PARTS, LoraSettings, ProjectionName, WholePart
from longspan.shape import ModelShape
from longspan.utils.errors import ModelError
from longspan.utils.values import shown

# Keys that are read below.
READ = {"r", "lora_alpha", "use_rslora", "target_modules", "modules_to_save", "layers_to_transform"}
# Keys that change nothing of what trained adapters compute: where they come from, how they were begun and trained.
SILENT = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",  # the tensors tell: see `longspan.model.peft.load_adapter`
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
# Keys whose value must be one of these. Other beginnings of the weights (PiSSA, OLoRA, …) also change the base model.
FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
MOST_RANK, MOST_ALPHA = 2**14, 1e6


@dataclass(frozen=True)
class PeftConfig:
    """The table of an adapter_config.json that stands at `where`. Every key that is not named above must be off."""

    table: Mapping[str, Any]
    where: str

    def settings(self, shape: ModelShape) -> LoraSettings:
        """What it asks for, on a model of this shape. Raises `ModelError` when that is more than plain LoRA."""
        self._check_plain()
        layers = self.table.get("layers_to_transform")
        if layers is not None and layers != list(range(shape.layers)):
            raise self._bad("layers_to_transform", "longspan puts adapters on every layer alike")
        rank = self.table.get("r")
        if type(rank) is not int or not 1 <= rank <= MOST_RANK:
            raise self._bad("r", f"a whole number from 1 to {MOST_RANK} is needed")
        alpha = self.table.get("lora_alpha")
        if not isinstance(alpha, int | float) or not 0 < alpha <= MOST_ALPHA:
            raise self._bad("lora_alpha", f"a number above 0 and up to {MOST_ALPHA:,.0f} is needed")
        # The rank-stabilised scale (arXiv:2312.03732) is alpha / sqrt(rank), ours alpha / rank.
        stabilised = bool(self.table.get("use_rslora", False))
        return LoraSettings(
            rank=rank,
            alpha=alpha * rank**0.5 if stabilised else float(alpha),
            projections=self._projections(shape),
            also_train=self._whole(shape),
        )

    def _check_plain(self) -> None:
        if "peft_type" not in self.table:
            raise self._bad("peft_type", '"LORA" is needed')
        for key, value in self.table.items():
            if key in FIXED:
                if value not in FIXED[key]:
                    raise self._bad(key, f"{' or '.join(shown(allowed) for allowed in FIXED[key])} is needed")
            elif key not in READ | SILENT and value not in (None, False, {}, []):
                raise self._bad(key, "longspan has plain LoRA, without this")

    def _projections(self, shape: ModelShape) -> tuple[ProjectionName, ...]:
        """Which projections `target_modules` names, by PEFT's rule: a module's whole path, or the end of it."""
        ends = self._names("target_modules")
        modules = _modules(shape)
        found = {ours for ours, theirs in modules.items() if any(f".{theirs}".endswith(f".{end}") for end in ends)}
        projections = tuple(name for name in PROJECTIONS if f"blocks.0.{name}" in found)
        wanted = {f"blocks.{layer}.{name}" for layer in range(shape.layers) for name in projections}
        idle = [end for end in ends if not any(f".{theirs}".endswith(f".{end}") for theirs in modules.values())]
        if found != wanted or idle or not projections:
            known = ", ".join(modules[f"blocks.0.{name}"].rpartition(".")[2] for name in PROJECTIONS)
            raise self._bad("target_modules", f"names out of {known} are needed, for every layer alike")
        return projections

    def _whole(self, shape: ModelShape) -> tuple[WholePart, ...]:
        """Which parts `modules_to_save` names, by PEFT's rule: every module whose path ends in one of the names."""
        if not self.table.get("modules_to_save"):
            return ()
        ends, modules = self._names("modules_to_save"), _modules(shape)
        if shape.tied:
            modules["head"] = "lm_head"  # PEFT saves a tied embedding under both names
        found = {ours for ours, theirs in modules.items() if theirs.endswith(ends)}
        parts = tuple(p for p in WHOLE_PARTS if any(whole_part(f"{ours}.weight") == p for ours in found))
        wanted = {ours for ours in modules if whole_part(f"{ours}.weight") in parts}
        idle = [end for end in ends if not any(theirs.endswith(end) for theirs in modules.values())]
        if found != wanted or idle:
            raise self._bad("modules_to_save", "the embedding, the head, or all norms together are needed")
        if shape.tied and "head" in parts and "embed" not in parts:
            raise self._bad("modules_to_save", "the model's head is its embedding: both or none is needed")
        return tuple(p for p in parts if not (shape.tied and p == "head"))

    def _names(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key)
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            raise self._bad(key, "a list of names of modules is needed")
        return tuple(value)

    def _bad(self, key: str, needed: str) -> ModelError:
        return ModelError(
            "model.adapter-config",
            f"{key} is {shown(self.table.get(key))}; {needed}",
            where=f"{self.where}, key {key}",
            fix="merge the adapter in PEFT and use the merged model",
        )


def _modules(shape: ModelShape) -> dict[str, str]:
    """Every module of the decoder that holds weights to the family's path of it, one to one."""
    names = family_named(shape.family).names(shape)
    return {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for ours, theirs in names.items()}
