"""Curation: the documents of all sources go through filters, part by part, and every drop is counted by reason."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.data.build import is_held_out
from longspan.data.curated import Ledger, PartRecord, write_lines
from longspan.data.filters.base import CorpusFilter, Filter, Judge, Sketched, Tools
from longspan.data.filters.contamination import Contamination
from longspan.data.settings import CurateSettings, DataSettings, SourceSettings
from longspan.data.sources import (
    Document,
    Quarantine,
    Rejected,
    Unit,
    no_documents,
    read_documents,
    read_unit,
    require_paths,
    units,
)
from longspan.utils.errors import DataError
from longspan.utils.files import read_json, storage_errors, write_atomic, write_json
from longspan.utils.values import canonical_sha256

Progress = Callable[[int, int], None]  # bytes of files done; bytes in all

PLAN, MANIFEST, DOCUMENTS = "plan.json", "manifest.json", "documents"
FORMAT = 1  # raise it when the same sources and filters are to give other documents


@dataclass(frozen=True)
class Round:
    """One pass over the documents: each is judged on its own, then sketched if a filter of all documents ends it."""

    filters: tuple[Filter, ...]
    corpus: CorpusFilter | None


def rounds(filters: Sequence[Filter | CorpusFilter]) -> list[Round]:
    """The filters in passes: a filter of all documents ends its pass, and the next one takes out what it found."""
    found: list[Round] = []
    held: list[Filter] = []
    for entry in filters:
        if isinstance(entry, CorpusFilter):
            found.append(Round(tuple(held), entry))
            held = []
        else:
            held.append(entry)
    return [*found, Round(tuple(held), None)]


class Curation:
    """The curation of one recipe's sources in its folder::

    plan.json           what the sources were when it began, and its parts
    protected-2.bin     hashes of the evaluation texts, for the filter with this number
    round-0/            what each part gave in each pass: documents, counts, sketches
    documents/          the documents that are kept, part by part, when all is done
    manifest.json       how many were read, set aside, dropped and changed, by reason

    `opened` makes or finds it; `work` does one part of one pass; `finish` writes the end. A part is whole or not there,
    so a curation that was killed goes on with the parts that are missing, in any process that sees the folder.
    """

    def __init__(self, folder: Path, settings: DataSettings) -> None:
        assert settings.curate is not None, "only asked of recipes with filters"
        self.folder, self._settings = folder, settings
        self._curate: CurateSettings = settings.curate
        self._plan = read_json(folder / PLAN, error=DataError, code="curate.plan")
        self.rounds = rounds(self._curate.filters)
        self.parts = len(self._plan["parts"])

    @classmethod
    def opened(cls, folder: Path, settings: DataSettings, *, seen: Any) -> "Curation":
        """Go on with the curation in `folder`, or begin it anew when sources or filters are others than it began with.

        `seen` is a JSON value that tells states of the sources apart, such as the sizes and times of their files.
        Raises `DataError` for a source that is missing or empty.
        """
        key = canonical_sha256([FORMAT, seen, settings.model_dump(mode="json", exclude={"curate": {"executor"}})])
        known = read_json(folder / PLAN, error=DataError, code="curate.plan") if (folder / PLAN).exists() else {}
        if known.get("key") != key:
            require_paths(settings.sources)
            with storage_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)  # derived from the sources, and no longer from these
                folder.mkdir(parents=True)
            parts, set_aside = _parts(settings)
            write_json(folder / PLAN, {"key": key, "parts": parts, "set_aside": set_aside})
        found = cls(folder, settings)
        if found.done:
            found._clean()  # a kill may have come right before this
        return found

    @property
    def done(self) -> bool:
        """Whether all is done."""
        return (self.folder / MANIFEST).exists()

    @property
    def manifest(self) -> dict[str, Any]:
        """The counts of a finished curation."""
        value: dict[str, Any] = read_json(self.folder / MANIFEST, error=DataError, code="curate.manifest")
        return value

    def missing(self, number: int) -> tuple[int, ...]:
        """The parts that are not yet done in a pass."""
        return tuple(part for part in range(self.parts) if not self._record_path(number, part).exists())

    def part_bytes(self, part: int) -> int:
        """Bytes of the files that a part reads."""
        return int(self._plan["parts"][part]["bytes"])

    def protect(self, progress: Progress) -> None:
        """Collect the evaluation texts for each `contamination` filter, once. Raises `DataError` without any."""
        for index, entry in enumerate(self._curate.filters):
            path = self.folder / f"protected-{index}.bin"
            if isinstance(entry, Contamination) and not path.exists():
                found = entry.protected(self._evaluation_texts(entry, progress))
                if not len(found):
                    raise DataError(
                        "curate.nothing-protected",
                        "no document is held out and no text is named, so there is nothing to look for",
                        where=f"recipe: data.curate.filters.{index}",
                        fix="set data.held_out or the filter's against, or leave contamination out",
                    )
                write_atomic(path, found.tobytes())

    def _evaluation_texts(self, entry: Contamination, progress: Progress) -> Iterator[str]:
        settings = self._settings
        done = total = 0
        for index in range(self.parts):
            total += self.part_bytes(index)
        cap_bytes, aside = settings.max_document_bytes, Quarantine()
        if settings.held_out or settings.held_out_share:
            for document in read_documents(settings.sources, max_document_bytes=cap_bytes, quarantine=aside):
                progress(done, total)
                done = min(total, done + document.size_bytes)
                if is_held_out(document.id, settings):
                    yield document.text
        if entry.against:
            sources = [SourceSettings(path=path) for path in entry.against]
            for document in read_documents(sources, max_document_bytes=cap_bytes, quarantine=aside):
                yield document.text

    def work(self, number: int, part: int, tools: Tools, *, progress: Progress | None = None) -> None:
        """Do one part of one pass: its documents first, its counts last, so that what has counts is whole.

        `progress` hears of every document, with bytes of text.
        """
        ledger, sketches, folder = Ledger(), list[Sketched](), self._round(number)
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        documents = self._kept(number, part, tools, ledger=ledger, sketches=sketches, progress=progress)
        write_lines(folder / f"{part:05d}.jsonl", documents)
        if self.rounds[number].corpus is not None:
            _write_sketches(folder / f"{part:05d}.npz", sketches)
        write_json(self._record_path(number, part), ledger.record().model_dump(mode="json"))

    def _kept(
        self,
        number: int,
        part: int,
        tools: Tools,
        *,
        ledger: Ledger,
        sketches: list[Sketched],
        progress: Progress | None,
    ) -> Iterator[Document]:
        """The documents of a part that go on; `ledger` and `sketches` learn of them."""
        judges, corpus = self._judges(self.rounds[number], tools), self.rounds[number].corpus
        done = 0
        for item in self._input(number, part, ledger):
            if progress is not None:
                progress(done, self.part_bytes(part))
            done += item.size_bytes
            held_out = is_held_out(item.id, self._settings)
            document = item if held_out else _judged(item, judges, ledger)
            if document is None:
                continue
            ledger.kept(document, held_out=held_out)
            if corpus is not None:
                digest = hashlib.sha256(document.text.encode()).hexdigest()
                rank = (0 if held_out else 1, -document.size_bytes, digest)
                seen = document.text if corpus.takes(document.id) else ""  # which is like nothing
                sketches.append(Sketched(rank=rank, sketch=corpus.sketch(seen)))
            yield document

    def _judges(self, this: Round, tools: Tools) -> list[tuple[Filter, Judge]]:
        found = []
        for entry in this.filters:
            own = tools
            if isinstance(entry, Contamination):
                index = self._curate.filters.index(entry)
                own = replace(tools, protected=np.fromfile(self.folder / f"protected-{index}.bin", dtype=np.uint64))
            found.append((entry, entry.judge(own)))
        return found

    def _input(self, number: int, part: int, ledger: Ledger) -> Iterator[Document]:
        """The documents of a part: out of its sources in the first pass, else what the pass before left."""
        cap_bytes = self._settings.max_document_bytes
        if number == 0:
            for entry in self._plan["parts"][part]["units"]:
                source = self._settings.sources[entry["source"]]
                unit = Unit(id=entry["id"], names=tuple(entry["names"]), paths=tuple(map(Path, entry["paths"])))
                for item in read_unit(source, unit, cap_bytes):
                    if isinstance(item, Rejected):
                        ledger.set_aside(item)
                    else:
                        ledger.read(item, source=entry["source"])
                        yield item
            return
        before = self.rounds[number - 1].corpus
        gone = self._surplus(number - 1)[str(part)] if before is not None else {}
        path = self._round(number - 1) / f"{part:05d}.jsonl"
        for row, document in enumerate(curated_documents(path)):
            if str(row) in gone:
                assert before is not None
                ledger.dropped(kind_of(before), gone[str(row)], document)
            else:
                yield document

    def _surplus(self, number: int) -> dict[str, dict[str, str]]:
        value: dict[str, dict[str, str]] = read_json(
            self._round(number) / "surplus.json", error=DataError, code="curate.surplus"
        )
        return value

    def compare(self, number: int) -> None:
        """After all parts of a pass that sketches: find what is too much, once."""
        corpus, path = self.rounds[number].corpus, self._round(number) / "surplus.json"
        if corpus is None or path.exists():
            return
        places: list[tuple[int, int]] = []
        documents: list[Sketched] = []
        for part in range(self.parts):
            found = _read_sketches(self._round(number) / f"{part:05d}.npz")
            places += [(part, row) for row in range(len(found))]
            documents += found
        gone: dict[str, dict[str, str]] = {str(part): {} for part in range(self.parts)}
        for index, reason in corpus.surplus(documents).items():
            if documents[index].rank[0]:  # what is held out stays, and what is like it goes
                part, row = places[index]
                gone[str(part)][str(row)] = reason
        write_json(path, gone)

    def finish(self) -> dict[str, Any]:
        """Put the kept documents in their place and write the counts, which come back.

        Raises `DataError` when a source had no usable document, or when nothing is left to train on.
        """
        last = len(self.rounds) - 1
        records = [
            PartRecord.model_validate_json(json.dumps(read_json(self._record_path(number, part))))
            for number, part in itertools.product(range(len(self.rounds)), range(self.parts))
        ]
        total = PartRecord.added(records, kept=records[last * self.parts :], set_aside=self._plan["set_aside"])
        for index, source in enumerate(self._settings.sources):
            if not total.read.get(str(index)):
                raise no_documents(source, str({name: entry.count for name, entry in total.set_aside.items()}))
        if not total.kept_documents:
            dropped = {kind: sum(e.documents for e in found.values()) for kind, found in total.dropped.items()}
            raise DataError(
                "curate.nothing-left",
                f"the filters leave no document to train on; they dropped {dropped}",
                where="recipe: data.curate.filters",
                fix="loosen the filter that dropped most",
            )
        with storage_errors(self.folder):
            shutil.rmtree(self.folder / DOCUMENTS, ignore_errors=True)
            (self.folder / DOCUMENTS).mkdir()
            for part in range(self.parts):
                path = self._round(last) / f"{part:05d}.jsonl"
                if path.stat().st_size:  # an empty file would be set aside as one
                    (self.folder / DOCUMENTS / path.name).hardlink_to(path)
        write_json(self.folder / MANIFEST, total.model_dump(mode="json"))
        self._clean()
        return self.manifest

    def _clean(self) -> None:
        """Remove what the passes wrote; the kept documents have their own names by now."""
        for number in range(len(self.rounds)):
            with storage_errors(self.folder):
                shutil.rmtree(self._round(number), ignore_errors=True)

    def _round(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _record_path(self, number: int, part: int) -> Path:
        return self._round(number) / f"{part:05d}.json"


def curated_settings(folder: Path, settings: DataSettings) -> DataSettings:
    """The settings under which the curated documents are read: the same split, other sources, nothing to filter."""
    value = settings.model_dump(mode="json")
    # A line holds a text with its escapes, of which the longest has six bytes for one.
    cap_bytes = 6 * settings.max_document_bytes + 2**20
    sources = [{"path": str(folder / DOCUMENTS)}]
    changed = value | {"sources": sources, "curate": None, "max_document_bytes": cap_bytes}
    return DataSettings.model_validate_json(json.dumps(changed))


def curated_documents(path: Path) -> Iterator[Document]:
    """The documents of one file that a pass has written, one in memory at a time."""
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            yield Document(id=row["id"], text=row["text"], size_bytes=len(row["text"].encode()))


def kind_of(entry: Any) -> str:
    """The name of a filter in recipes and counts."""
    return str(entry.kind)


def _judged(document: Document, judges: Sequence[tuple[Filter, Judge]], ledger: Ledger) -> Document | None:
    for entry, judge in judges:
        if not entry.takes(document.id):
            continue
        verdict = judge(document.id, document.text)
        if verdict.text is None:
            ledger.dropped(kind_of(entry), verdict.reason, document)
            return None
        if verdict.text != document.text:
            changed = replace(document, text=verdict.text, size_bytes=len(verdict.text.encode()))
            ledger.changed(
                kind_of(entry), verdict.reason, document, bytes_removed=document.size_bytes - changed.size_bytes
            )
            document = changed
    return document


def _parts(settings: DataSettings) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Neighbouring units up to `part_bytes` of files together, and what of the sources is no unit."""
    assert settings.curate is not None
    parts: list[dict[str, Any]] = []
    set_aside: list[list[str]] = []
    for index, source in enumerate(settings.sources):
        for unit in units(source):
            if isinstance(unit, Rejected):
                set_aside.append([unit.name, unit.reason])
                continue
            entry = {"source": index, "id": unit.id, "names": unit.names, "paths": [str(path) for path in unit.paths]}
            size_bytes = unit.size_bytes
            if not parts or parts[-1]["bytes"] + size_bytes > settings.curate.part_bytes:
                parts.append({"bytes": 0, "units": []})
            parts[-1]["units"].append(entry)
            parts[-1]["bytes"] += size_bytes
    return parts, set_aside


def _write_sketches(path: Path, sketches: Sequence[Sketched]) -> None:
    rows = [s.sketch for s in sketches if len(s.sketch)]
    columns = rows[0].shape[1] if rows else 1
    arrays: dict[str, NDArray[Any]] = {
        "rows": np.concatenate([np.empty((0, columns), dtype=np.uint64), *rows]),
        "counts": np.array([len(s.sketch) for s in sketches], dtype=np.int64),
        "order": np.array([s.rank[:2] for s in sketches], dtype=np.int64).reshape(-1, 2),
        "digests": np.array([s.rank[2] for s in sketches], dtype="S64"),
    }
    with storage_errors(path), path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _read_sketches(path: Path) -> list[Sketched]:
    with np.load(path) as found:
        rows, counts, order, digests = (found[name] for name in ("rows", "counts", "order", "digests"))
    ends = np.cumsum(counts)
    return [
        Sketched(rank=(int(first), int(second), digest.decode()), sketch=rows[end - count : end])
        for (first, second), digest, end, count in zip(order, digests, ends, counts, strict=True)
    ]
