"""What a curation writes: documents as lines of JSON, and counts of everything that happened to them."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from longspan.config import Settings
from longspan.data.sources import SHOWN_NAMES, Document, Quarantine, Quarantined, Rejected
from longspan.utils.files import fsync_folder, storage_errors


class Counted(Settings):
    """How many documents met one fate for one reason, their bytes of text, and the first few of them.

    For changed documents, `bytes` are those taken out.
    """

    documents: int = 0
    bytes: int = 0
    first: tuple[str, ...] = ()

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(
            documents=self.documents + other.documents,
            bytes=self.bytes + other.bytes,
            first=(self.first + other.first)[:SHOWN_NAMES],
        )


Fates = dict[str, dict[str, Counted]]  # filter, reason


class PartRecord(Settings):
    """The counts of one part of one pass, or of a whole curation. `read` counts documents by source."""

    schema_version: Literal[1] = 1
    read: dict[str, int] = Field(default_factory=dict)
    kept_documents: int = 0
    kept_bytes: int = 0
    held_out_documents: int = 0
    set_aside: dict[str, Quarantined] = Field(default_factory=dict)
    dropped: Fates = Field(default_factory=dict)
    changed: Fates = Field(default_factory=dict)

    @classmethod
    def added(
        cls, records: Sequence["PartRecord"], *, kept: Sequence["PartRecord"], set_aside: Iterable[Sequence[str]]
    ) -> "PartRecord":
        """All passes and parts together; what is kept is what the last pass, `kept`, says."""
        read: Counter[str] = Counter()
        aside = Quarantine()
        for name, reason in set_aside:
            aside.add(Rejected(name, reason))
        for record in records:
            read.update(record.read)
            aside.take(record.set_aside)
        return cls(
            read=dict(read),
            kept_documents=sum(record.kept_documents for record in kept),
            kept_bytes=sum(record.kept_bytes for record in kept),
            held_out_documents=sum(record.held_out_documents for record in kept),
            set_aside=aside.record(),
            dropped=_added([record.dropped for record in records]),
            changed=_added([record.changed for record in records]),
        )


def _added(fates: Iterable[Fates]) -> Fates:
    total: defaultdict[str, dict[str, Counted]] = defaultdict(dict)
    for entry in fates:
        for kind, reasons in entry.items():
            for reason, counted in reasons.items():
                total[kind][reason] = total[kind].get(reason, Counted()) + counted
    return {kind: dict(sorted(reasons.items())) for kind, reasons in total.items()}


class Ledger:
    """Counts while a part is worked on."""

    def __init__(self) -> None:
        self._read: Counter[str] = Counter()
        self._kept, self._kept_bytes, self._held_out = 0, 0, 0
        self._aside = Quarantine()
        self._dropped: list[Fates] = []
        self._changed: list[Fates] = []

    def read(self, _: Document, *, source: int) -> None:
        """One more document came out of a source."""
        self._read[str(source)] += 1

    def set_aside(self, rejected: Rejected) -> None:
        """Something was no usable document."""
        self._aside.add(rejected)

    def kept(self, document: Document, *, held_out: bool) -> None:
        """A document goes on."""
        self._held_out += held_out
        self._kept += not held_out
        self._kept_bytes += 0 if held_out else document.size_bytes

    def dropped(self, kind: str, reason: str, document: Document) -> None:
        """A filter dropped a document."""
        self._count(self._dropped, kind, reason, document.id, document.size_bytes)

    def changed(self, kind: str, reason: str, document: Document, *, bytes_removed: int) -> None:
        """A filter took something out of a document."""
        self._count(self._changed, kind, reason, document.id, bytes_removed)

    @staticmethod
    def _count(fates: list[Fates], kind: str, reason: str, name: str, size_bytes: int) -> None:
        fates.append({kind: {reason: Counted(documents=1, bytes=size_bytes, first=(name,))}})
        if len(fates) > 1_000:  # added up now and then, so that memory stays bounded
            fates[:] = [_added(fates)]

    def record(self) -> PartRecord:
        """The counts so far."""
        return PartRecord(
            read=dict(self._read),
            kept_documents=self._kept,
            kept_bytes=self._kept_bytes,
            held_out_documents=self._held_out,
            set_aside=self._aside.record(),
            dropped=_added(self._dropped),
            changed=_added(self._changed),
        )


def write_lines(path: Path, documents: Iterable[Document]) -> None:
    """Write documents as lines `{"id": …, "text": …}`, the whole file or nothing, one document in memory at a time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors(path):
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                for document in documents:
                    text = json.dumps(document.text, ensure_ascii=False)
                    # An id may hold half of a surrogate pair, which only an escape can write.
                    file.write(f'{{"id": {json.dumps(document.id)}, "text": {text}}}\n')
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_folder(path.parent)
