"""Adapters in and out in the format of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longspan.model.decoder import Decoder, Projection
from longspan.model.families.base import family_named, family_of
from longspan.model.folder import json_bytes, read_plain, safe_path, write_whole
from longspan.model.lora import add_lora, whole_part
from longspan.model.peftconfig import PeftConfig
from longspan.model.settings import PROJECTIONS, LoraSettings
from longspan.model.tensorfile import Entry, Held, read_entries, write_tensors
from longspan.model.weights import HEAD, saved_config
from longspan.rope.export import config_rope, read_rope
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape
from longspan.utils.errors import ModelError
from longspan.utils.files import write_atomic

CONFIG, TENSORS, BASE_CONFIG = "adapter_config.json", "adapter_model.safetensors", "base_config.json"
PREFIX = "base_model.model."  # what PEFT wraps a model in


def tensor_names(settings: LoraSettings, shape: ModelShape) -> dict[str, str]:
    """Our names of everything that `settings` trains to PEFT's tensor names, one to one."""
    found: dict[str, str] = {}
    for ours, theirs in family_named(shape.family).names(shape).items():
        module, _, kind = ours.rpartition(".")
        if kind == "weight" and module.rpartition(".")[2] in settings.projections:
            place = PREFIX + theirs.removesuffix(".weight")
            found[f"{module}.lora.down"] = f"{place}.lora_A.weight"
            found[f"{module}.lora.up"] = f"{place}.lora_B.weight"
        elif whole_part(ours) in settings.also_train:
            found[ours] = PREFIX + theirs
    return found


def save_adapter(decoder: Decoder, folder: Path | str, *, base: str) -> None:
    """Write the decoder's adapters, and what is trained whole beside them, as PEFT does; float32.

    `base` names the model that they belong to: a folder or a name on the hub. base_config.json is that model's config
    with the positions that the adapters were trained at: PEFT does not look at it, so where they differ from the
    base's, the base is to be loaded with it. (As config.json it would make transformers take the folder for a model.)
    The folder must be new or empty and appears whole or not at all; equal adapters give equal bytes.
    Raises `ModelError` when the decoder has no adapters, or as `weights.save` does.
    """
    folder, settings, shape = Path(folder), decoder.lora_settings, decoder.shape
    if settings is None:
        raise ModelError(
            "model.no-adapters", "the decoder carries no adapters", where=str(folder), fix="save the model itself"
        )
    family, parameters = family_named(shape.family), dict(decoder.named_parameters())
    tensors = {theirs: Held(parameters[ours]) for ours, theirs in tensor_names(settings, shape).items()}
    if _tied_whole(settings, shape):  # PEFT trains two copies of a tied embedding unless both are there and equal
        tensors[PREFIX + HEAD] = Held(decoder.embed.weight)
    rope = config_rope(decoder.frequencies, head_dim=shape.head_dim)
    config = saved_config(decoder.config, family.config(shape), rope, decoder.embed.weight.dtype)

    def fill(staging: Path) -> None:
        write_tensors(staging / TENSORS, tensors, dtype=torch.float32)
        write_atomic(staging / CONFIG, json_bytes(_adapter_config(settings, shape, base)))
        write_atomic(staging / BASE_CONFIG, json_bytes(config))

    write_whole(folder, fill)


def _tied_whole(settings: LoraSettings, shape: ModelShape) -> bool:
    return shape.tied and "embed" in settings.also_train


def _adapter_config(settings: LoraSettings, shape: ModelShape, base: str) -> dict[str, Any]:
    names = family_named(shape.family).names(shape)
    last = {ours: theirs.split(".")[-2] for ours, theirs in names.items() if ours.endswith(".weight")}
    whole = {module for ours, module in last.items() if whole_part(ours) in settings.also_train}
    tied = _tied_whole(settings, shape)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [last[f"blocks.0.{name}.weight"] for name in PROJECTIONS if name in settings.projections],
        "modules_to_save": sorted(whole | ({HEAD.removesuffix(".weight")} if tied else set())) or None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
        **({"ensure_weight_tying": True} if tied else {}),
    }


