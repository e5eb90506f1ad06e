"""Writing that survives a kill at any moment, and reading that refuses surprises."""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longspan.utils.errors import LongspanError, StorageError

MAX_JSON_BYTES = 256 * 2**20


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's write errors into a `StorageError` that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            "storage.full" if full else "storage.io",
            "the disk is full" if full else f"cannot write: {error.strerror or error}",
            where=str(path),
            fix="free some space and run the same command again: everything saved before is whole"
            if full
            else "check the disk and the permissions, then run the same command again",
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename, fsync of the folder."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: JSON has no word for them."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for JSON: `json` itself keeps the last of two equal keys without a word."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} stands twice")
        result[key] = value
    return result


def read_json(path: Path, *, error: type[LongspanError] = LongspanError, code: str = "file.json") -> Any:
    """Read a JSON file; size and nesting are limited and duplicate keys are refused.

    Raises `error` with `code` when the file is missing, too large, or no JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_duplicates)
    except FileNotFoundError:
        raise error(code, f"{path.name} is missing", where=str(path), fix="check the path") from None
    except (OSError, ValueError, RecursionError) as cause:
        raise error(code, f"{path.name} cannot be read: {cause}", where=str(path), fix="restore the file") from cause


def sha256(path: Path) -> str:
    """Hash of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
