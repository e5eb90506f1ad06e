"""Data sets read with the package `datasets`: streamed once, row by row, into files that are read like any others."""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from longspan.config import Settings
from longspan.utils.errors import ConfigError, DataError, Interrupted, LongspanError
from longspan.utils.files import fsync_folder, read_json, storage_errors, write_json
from longspan.utils.values import canonical_sha256

FILE_ROWS = 1_000  # of one file: it decides the ids of rows that have none

Progress = Callable[[int, int], None]  # rows done; rows in all, as far as they are known


class StreamSettings(Settings):
    """A data set that the package `datasets` reads: `name` on the Hugging Face hub, at a commit, or a local `folder`.

    `split` and `config` choose within it; at most `most_rows` rows are taken, all when None. Nothing of it is run: data
    sets that need code of their own are refused by the package.
    """

    name: str | None = Field(default=None, pattern=r"^[\w.-]+(/[\w.-]+)?$")
    commit: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    folder: Path | None = None
    config: str | None = None
    split: str = "train"
    most_rows: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.name is None) == (self.folder is None):
            raise ValueError("a stream comes from a name on the hub or from a folder: give one of them")
        if (self.name is None) != (self.commit is None):
            raise ValueError("a name on the hub goes with the commit that is meant, and a folder has none")
        return self


def stream_rows(stream: StreamSettings, to: Path, *, fields: tuple[str, ...], progress: Progress) -> None:
    """Put the `fields` of all rows, and their `id`, into the folder `to` as files of a thousand JSON lines.

    Files are whole or not there, and a killed stream goes on behind the rows of its whole files; `to` is there when all
    of them are. Raises `ConfigError` when `datasets` is missing, `DataError` when it cannot read the data set.
    """
    package, loading, mark = _package(), to.with_name(f".{to.name}.streaming"), to.with_name(f".{to.name}.stream.json")
    with storage_errors(loading):
        loading.mkdir(parents=True, exist_ok=True)
    done = _begun(loading, mark, canonical_sha256([stream.model_dump(mode="json"), fields]))
    try:
        rows = _rows(package, stream, skipped=done)
        while batch := list(islice(rows, FILE_ROWS)):
            _write(loading / f"rows-{done // FILE_ROWS:06d}.jsonl", batch, fields)
            done += len(batch)
            progress(done, stream.most_rows or done)
    except (LongspanError, Interrupted):
        raise
    except Exception as error:  # the package raises classes of its own and of those below it
        raise DataError(
            "data.stream",
            f"the data set {stream.name or stream.folder} cannot be read: {type(error).__name__}: {error}",
            where=str(to),
            fix="check name, commit, config and split, the network and the hub login, then run the same command again",
        ) from error
    with storage_errors(to):
        loading.rename(to)
        fsync_folder(to.parent)
        mark.unlink()


def _begun(loading: Path, mark: Path, question: str) -> int:
    """How many rows whole files hold already; what another stream left there is removed. `mark` says of which one."""
    if not mark.exists() or read_json(mark, error=DataError, code="data.stream-mark") != {"question": question}:
        with storage_errors(loading):
            for file in loading.iterdir():
                file.unlink()
        write_json(mark, {"question": question})
    return FILE_ROWS * len(list(loading.glob("rows-*.jsonl")))


def _rows(package: Any, stream: StreamSettings, *, skipped: int) -> Iterator[dict[str, Any]]:
    # The position is counted here: a state that the package keeps was frozen after its first resume (datasets#8308).
    found = package.load_dataset(
        stream.name or str(stream.folder),
        stream.config,
        split=stream.split,
        revision=stream.commit,
        streaming=True,
    )
    left = None if stream.most_rows is None else max(0, stream.most_rows - skipped)
    yield from islice(iter(found.skip(skipped)), left)


def _write(path: Path, rows: list[dict[str, Any]], fields: tuple[str, ...]) -> None:
    """One file of rows, the whole or nothing."""
    temporary = path.with_name(f".{path.name}")
    lines = (json.dumps({name: _plain(row[name]) for name in ("id", *fields) if name in row}) for row in rows)
    with storage_errors(path):
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    fsync_folder(path.parent)


def _plain(value: Any) -> Any:
    """What JSON can say; None for the rest, which is then set aside as a row without its field."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else None
    return value


def _package() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise ConfigError(
            "data.no-datasets",
            "a source is streamed with the package datasets, which is not installed",
            where="recipe: data.sources",
            fix='pip install "longspan[datasets]", or name files of the data set yourself',
        ) from None
