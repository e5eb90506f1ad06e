"""Documents out of files: reads text, jsonl and parquet, and sets damaged input aside with a reason."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longspan.config import Settings
from longspan.data.chat import conversation
from longspan.data.settings import SourceSettings
from longspan.utils.errors import DataError

JSON_LINES = (".jsonl", ".ndjson")
ROWS = ("files", "chats")  # what is read file by file, or row by row
SHOWN_NAMES = 5
PARQUET_ROWS = 16  # a batch of rows: documents may be large, so few at a time


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text with its id. `size_bytes` is its length in UTF-8; the text of a `chat` is its messages as JSON."""

    id: str
    text: str
    size_bytes: int
    chat: bool = False


@dataclass(frozen=True)
class Rejected:
    """Something in a source that is no usable document, and why."""

    name: str
    reason: str


class Quarantined(Settings):
    """How many things were set aside for one reason, and the first few of them."""

    count: int
    first: tuple[str, ...]


class Quarantine:
    """What was set aside, by reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, rejected: Rejected) -> None:
        """Count one more."""
        self._counts[rejected.reason] += 1
        if self._counts[rejected.reason] <= SHOWN_NAMES:
            self._first[rejected.reason].append(rejected.name)

    def take(self, record: Mapping[str, Quarantined]) -> None:
        """Count all that another one recorded."""
        for reason, found in record.items():
            self._counts[reason] += found.count
            self._first[reason] = (self._first[reason] + list(found.first))[:SHOWN_NAMES]

    def record(self) -> dict[str, Quarantined]:
        """What a manifest keeps, sorted by reason."""
        return {
            reason: Quarantined(count=count, first=tuple(self._first[reason]))
            for reason, count in sorted(self._counts.items())
        }

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self._counts.items())) or "nothing"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is read in one go: a file, or the files that are joined into one document.

    `names` are the files' paths relative to the source, `id` that of the whole.
    """

    id: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes on disk; 0 where a file is gone."""
        return sum(path.stat().st_size for path in self.paths if path.exists())


def read_documents(
    sources: Sequence[SourceSettings], *, max_document_bytes: int, quarantine: Quarantine
) -> Iterator[Document]:
    """Every usable document of the sources, in a fixed order, one in memory at a time.

    Ids are paths relative to the source's folder, behind the source's name if it has one; rows of jsonl and parquet
    have their own `id`, or `path#row` counted from 1. Ids may repeat: equal ids are held out together. All else goes
    to `quarantine`. Raises `DataError` when a path does not exist or a source has no usable document.
    """
    require_paths(sources)
    for source in sources:
        here, found = Quarantine(), False
        for unit in units(source):
            for item in (unit,) if isinstance(unit, Rejected) else read_unit(source, unit, max_document_bytes):
                if isinstance(item, Document):
                    found = True
                    yield item
                else:
                    here.add(item)
                    quarantine.add(item)
        if not found:
            raise no_documents(source, str(here))


def require_paths(sources: Sequence[SourceSettings]) -> None:
    """Raise `DataError` when the path of a source does not exist."""
    for source in sources:
        if not source.path.exists():
            raise DataError(
                "data.missing", "there is no such file or folder", where=str(source.path), fix="check the source's path"
            )


def no_documents(source: SourceSettings, set_aside: str) -> DataError:
    """The error for a source without a usable document."""
    return DataError(
        "data.no-documents",
        f"no usable document in this source (set aside: {set_aside})",
        where=str(source.path),
        fix=f"give text files, or jsonl or parquet with text in the field {source.text_field!r}",
    )


def units(source: SourceSettings) -> list[Unit | Rejected]:
    """What a source is read in, in a fixed order: its files by name, or its joined documents."""
    prefix = f"{source.name}/" if source.name else ""
    found: list[Unit | Rejected] = []
    groups: dict[str, list[tuple[str, Path]]] = {}
    for item in _files(source.path):
        if isinstance(item, Rejected):
            found.append(Rejected(prefix + item.name, item.reason))
        elif source.documents in ROWS:
            found.append(Unit(id=prefix + item[0], names=(item[0],), paths=(item[1],)))
        else:
            groups.setdefault(_group(item[0], source), []).append(item)
    for group, files in sorted(groups.items()):
        files.sort(key=lambda file: _natural(file[0]))
        name = group or source.path.name
        found.append(Unit(id=prefix + name, names=tuple(f[0] for f in files), paths=tuple(f[1] for f in files)))
    return found


def read_unit(source: SourceSettings, unit: Unit, cap_bytes: int) -> Iterator[Document | Rejected]:
    """The documents of one unit, and what of it cannot be used."""
    if source.documents not in ROWS:
        yield from _joined(source, unit, cap_bytes)
        return
    path, name, suffix = unit.paths[0], unit.id, unit.paths[0].suffix.lower()
    try:
        if source.documents == "chats" and suffix not in (*JSON_LINES, ".parquet"):
            yield Rejected(name, "unknown-format")
        elif suffix in JSON_LINES:
            yield from _jsonl(path, name, source=source, cap_bytes=cap_bytes)
        elif suffix == ".parquet":
            yield from _parquet(path, name, source=source, cap_bytes=cap_bytes)
        elif suffix == ".json":  # one value, of whatever form: as text its brackets would be trained on
            yield Rejected(name, "unknown-format")
        else:
            yield _text_file(path, name, cap_bytes)
    except OSError:
        yield Rejected(name, "unreadable")


def _group(name: str, source: SourceSettings) -> str:
    """The joined document that a file belongs to: its repository, or its folder."""
    above = name.split("/")[:-1]
    return "/".join(above[:1] if source.documents == "repositories" else above)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts chapter-2 before chapter-10: runs of digits count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _joined(source: SourceSettings, unit: Unit, cap_bytes: int) -> Iterator[Document | Rejected]:
    """The files of a unit in order as one document; each after a line with its path when they are a repository."""
    parts: list[str] = []
    size_bytes = 0
    for name, path in zip(unit.names, unit.paths, strict=True):
        own = f"{source.name}/{name}" if source.name else name
        try:
            item = _text_file(path, own, cap_bytes)
        except OSError:
            item = Rejected(own, "unreadable")
        if isinstance(item, Rejected):
            yield item
            continue
        head = f"{source.header.replace('{path}', name)}\n" if source.documents == "repositories" else ""
        parts.append(head + item.text.rstrip("\n") + "\n")
        size_bytes += item.size_bytes
        if size_bytes > cap_bytes:  # what is read already is let go before more comes
            yield Rejected(unit.id, "too-large")
            return
    if parts:
        yield _checked(unit.id, "\n\n".join(parts), cap_bytes)


def _files(root: Path) -> list[tuple[str, Path] | Rejected]:
    """Name and path of every file, sorted by name. Links are never followed below the root."""
    if root.is_file():
        return [(root.name, root)]
    found: list[tuple[str, tuple[str, Path] | Rejected]] = []

    def unreadable(error: OSError) -> None:
        found.append(("", Rejected(str(error.filename), "unreadable")))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        for entry in [*folders, *files]:
            path = Path(folder, entry)
            name = path.relative_to(root).as_posix()
            reason = _refused_entry(path, root)
            if reason:
                found.append((name, Rejected(name, reason)))
            elif entry in files:
                found.append((name, (name, path)))
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
    return [item for _, item in sorted(found, key=lambda pair: pair[0])]


def _refused_entry(path: Path, root: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        # A link inside the folder points at something that is read under its own name.
        return "link-inside" if path.resolve().is_relative_to(root.resolve()) else "link-outside"
    return "" if path.is_file() or path.is_dir() else "not-a-file"


def _checked(name: str, text: str, cap_bytes: int) -> Document | Rejected:
    if not text or text.isspace():
        return Rejected(name, "empty")
    if "\0" in text:
        return Rejected(name, "binary")
    try:
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:  # JSON may spell half of a surrogate pair
        return Rejected(name, "invalid-unicode")
    if size_bytes > cap_bytes:
        return Rejected(name, "too-large")
    return Document(id=name, text=text, size_bytes=size_bytes)


def _decoded(name: str, content: bytes, cap_bytes: int) -> Document | Rejected:
    if b"\0" in content:
        return Rejected(name, "binary")
    try:
        return _checked(name, content.decode("utf-8-sig"), cap_bytes)
    except UnicodeDecodeError:
        return Rejected(name, "invalid-utf8")


def _text_file(path: Path, name: str, cap_bytes: int) -> Document | Rejected:
    if path.stat().st_size > cap_bytes:
        return Rejected(name, "too-large")
    return _decoded(name, path.read_bytes(), cap_bytes)


def _jsonl(path: Path, name: str, *, source: SourceSettings, cap_bytes: int) -> Iterator[Document | Rejected]:
    """One document a line; the cap holds for the whole line, so that no line can fill the memory."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(cap_bytes + 1):
            number += 1
            row_name = f"{name}#{number}"
            if len(line) > cap_bytes:
                while line and not line.endswith(b"\n"):
                    line = file.readline(2**20)
                yield Rejected(row_name, "too-large")
            elif not line.isspace():
                yield _json_row(line, row_name, source=source, cap_bytes=cap_bytes)
    if number == 0:
        yield Rejected(name, "empty")


