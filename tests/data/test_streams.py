"""Data sets that `datasets` reads: the same rows after any number of kills; nothing is fetched from outside."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data import streams
from longspan.data.hub import fetch_sources
from longspan.data.settings import SourceSettings
from longspan.data.sources import Quarantine, read_documents
from longspan.data.streams import StreamSettings, stream_rows
from longspan.utils.errors import ConfigError, DataError, Interrupted

COMMIT = "a" * 40


class Rows:
    """Stands for a streamed data set; breaks off when row `broken` is read."""

    def __init__(self, rows: list[dict[str, Any]], start: int = 0, broken: int | None = None) -> None:
        self.rows, self.start, self.broken = rows, start, broken

    def skip(self, count: int) -> "Rows":
        return Rows(self.rows, self.start + count, self.broken)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.start, len(self.rows)):
            if number == self.broken:
                raise ConnectionError("the line is dead")
            yield self.rows[number]


class Package:
    """Stands for `datasets`; keeps what it was asked for."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.broken, self.asked = rows, None, list[Any]()

    def load_dataset(self, path: str, name: str | None, **more: Any) -> Rows:
        self.asked.append((path, name, more))
        return Rows(self.rows, broken=self.broken)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    found = Package([{"id": f"r{n}", "text": f"row {n}", "other": b"x"} for n in range(23)])
    monkeypatch.setitem(sys.modules, "datasets", found)  # type: ignore[arg-type]
    monkeypatch.setattr(streams, "FILE_ROWS", 5)
    return found


def texts(source: SourceSettings) -> list[tuple[str, str]]:
    documents = read_documents([source], max_document_bytes=10**6, quarantine=Quarantine())
    return [(document.id, document.text) for document in documents]


