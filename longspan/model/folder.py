"""Hugging Face model folders: what may be opened in one, and how a new one comes to be whole or not at all."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from longspan.model.tensorfile import Entry, Stored, read_entries, write_tensors
from longspan.utils.errors import ModelError
from longspan.utils.files import fsync_folder, read_json, storage_errors, write_atomic

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
# Files that travel with a model from folder to folder: they say how text becomes tokens and how to generate.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)


def safe_path(folder: Path, name: str) -> Path:
    """The file `name` of a folder. Raises `ModelError` when the name or a symlink leads out of it.

    In a snapshot of the Hugging Face cache the files are links into the same repository's `blobs`; these are taken.
    """
    path, root = folder / name, folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if Path(name).name != name or not path.resolve().is_relative_to(root):
        raise ModelError(
            "model.path",
            f"{name!r} leads out of the model folder",
            where=str(folder),
            fix="use a folder that holds its own files",
        )
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises `ModelError` when there is none, or when the model brings its own code."""
    if not folder.is_dir():
        raise ModelError("model.missing", "there is no such model folder", where=str(folder), fix="check the path")
    config: Any = None
    for name in ("tokenizer_config.json", "config.json"):
        path = safe_path(folder, name)
        if name == "tokenizer_config.json" and not path.exists():
            continue
        config = read_plain(path)
    assert isinstance(config, dict)
    return config


def read_plain(path: Path) -> dict[str, Any]:
    """A JSON table that came with a model or a tokenizer. Raises `ModelError`, also when it brings its own code."""
    table = read_json(path, error=ModelError, code="model.config")
    if not isinstance(table, dict):
        raise ModelError("model.config", f"{path.name} is no table", where=str(path), fix="restore the file")
    if "auto_map" in table:
        raise ModelError(
            "model.remote-code",
            f"{path.name} asks to run code that came with it (auto_map)",
            where=str(path),
            fix="longspan never runs it: use a model of a supported family, or a tokenizer.json, in its standard form",
        )
    return table


def find_tensors(folder: Path) -> dict[str, Entry]:
    """Every tensor of a folder by its name: from model.safetensors, else from the shards of its index.

    Raises `ModelError` for pickled weights, damaged or missing shards, and an index that differs from its shards.
    """
    if (folder / WHOLE).exists():
        return read_entries(safe_path(folder, WHOLE))
    if (folder / INDEX).exists():
        return _read_shards(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ModelError(
            "model.pickle",
            f"the weights are pickled ({', '.join(pickles)}); opening a pickle can run code",
            where=str(folder),
            fix="convert the model to safetensors with the tool that made it",
        )
    raise ModelError("model.missing", f"there is no {WHOLE}", where=str(folder), fix="copy the weights into the folder")


def _read_shards(folder: Path) -> dict[str, Entry]:
    path = safe_path(folder, INDEX)
    index = read_json(path, error=ModelError, code="model.index")
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError("model.index", "there is no weight_map of names", where=str(path), fix="restore the index")
    shards = {name: safe_path(folder, name) for name in sorted(set(places.values()))}
    for name, shard in shards.items():
        if shard.suffix != ".safetensors":
            raise ModelError("model.pickle", f"{name} is no safetensors file", where=str(path), fix="restore the index")
        if not shard.exists():
            raise ModelError("model.missing", f"{name} is missing", where=str(path), fix="copy the shard again")
    entries: dict[str, Entry] = {}
    for name, shard in shards.items():
        for tensor, entry in read_entries(shard).items():
            if places.get(tensor) != name:
                raise ModelError(
                    "model.index",
                    f"{tensor} stands in {name}, but the index says {places.get(tensor)!r}",
                    where=str(path),
                    fix="restore the index and the shards of one version",
                )
            entries[tensor] = entry
    gone = sorted(set(places) - set(entries))
    if gone:
        raise ModelError(
            "model.index", f"no shard holds {gone[0]}", where=str(path), fix="restore the index and its shards"
        )
    return entries


def check_free(folder: Path) -> None:
    """Raise `ModelError` unless `folder` is new or an empty folder: a model is never written over another."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ModelError(
            "model.exists",
            "the folder is not empty; a model is never written over another",
            where=str(folder),
            fix="choose a new folder, or move the old one away",
        )


def write_whole(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all: `fill` writes it beside its place, then it is renamed.

    Raises `ModelError` when something is there already, `StorageError` when the disk cannot take it.
    """
    folder = folder.resolve()
    check_free(folder)
    staging = folder.with_name(f".{folder.name}.partial")
    with storage_errors(folder):
        if staging.exists():  # what an earlier, killed save left behind
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
        try:
            fill(staging)
            fsync_folder(staging)
            staging.rename(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        fsync_folder(folder.parent)


@dataclass(frozen=True, kw_only=True)
class NewFolder:
    """All that goes into a model folder: config, tensors by their Hugging Face names, other files by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    dtype: torch.dtype
    max_shard_bytes: int
    files: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the folder whole or not at all. Raises as `write_whole` does."""
        write_whole(folder, self._fill)

    def _fill(self, folder: Path) -> None:
        shards = self._shards()
        if len(shards) == 1:
            write_tensors(folder / WHOLE, shards[0], dtype=self.dtype)
        else:
            places: dict[str, str] = {}
            for number, shard in enumerate(shards, start=1):
                name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
                write_tensors(folder / name, shard, dtype=self.dtype)
                places |= dict.fromkeys(shard, name)
            total = sum(self._bytes(stored) for stored in self.tensors.values())
            write_atomic(folder / INDEX, json_bytes({"metadata": {"total_size": total}, "weight_map": places}))
        write_atomic(folder / "config.json", json_bytes(self.config))
        for name, content in self.files.items():
            write_atomic(folder / name, content)

    def _bytes(self, stored: Stored) -> int:
        return math.prod(stored.shape) * self.dtype.itemsize

    def _shards(self) -> list[dict[str, Stored]]:
        """The tensors in their order, cut before a shard would pass its limit; one larger tensor fills its own."""
        shards: list[dict[str, Stored]] = [{}]
        room = self.max_shard_bytes
        for name, stored in self.tensors.items():
            if shards[-1] and self._bytes(stored) > room:
                shards.append({})
                room = self.max_shard_bytes
            shards[-1][name] = stored
            room -= self._bytes(stored)
        return shards


def json_bytes(value: Any) -> bytes:
    """`value` as JSON with sorted keys: equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