def _json_row(line: bytes, name: str, *, source: SourceSettings, cap_bytes: int) -> Document | Rejected:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Rejected(name, "invalid-utf8")
    except (ValueError, RecursionError):
        return Rejected(name, "bad-json")
    if not isinstance(row, dict):
        return Rejected(name, "bad-json")
    return _row(row, name, source=source, cap_bytes=cap_bytes)


def _row(row: dict[str, Any], name: str, *, source: SourceSettings, cap_bytes: int) -> Document | Rejected:
    own = row.get("id")
    if isinstance(own, (str, int)) and own != "":
        name = str(own)
    value = row.get(source.row_field)
    if value is None:
        return Rejected(name, "missing-field")
    if source.documents == "chats":
        return _chat(name, value, cap_bytes)
    if isinstance(value, bytes):
        return _decoded(name, value, cap_bytes)
    return _checked(name, value, cap_bytes) if isinstance(value, str) else Rejected(name, "not-text")


def _chat(name: str, value: Any, cap_bytes: int) -> Document | Rejected:
    messages = conversation(value)
    if messages is None:
        return Rejected(name, "bad-chat")
    item = _checked(name, json.dumps(messages, ensure_ascii=False), cap_bytes)
    return item if isinstance(item, Rejected) else replace(item, chat=True)


def _parquet(path: Path, name: str, *, source: SourceSettings, cap_bytes: int) -> Iterator[Document | Rejected]:
    """One document a row, read a few rows at a time: no column is ever joined, so 32-bit offsets cannot overflow."""
    try:
        with pq.ParquetFile(path) as file:
            columns = [column for column in ("id", source.row_field) if column in file.schema_arrow.names]
            if source.row_field not in columns:
                yield Rejected(name, "missing-field")
                return
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch, index, f"{name}#{number}", source=source, cap_bytes=cap_bytes)
            if number == 0:
                yield Rejected(name, "empty")
    except pa.ArrowException:
        yield Rejected(name, "damaged-parquet")


def _parquet_row(batch: Any, index: int, name: str, *, source: SourceSettings, cap_bytes: int) -> Document | Rejected:
    try:
        row = {column: batch.column(column)[index].as_py() for column in batch.schema.names}
    except UnicodeDecodeError:
        return Rejected(name, "invalid-utf8")
    return _row(row, name, source=source, cap_bytes=cap_bytes)