def load_adapter(decoder: Decoder, folder: Path | str) -> LoraSettings:
    """Put the adapters of a PEFT folder onto the decoder, to be used, trained or merged; their settings come back.

    From a folder of `save_adapter` the decoder takes the positions too. Dropout belongs to training with PEFT and is
    not taken over. Everything is checked before anything changes. Raises `ModelError` for whatever is missing,
    damaged, of another model, or more than plain LoRA; nothing executable is opened.
    """
    folder, shape = Path(folder), decoder.shape
    config = PeftConfig(_read_config(folder), where=str(folder / CONFIG))
    settings = config.settings(shape)
    entries = _read_tensors(folder)
    names = tensor_names(settings, shape)
    tied = _tied_whole(settings, shape)
    if tied:
        _check_tied(folder, entries.get(PREFIX + HEAD), entries.get(names["embed.weight"]))
    _check_names(folder, set(names.values()) | ({PREFIX + HEAD} if tied else set()), entries)
    parameters = dict(decoder.named_parameters())
    for ours, theirs in names.items():
        _check_shape(folder, theirs, entries[theirs], _wanted(decoder, parameters, ours, settings.rank))
    frequencies = _read_positions(folder, shape)

    add_lora(decoder, settings, seed=0)  # the values that it draws are replaced
    with torch.no_grad():
        for ours, parameter in decoder.named_parameters():
            if ours in names:
                parameter.copy_(entries[names[ours]].read())
    decoder.frequencies = frequencies or decoder.frequencies
    return settings


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError("model.missing", "there is no such adapter folder", where=str(folder), fix="check the path")
    return read_plain(safe_path(folder, CONFIG))


def _read_tensors(folder: Path) -> dict[str, Entry]:
    if (folder / TENSORS).exists():
        return read_entries(safe_path(folder, TENSORS))
    if (folder / "adapter_model.bin").exists():
        raise ModelError(
            "model.pickle",
            "the adapters are pickled (adapter_model.bin); opening a pickle can run code",
            where=str(folder),
            fix="save them again with PEFT's safe_serialization",
        )
    raise ModelError("model.missing", f"there is no {TENSORS}", where=str(folder), fix="copy it into the folder")


def _check_names(folder: Path, expected: set[str], entries: Mapping[str, Entry]) -> None:
    missing, extra = sorted(expected - entries.keys()), sorted(entries.keys() - expected)
    fix = f"{CONFIG} and {TENSORS} must be of one adapter, and the model the one that it was made for"
    if missing:
        what = f"{len(missing)} of {len(expected)} tensors are missing, first {missing[0]}"
        raise ModelError("model.missing-tensor", what, where=str(folder), fix=fix)
    if extra:
        what = f"{len(extra)} tensors have no place in this adapter, first {extra[0]}"
        raise ModelError("model.extra-tensor", what, where=str(folder), fix=fix)


def _wanted(decoder: Decoder, parameters: Mapping[str, Any], ours: str, rank: int) -> tuple[int, ...]:
    """The shape that a tensor must have, known before the adapters exist."""
    if ".lora." not in ours:
        return tuple(parameters[ours].shape)
    projection = decoder.get_submodule(ours.rsplit(".", 2)[0])
    assert isinstance(projection, Projection)
    return (rank, projection.in_features) if ours.endswith(".down") else (projection.out_features, rank)


def _check_shape(folder: Path, name: str, entry: Entry, expected: tuple[int, ...]) -> None:
    if entry.shape != expected:
        raise ModelError(
            "model.shape",
            f"{name} is {list(entry.shape)}; model and {CONFIG} say {list(expected)}",
            where=str(folder),
            fix="use the adapter with the model that it was made for",
        )


def _check_tied(folder: Path, head: Entry | None, embed: Entry | None) -> None:
    """An embedding that is also the head must have been trained as one: PEFT else trains a copy, and not the head."""
    found = None if head is None else head.read()
    if found is not None and embed is not None and torch.equal(found, embed.read().to(found.dtype)):
        return
    raise ModelError(
        "model.tied",
        f"the model ties {HEAD} to its embedding, and the adapter does not hold the same tensor for both",
        where=str(folder),
        fix="train with ensure_weight_tying in PEFT, or merge the adapter there and save an untied model",
    )


def _read_positions(folder: Path, shape: ModelShape) -> Frequencies | None:
    """The positions that the adapters were trained at, where the folder tells them."""
    if not (folder / BASE_CONFIG).exists():
        return None
    config = read_plain(safe_path(folder, BASE_CONFIG))
    family = family_of(config)
    theirs = family.shape(config)
    if replace(theirs, trained_length=shape.trained_length) != shape:  # positions may differ: they are asked for
        raise ModelError(
            "model.shape",
            f"{BASE_CONFIG} beside the adapters is of another model",
            where=str(folder / BASE_CONFIG),
            fix="use the adapter with the model that it was made for",
        )
    return read_rope({**config, **family.config(theirs)})
