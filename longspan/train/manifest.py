"""The manifest of a checkpoint: written last, read first; the files that it lists, with their sizes and hashes."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longspan.utils.errors import CheckpointError, StorageError
from longspan.utils.files import read_json, sha256, write_json
from longspan.utils.values import canonical_sha256

MANIFEST = "manifest.json"
SCHEMA = 2
READABLE = (1, 2)  # 1 knew one rank only; its files are those of one rank today
FILE = re.compile(r"(model|optimizer)(-\d{5}-of-\d{5})?\.safetensors")


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest atomically and sync the folder: a folder with a manifest has everything else."""
    whole = {"schema": SCHEMA, **content}
    write_json(folder / MANIFEST, {"sha256": canonical_sha256(whole), "content": whole})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's manifest, its own hash verified.

    Raises `CheckpointError`: `checkpoint.damaged`, or `checkpoint.schema` for one that this version cannot read,
    and `StorageError` when the disk does not answer.
    """
    try:
        manifest = read_json(folder / MANIFEST, error=CheckpointError, code="checkpoint.damaged")
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise unreadable(folder, error.__cause__) from error
        raise
    whole = isinstance(manifest, dict) and manifest.keys() == {"sha256", "content"}
    if not whole or manifest["sha256"] != canonical_sha256(manifest["content"]):
        raise damaged(f"{MANIFEST} does not agree with its hash", folder)
    content: dict[str, Any] = manifest["content"]
    if content["schema"] not in READABLE:
        raise CheckpointError(
            "checkpoint.schema",
            f"the checkpoint has format {content['schema']}, this version reads {' and '.join(map(str, READABLE))}",
            where=str(folder),
            fix="use the version of longspan that wrote it (named in its manifest.json)",
        )
    if not all(FILE.fullmatch(name) for name in content["files"]):
        raise damaged(f"{MANIFEST} lists files that no checkpoint has", folder)
    return content


def check_sizes(folder: Path, files: Mapping[str, Any]) -> None:
    """Compare the sizes of all files with the manifest; raises `CheckpointError` that names the file."""
    try:
        for name, known in files.items():
            path = folder / name
            if not path.is_file():
                raise damaged(f"{name} is missing", folder)
            if path.stat().st_size != known["bytes"]:
                raise damaged(f"{name} has {path.stat().st_size:,} bytes, not {known['bytes']:,}", folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def check_hashes(folder: Path, files: Mapping[str, Any], names: Iterable[str]) -> None:
    """Compare the hashes of some files with the manifest; raises `CheckpointError` that names the file."""
    try:
        for name in names:
            if sha256(folder / name) != files[name]["sha256"]:
                raise damaged(f"{name} does not agree with its hash", folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def damaged(what: str, folder: Path) -> CheckpointError:
    """The error for a checkpoint that is not what was written."""
    return CheckpointError("checkpoint.damaged", what, where=str(folder), fix="restore it from a copy if there is one")


def unreadable(folder: Path, error: OSError) -> StorageError:
    """The error for a disk that does not answer: no reason to set a checkpoint aside."""
    what = f"a checkpoint cannot be read: {error.strerror or error}"
    fix = "check the disk and the permissions, then run the same command again"
    return StorageError("storage.read", what, where=str(folder), fix=fix)
