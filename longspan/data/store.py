"""The token store: the ids of many documents in flat files that are memory-mapped, shard by shard, all hashed."""

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from longspan.config import Settings
from longspan.data.sources import Quarantined
from longspan.utils.errors import DataError
from longspan.utils.files import read_json, sha256, storage_errors, write_atomic, write_json
from longspan.utils.values import canonical_sha256

INDEX: Final = "index.bin"
MANIFEST: Final = "manifest.json"
SHARD_BYTES = 256 * 2**20  # of tokens; the document that reaches it ends the shard


def tokens_name(shard: int) -> str:
    """The file of a shard's tokens."""
    return f"tokens-{shard:05d}.bin"


def documents_name(shard: int) -> str:
    """The file of a shard's documents: their ids, in order."""
    return f"documents-{shard:05d}.json"


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


class Shard(Settings):
    """What a finished shard says about itself: its files, and the tokens of each document with its separator."""

    schema_version: Literal[1] = 1
    files: dict[str, FileRecord]
    lengths: tuple[int, ...]


class Manifest(Settings):
    """What a finished store says about itself. `tokens` counts separators too, `shards` those of each shard.

    `sha256` stands for the whole store: it is the hash of the hashes of all files.
    """

    schema_version: Literal[2] = 2
    dtype: Literal["<u2", "<u4"]
    documents: int
    tokens: int
    shards: tuple[int, ...]
    files: dict[str, FileRecord]
    sha256: str
    origin: Origin


def whole_sha256(files: Mapping[str, FileRecord]) -> str:
    """One hash for all files of a store."""
    return canonical_sha256({name: record.sha256 for name, record in files.items()})


class StoreWriter:
    """Writes one store into a folder, document by document, in shards; only a finished store opens.

    A folder of a writer that was killed is gone on with: `done` documents are in whole shards and must not be added
    again. `shard_bytes` bounds a shard's tokens, up to the document that reaches it.
    """

    def __init__(self, folder: Path, origin: Origin, *, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._origin, self._shard_bytes = folder, origin, shard_bytes
        self._dtype = token_dtype(origin.vocabulary)
        self._shards: list[Shard] = []
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        while (path := folder / _shard_name(len(self._shards))).exists():
            shard = Shard.model_validate_json(path.read_bytes())
            for name, expected in shard.files.items():
                _check_file(folder / name, expected, verify=True)
            self._shards.append(shard)
        self.done = sum(len(shard.lengths) for shard in self._shards)
        self._file: BinaryIO | None = None
        self._names: list[str] = []
        self._lengths: list[int] = []

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with storage_errors(self._folder):
                self._file.close()

    def add(self, name: str, ids: Iterable[NDArray[np.uint32]]) -> None:
        """Append one document, which may come in pieces; the separator is added here, once."""
        length = 0
        separator = np.array([self._origin.separator], dtype=np.uint32)
        with storage_errors(self._folder / tokens_name(len(self._shards))):
            if self._file is None:
                self._file = (self._folder / tokens_name(len(self._shards))).open("wb")
            for piece in itertools.chain(ids, (separator,)):
                self._file.write(piece.astype(self._dtype).data)
                length += len(piece)
        self._names.append(name)
        self._lengths.append(length)
        if self._file.tell() >= self._shard_bytes:
            self._end_shard()

    def _end_shard(self) -> None:
        """Make what was added since the last shard durable, its own record last."""
        number = len(self._shards)
        assert self._file is not None, "a shard has documents"
        with storage_errors(self._folder / tokens_name(number)):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._file = None
        write_json(self._folder / documents_name(number), self._names)
        paths = [self._folder / name for name in (tokens_name(number), documents_name(number))]
        shard = Shard(files={path.name: _record(path) for path in paths}, lengths=tuple(self._lengths))
        write_json(self._folder / _shard_name(number), shard.model_dump(mode="json"))
        self._shards.append(shard)
        self._names, self._lengths = [], []

    def finish(self) -> None:
        """Write what makes the store whole: the last shard, the index and, last, the manifest with all hashes."""
        if self._names:
            self._end_shard()
        lengths = np.array([length for shard in self._shards for length in shard.lengths], dtype="<i8")
        index = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
        write_atomic(self._folder / INDEX, index.tobytes())
        files = {name: record for shard in self._shards for name, record in shard.files.items()}
        files[INDEX] = _record(self._folder / INDEX)
        manifest = Manifest(
            dtype=self._dtype,
            documents=len(lengths),
            tokens=int(lengths.sum()),
            shards=tuple(sum(shard.lengths) for shard in self._shards),
            files=files,
            sha256=whole_sha256(files),
            origin=self._origin,
        )
        write_json(self._folder / MANIFEST, manifest.model_dump(mode="json"))


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Documents as token ids, read from memory-mapped files.

    `documents` are their ids, `lengths` their tokens, the separator at the end of each included; `starts` count from
    the first token of the first shard.
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
        names: list[str] = []
        for shard in range(len(manifest.shards)):
            names += read_json(folder / documents_name(shard), error=DataError, code="data.store-damaged")
        lengths, item_bytes = pairs[:, 1], np.dtype(manifest.dtype).itemsize
        written = tuple(manifest.files[tokens_name(n)].bytes // item_bytes for n in range(len(manifest.shards)))
        if not (
            lengths.sum() == sum(written) == manifest.tokens
            and written == manifest.shards
            and len(pairs) == len(names) == manifest.documents
        ):
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
        if not length:  # of an empty store there is no shard to look into
            return np.empty(0, dtype=np.int64)
        shard = int(np.searchsorted(self._shard_ends, first, side="right"))
        first -= int(self._shard_ends[shard]) - self.manifest.shards[shard]
        return self._maps[shard][first : first + length].astype(np.int64)

    @cached_property
    def _shard_ends(self) -> NDArray[np.int64]:
        return np.cumsum(np.array(self.manifest.shards, dtype=np.int64))

    @cached_property
    def _maps(self) -> list[NDArray[Any]]:
        dtype = np.dtype(self.manifest.dtype)
        paths = (self.folder / tokens_name(shard) for shard in range(len(self.manifest.shards)))
        return [np.memmap(path, dtype=dtype, mode="r") for path in paths]


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.json"


def _record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=sha256(path))


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    content = read_json(path, error=DataError, code="data.store-damaged")
    try:
        manifest = Manifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"no manifest of a token store: {first['loc']}: {first['msg']}") from error
    shards = range(len(manifest.shards))
    if manifest.files.keys() != {INDEX, *map(tokens_name, shards), *map(documents_name, shards)}:
        raise _damaged(path, "the manifest lacks a file, or names one too many")
    if manifest.sha256 != whole_sha256(manifest.files):
        raise _damaged(path, "the hash of the whole is not that of its files")
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
