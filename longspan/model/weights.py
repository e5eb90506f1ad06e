"""Weights in and out: a decoder from a Hugging Face folder, and a Hugging Face folder from a decoder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from longspan.model.decoder import Decoder
from longspan.model.families.base import family_named, family_of
from longspan.model.folder import COMPANIONS, NewFolder, find_tensors, json_bytes, read_config, read_plain, safe_path
from longspan.model.tensorfile import Entry, Held
from longspan.rope.export import config_rope, read_rope
from longspan.rope.layertypes import read_layer_type
from longspan.utils.errors import ModelError

HEAD = "lm_head.weight"
# Keys of a config that would say something untrue of a saved model. `config_rope` replaces the rotary ones.
STALE = {"_name_or_path", "dtype", "transformers_version"}


def load(folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """The decoder in a Hugging Face folder (safetensors, one file or shards; float32, float16 or bfloat16).

    Everything but the weights is checked before the first weight is read, and weights are read one at a time: memory
    peaks at the model and its largest tensor. On the device "meta" only the checks are done. Raises `ModelError` for
    whatever is missing, damaged, unsupported or unsafe; nothing executable is opened.
    """
    folder = Path(folder)
    config = read_config(folder)
    family = family_of(config)
    shape = family.shape(config)
    names, entries = family.names(shape), find_tensors(folder)
    _check_names(folder, set(names.values()), entries, tied=shape.tied)
    with torch.device("meta"):  # sizes only: memory is taken once, on the device, after the checks
        decoder = Decoder(shape, read_rope(read_layer_type({**config, **family.config(shape)})))
    parameters = dict(decoder.named_parameters())
    assert parameters.keys() == names.keys(), "a family's names are the decoder's"
    for ours, theirs in names.items():
        _check_shape(folder, theirs, entries[theirs], tuple(parameters[ours].shape))
    if shape.tied and HEAD in entries:
        _check_tied(folder, entries[HEAD], entries[names["embed.weight"]])

    decoder.to(dtype)
    decoder.source, decoder.config = folder.resolve(), config
    if torch.device(device).type != "meta":  # which has sizes and no values
        Unread(decoder, folder, device=device).fill(decoder)
    return decoder


def load_to_read(folder: Path | str, device: torch.device | str) -> Decoder:
    """A decoder that is asked and not trained: weights in bfloat16 on a GPU, in float32 elsewhere. Raises as `load`."""
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return load(folder, device=device, dtype=dtype).requires_grad_(False).eval()


class Unread:
    """A decoder that was loaded on "meta", whose weights come out of its files part by part, as they are asked for.

    So a rank that keeps some rows of every part never holds the whole model.
    """

    def __init__(self, decoder: Decoder, folder: Path | str, *, device: torch.device | str) -> None:
        """`decoder` is as `load` gave it, adapters put onto it or not; `device` is where weights are wanted.

        `folder` is the one it was loaded from: `decoder.source` may name another, whose tokenizer it travels with.
        """
        family = family_of(decoder.config)
        self._names, self._entries = family.names(decoder.shape), find_tensors(Path(folder))
        self._places = {id(module): name for name, module in decoder.named_modules()}
        self._device = device

    @torch.no_grad()
    def fill(self, part: nn.Module) -> None:
        """Give all parameters of a module of the decoder their values, on the device, one at a time.

        Types stay as they are; what has values already, as adapters do, moves.
        """
        for place, module in part.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                ours = ".".join(filter(None, (self._places[id(part)], place, name)))
                value = self._entries[self._names[ours]].read() if parameter.is_meta else parameter.data
                value = value.to(self._device, parameter.dtype)
                setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))


def _check_names(folder: Path, expected: set[str], entries: Mapping[str, Entry], *, tied: bool) -> None:
    """Refuse missing tensors and unknown ones; old files hold rotary tables, and some a copy of a tied embedding."""
    missing = sorted(expected - entries.keys())
    if missing:
        raise ModelError(
            "model.missing-tensor",
            f"{len(missing)} of {len(expected)} tensors are missing, first {missing[0]}",
            where=str(folder),
            fix="copy the weights again; config.json and weights must be of one model",
        )
    known = expected | ({HEAD} if tied else set())
    extra = sorted(name for name in entries.keys() - known if not name.endswith(".rotary_emb.inv_freq"))
    if extra:
        raise ModelError(
            "model.extra-tensor",
            f"{len(extra)} tensors have no place in this family, first {extra[0]}",
            where=str(folder),
            fix="use the plain model: adapters are merged and other heads removed before longspan reads it",
        )


def _check_shape(folder: Path, name: str, entry: Entry, expected: tuple[int, ...]) -> None:
    if entry.shape != expected:
        raise ModelError(
            "model.shape",
            f"{name} is {list(entry.shape)}; config.json says {list(expected)}",
            where=str(folder),
            fix="config.json and weights must be of one model",
        )


def _check_tied(folder: Path, head: Entry, embed: Entry) -> None:
    """A written head beside a tied embedding must be its copy; transformers silently unties them otherwise."""
    if head.shape != embed.shape or not torch.equal(head.read(), embed.read().to(head.dtype)):
        raise ModelError(
            "model.tied",
            f"config.json ties {HEAD} to the embedding, but the two differ",
            where=str(folder),
            fix="set tie_word_embeddings to false in config.json if the head was trained",
        )


def save(
    decoder: Decoder,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    mixed_window: bool = False,
) -> None:
    """Write a Hugging Face folder that transformers loads: weights, config with the rotary set-up, tokenizer files.

    `dtype` None keeps the decoder's; `mixed_window` writes the factors of the original window as well. The folder must
    be new or empty and appears whole or not at all; equal decoders give equal bytes. Memory above the model: about
    twice its largest tensor. Raises `ModelError` when the folder holds something, when a weight is not finite in
    `dtype`, when the family has no words for the decoder's shape, or when there are adapters, for which such a folder
    has no place.
    """
    folder, shape = Path(folder), decoder.shape
    if decoder.adapters:
        raise ModelError(
            "model.adapters",
            f"the decoder carries {len(decoder.adapters)} adapters, which a model folder cannot hold",
            where=str(folder),
            fix="merge them first with merge_lora, or write them alone with save_adapter",
        )
    family = family_named(shape.family)
    rope = family.rope(shape, config_rope(decoder.frequencies, head_dim=shape.head_dim, mixed_window=mixed_window))
    written = family.config(shape)
    if family.shape({**written, **rope}) != replace(shape, trained_length=decoder.frequencies.length):
        raise ModelError(
            "model.inexpressible",
            f"the config of a {shape.family} model cannot say what this decoder is",
            where=str(shape),
            fix="use a family that has these windows, biases and norms",
        )
    names, parameters = family.names(shape), dict(decoder.named_parameters())
    dtype = dtype or decoder.embed.weight.dtype
    NewFolder(
        config=saved_config(decoder.config, written, rope, dtype),
        tensors={theirs: Held(parameters[ours]) for ours, theirs in names.items()},
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        files={} if decoder.source is None else companions(decoder.source, length=decoder.frequencies.length),
    ).write(folder)


def saved_config(
    original: Mapping[str, Any], family: Mapping[str, Any], rope: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Any]:
    """The config.json of a saved model: keys of the original that stay true, then the shape, then the rotary set-up.

    A new model has no original; it gets explicit nulls for special tokens, whose defaults belong to other tokenizers.
    """
    kept = {key: value for key, value in original.items() if key not in STALE}
    kept = kept or dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {**kept, **family, **rope, "torch_dtype": str(dtype).removeprefix("torch.")}


def companions(source: Path, *, length: int) -> dict[str, bytes]:
    """The files that travel with a model, with `length` as the tokenizer's longest text."""
    if not source.is_dir():
        raise ModelError(
            "model.source",
            "the folder that the model came from is gone, and its tokenizer with it",
            where=str(source),
            fix="put it back, or set decoder.source to None to save without a tokenizer",
        )
    found = {name: safe_path(source, name) for name in COMPANIONS if (source / name).exists()}
    files = {name: path.read_bytes() for name, path in found.items()}
    if "tokenizer_config.json" in found:
        settings = read_plain(found["tokenizer_config.json"])
        files["tokenizer_config.json"] = json_bytes({**settings, "model_max_length": length})
    return files
