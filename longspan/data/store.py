"""The token store: the ids of many documents in flat files that are memory-mapped, with hashes of everything."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from longspan.config import Settings
from longspan.data.sources import Quarantined
from longspan.utils.errors import DataError
from longspan.utils.files import read_json, sha256, storage_errors, write_atomic, write_json

FileName = Literal["tokens.bin", "index.bin", "documents.json"]
TOKENS: Final = "tokens.bin"
INDEX: Final = "index.bin"
DOCUMENTS: Final = "documents.json"
FILES: Final[tuple[FileName, ...]] = (TOKENS, INDEX, DOCUMENTS)
MANIFEST: Final = "manifest.json"


def token_dtype(vocabulary: int) -> Literal["<u2", "<u4"]:
    """The little-endian numpy type that holds every id of a vocabulary: two bytes an id where that is enough."""
    return "<u2" if vocabulary <= 2**16 else "<u4"


class Origin(Settings):
    """Where a store's tokens come from; equal fingerprints mean equal tokens."""

    vocabulary: int
    separator: int
    tokenizer_sha256: str
    fingerprint: str
    quarantine: dict[str, Quarantined]


class FileRecord(Settings):
    """What was written to one file."""

    bytes: int
    sha256: str


class Manifest(Settings):
    """What a finished store says about itself. `tokens` counts separators too."""

    schema_version: Literal[1] = 1
    dtype: Literal["<u2", "<u4"]
    documents: int
    tokens: int
    files: dict[FileName, FileRecord]
    origin: Origin


class StoreWriter:
    """Writes one store into a new folder, document by document; only a finished one opens."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        self._folder, self._origin = folder, origin
        self._dtype = token_dtype(origin.vocabulary)
        self._names: list[str] = []
        self._ends = [0]
        with storage_errors(folder):
            folder.mkdir(parents=True)
            self._file = (folder / TOKENS).open("wb")

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with storage_errors(self._folder / TOKENS):
            self._file.close()

    def add(self, name: str, ids: NDArray[np.uint32]) -> None:
        """Append one document; the separator is added here, once."""
        with storage_errors(self._folder / TOKENS):
            self._file.write(ids.astype(self._dtype).data)
            self._file.write(np.array([self._origin.separator], dtype=self._dtype).data)
        self._names.append(name)
        self._ends.append(self._ends[-1] + len(ids) + 1)

    def finish(self) -> None:
        """Write what makes the store whole: the index, the names and, last, the manifest with all hashes."""
        with storage_errors(self._folder / TOKENS):
            self._file.flush()
            os.fsync(self._file.fileno())
        ends = np.array(self._ends, dtype="<i8")
        write_atomic(self._folder / INDEX, np.stack([ends[:-1], np.diff(ends)], axis=1).tobytes())
        write_json(self._folder / DOCUMENTS, self._names)
        paths = {name: self._folder / name for name in FILES}
        manifest = Manifest(
            dtype=self._dtype,
            documents=len(self._names),
            tokens=self._ends[-1],
            files={name: FileRecord(bytes=p.stat().st_size, sha256=sha256(p)) for name, p in paths.items()},
            origin=self._origin,
        )
        write_json(self._folder / MANIFEST, manifest.model_dump(mode="json"))


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Documents as token ids, read from a memory-mapped file.

    `documents` are their ids, `lengths` their tokens, the separator at the end of each included.
    """

    folder: Path
    manifest: Manifest
    documents: tuple[str, ...]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "TokenStore":
        """Open a finished store. Sizes are always checked, hashes unless `verify` is false.

        Raises `DataError` that names the file which is missing, truncated or changed.
        """
        manifest = _read_manifest(folder)
        for name, expected in manifest.files.items():
            _check_file(folder / name, expected, verify=verify)
        pairs = np.fromfile(folder / INDEX, dtype="<i8").reshape(-1, 2)
        names = read_json(folder / DOCUMENTS, error=DataError, code="data.store-damaged")
        lengths = pairs[:, 1]
        tokens = manifest.files[TOKENS].bytes // np.dtype(manifest.dtype).itemsize
        if not (lengths.sum() == tokens == manifest.tokens and len(pairs) == len(names) == manifest.documents):
            raise _damaged(folder / MANIFEST, "the counts do not agree with the files")
        return cls(folder, manifest, tuple(names), pairs[:, 0], lengths)

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def tokens(self) -> int:
        """All tokens, separators included."""
        return self.manifest.tokens

    @property
    def separator(self) -> int:
        """The id at the end of every document."""
        return self.manifest.origin.separator

    @property
    def fingerprint(self) -> str:
        """Hash of all that the tokens depend on."""
        return self.manifest.origin.fingerprint

    def read(self, document: int, start: int, length: int) -> NDArray[np.int64]:
        """`length` ids of one document from its token `start` on."""
        assert 0 <= start <= start + length <= self.lengths[document], "outside the document"
        first = int(self.starts[document]) + start
        return self._flat[first : first + length].astype(np.int64)

    @cached_property
    def _flat(self) -> NDArray[Any]:
        dtype = np.dtype(self.manifest.dtype)
        # An empty file cannot be mapped; a store without held-out documents is empty.
        return np.memmap(self.folder / TOKENS, dtype=dtype, mode="r") if self.tokens else np.empty(0, dtype=dtype)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    content = read_json(path, error=DataError, code="data.store-damaged")
    try:
        manifest = Manifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"no manifest of a token store: {first['loc']}: {first['msg']}") from error
    if len(manifest.files) != len(FILES):
        raise _damaged(path, "the manifest lacks a file")
    return manifest


def _check_file(path: Path, expected: FileRecord, *, verify: bool) -> None:
    if not path.is_file():
        raise _damaged(path, f"{path.name} is missing")
    size_bytes = path.stat().st_size
    if size_bytes != expected.bytes:
        raise _damaged(path, f"{path.name} has {size_bytes:,} bytes where {expected.bytes:,} were written")
    if verify and sha256(path) != expected.sha256:
        raise _damaged(path, f"{path.name} is not what was written: its hash differs")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        "data.store-damaged",
        what,
        where=str(path),
        fix="move the folder of token stores away; the run rebuilds it",
    )