def test_rows_are_streamed_once_at_their_commit(package: Package, tmp_path: Path) -> None:
    stream = StreamSettings(name="owner/set", commit=COMMIT, config="en", split="validation", most_rows=12)
    source = SourceSettings(path=tmp_path / "rows", stream=stream)
    heard: list[tuple[int, int]] = []
    fetch_sources([source], progress=lambda done, total: heard.append((done, total)))
    fetch_sources([source])
    assert package.asked == [
        ("owner/set", "en", {"split": "validation", "revision": COMMIT, "streaming": True}),
    ], "once, and nothing that would run code of the data set"
    assert texts(source) == [(f"r{n}", f"row {n}") for n in range(12)]
    assert heard == [(5, 12), (10, 12), (12, 12)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"], "nothing is left beside it"
    assert set(json.loads((tmp_path / "rows" / "rows-000000.jsonl").read_text().splitlines()[0])) == {"id", "text"}


@given(kills=st.lists(st.integers(0, 23), max_size=4), most=st.one_of(st.none(), st.integers(1, 30)))
def test_any_number_of_kills_changes_nothing(
    kills: list[int], most: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [{"text": f"row {n}"} for n in range(23)]
    folder = tmp_path_factory.mktemp("kills")
    stream = StreamSettings(folder=Path("somewhere"), most_rows=most)
    found = Package(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "datasets", found)  # type: ignore[arg-type]
        patch.setattr(streams, "FILE_ROWS", 4)
        for broken in [*kills, None]:
            found.broken = broken  # type: ignore[assignment]
            if (folder / "rows").exists():
                break
            with suppress(DataError):
                stream_rows(stream, folder / "rows", fields=("text",), progress=lambda done, total: None)
                continue
            assert not (folder / "rows").exists()
    lines = [line for path in sorted((folder / "rows").iterdir()) for line in path.read_text().splitlines()]
    assert [json.loads(line)["text"] for line in lines] == [row["text"] for row in rows][:most]


def test_a_data_set_that_breaks_off_is_an_error_to_go_on_from(package: Package, tmp_path: Path) -> None:
    package.broken = 3  # type: ignore[assignment]
    with pytest.raises(DataError, match="the line is dead") as error:
        stream_rows(StreamSettings(folder=tmp_path), tmp_path / "rows", fields=("text",), progress=lambda d, t: None)
    assert error.value.code == "data.stream"


def test_a_stop_keeps_whole_files_and_another_stream_begins_anew(package: Package, tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 10:
            raise Interrupted("asked to stop")

    one, two = (StreamSettings(folder=tmp_path / "set", split=split) for split in ("train", "test"))
    to = tmp_path / "rows"
    with pytest.raises(Interrupted):
        stream_rows(one, to, fields=("text",), progress=stop)
    assert len(list((tmp_path / ".rows.streaming").glob("*.jsonl"))) == 2
    package.rows = package.rows[:7]
    stream_rows(two, to, fields=("text",), progress=lambda done, total: None)
    assert len(texts(SourceSettings(path=to))) == 7


def test_what_json_cannot_say_is_set_aside(package: Package, tmp_path: Path) -> None:
    package.rows = [{"text": "good"}, {"text": b"bytes"}, {"text": object()}, {"no": "text"}, {"text": 3}]
    source = SourceSettings(path=tmp_path / "rows", stream=StreamSettings(folder=tmp_path))
    fetch_sources([source])
    quarantine = Quarantine()
    found = read_documents([source], max_document_bytes=100, quarantine=quarantine)
    assert [document.text for document in found] == ["good", "bytes"]
    assert {reason: entry.count for reason, entry in quarantine.record().items()} == {"missing-field": 2, "not-text": 1}


def test_conversations_are_streamed_too(package: Package, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    package.rows = [{"id": "t", "messages": talk, "text": "not this"}]
    source = SourceSettings(path=tmp_path / "rows", documents="chats", stream=StreamSettings(folder=tmp_path))
    fetch_sources([source])
    assert texts(source) == [("t", json.dumps(talk))]


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (
        {},
        {"name": "a/b"},
        {"folder": "x", "commit": COMMIT},
        {"folder": "x", "name": "a", "commit": COMMIT},
    ):
        with pytest.raises(ValueError, match=r"one of them|commit"):
            StreamSettings.model_validate_json(json.dumps(wrong))
    stream = StreamSettings(folder=tmp_path)
    with pytest.raises(ValueError, match="leave one of them out"):
        SourceSettings(path=tmp_path / "x", stream=stream, hub=f"a/b@{COMMIT}")
    with pytest.raises(ValueError, match="no repositories"):
        SourceSettings(path=tmp_path / "x", stream=stream, documents="repositories")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError) as error:
        fetch_sources([SourceSettings(path=tmp_path / "x", stream=stream)])
    assert error.value.code == "data.no-datasets"


def test_the_package_itself_reads_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """parquet and jsonl through `datasets`, stopped twice on the way; nothing leaves this machine."""
    package = pytest.importorskip("datasets")
    assert not isinstance(package, SimpleNamespace)
    monkeypatch.setattr(streams, "FILE_ROWS", 7)
    rows = [{"id": f"r{n}", "text": f"text {n}"} for n in range(40)]
    for kind in ("parquet", "jsonl"):
        folder = tmp_path / kind
        folder.mkdir()
        for part, some in enumerate((rows[:25], rows[25:])):
            if kind == "parquet":
                pq.write_table(pa.Table.from_pylist(some), folder / f"train-{part}.parquet")
            else:
                (folder / f"train-{part}.jsonl").write_text("\n".join(map(json.dumps, some)))
        source = SourceSettings(path=tmp_path / f"{kind}-rows", stream=StreamSettings(folder=folder))

        for last in (14, 28):

            def stop(done: int, _: int, last: int = last) -> None:
                if done == last:
                    raise Interrupted("asked to stop")

            with pytest.raises(Interrupted):
                fetch_sources([source], progress=stop)
        fetch_sources([source])
        assert texts(source) == [(row["id"], row["text"]) for row in rows]
