"""Documents come out of every kind of file; damaged input is counted by reason and never fatal."""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longspan.data import hub
from longspan.data.settings import SourceSettings
from longspan.data.sources import Quarantine, read_documents
from longspan.utils.errors import ConfigError, DataError

CAP = 1_000


def read(*paths: Path, field: str = "text", cap: int = CAP) -> tuple[dict[str, str], dict[str, tuple[int, list[str]]]]:
    quarantine = Quarantine()
    sources = [SourceSettings(path=path, text_field=field) for path in paths]
    documents = {d.id: d.text for d in read_documents(sources, max_document_bytes=cap, quarantine=quarantine)}
    return documents, {reason: (q.count, list(q.first)) for reason, q in quarantine.record().items()}


def test_folder_of_texts(tmp_path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_bytes("zwei \U0001f600\r\n".encode())
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b" / "three.rst").write_text("three")
    (tmp_path / "program").write_text("print()")
    documents, quarantined = read(tmp_path)
    assert list(documents.items()) == [
        ("a.txt", "one"),
        ("b/three.rst", "three"),
        ("b/two.md", "zwei \U0001f600\r\n"),
        ("program", "print()"),
    ]
    assert quarantined == {}


def test_suffixes_in_any_case_and_other_spellings(tmp_path) -> None:
    (tmp_path / "a.JSONL").write_text('{"text": "one"}\n')
    (tmp_path / "b.ndjson").write_text('{"text": "two"}\n')
    pq.write_table(pa.table({"text": ["three"]}), tmp_path / "c.Parquet")
    (tmp_path / "d.json").write_text('{"text": "four"}')
    (tmp_path / "e.Json").write_text("[]")
    documents, quarantined = read(tmp_path)
    assert documents == {"a.JSONL#1": "one", "b.ndjson#1": "two", "c.Parquet#1": "three"}
    assert quarantined == {"unknown-format": (2, ["d.json", "e.Json"])}


def test_single_file(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert read(tmp_path / "a.txt") == ({"a.txt": "one"}, {})


def test_size_is_in_utf8_bytes(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("h\u00e9\U0001f600")
    source = [SourceSettings(path=tmp_path)]
    (document,) = read_documents(source, max_document_bytes=CAP, quarantine=Quarantine())
    assert document.size_bytes == 7


def test_damaged_texts(tmp_path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_text(" \n\t")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "cut.txt").write_bytes("caf\u00e9".encode()[:-1])
    (tmp_path / "picture.txt").write_bytes(b"GIF\0\1\2")
    (tmp_path / "large.txt").write_text("x" * (CAP + 1))
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("inside")
    os.mkfifo(tmp_path / "pipe.txt")
    documents, quarantined = read(tmp_path)
    assert documents == {"good.txt": "good"}
    assert quarantined == {
        "binary": (1, ["picture.txt"]),
        "empty": (2, ["blank.txt", "empty.txt"]),
        "hidden": (2, [".git", ".hidden"]),
        "invalid-utf8": (2, ["cut.txt", "latin.txt"]),
        "not-a-file": (1, ["pipe.txt"]),
        "too-large": (1, ["large.txt"]),
    }


def test_links_are_never_followed(tmp_path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (inside / "sub" / "real.txt").write_text("real")
    (inside / "again.txt").symlink_to(inside / "sub" / "real.txt")
    (inside / "leaves.txt").symlink_to(outside / "secret.txt")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    documents, quarantined = read(inside)
    assert documents == {"sub/real.txt": "real"}
    assert quarantined == {
        "link-inside": (2, ["again.txt", "loop"]),
        "link-outside": (2, ["folder", "leaves.txt"]),
    }


def test_unreadable_file(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    real = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "a.txt":
            raise PermissionError(13, "denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert read(tmp_path) == ({"b.txt": "b"}, {"unreadable": (1, ["a.txt"])})


def test_unreadable_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("a")
    real = os.walk

    def walk(root, onerror):
        onerror(PermissionError(13, "denied", "closed"))
        return real(root)

    monkeypatch.setattr(os, "walk", walk)
    assert read(tmp_path) == ({"a.txt": "a"}, {"unreadable": (1, ["closed"])})


def test_jsonl(tmp_path) -> None:
    rows = [
        json.dumps({"body": "one", "text": "not this"}).encode(),
        b"",
        json.dumps({"body": "two\r\n", "id": "second"}).encode(),
        json.dumps({"body": "three", "id": 7}).encode(),
        b'{"body": "broken',
        b'["a list"]',
        b'{"text": "no body"}',
        b'{"body": null}',
        b'{"body": 5}',
        b'{"body": ""}',
        b'{"body": "half \\ud83d"}',
        b'{"body": "nul \\u0000"}',
        b'{"body": "latin \xe9"}',
        b"[" * 100_000,
        json.dumps({"body": "y" * 200_000}).encode(),
        json.dumps({"body": "last"}).encode(),
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(rows))
    documents, quarantined = read(tmp_path / "rows.jsonl", field="body", cap=150_000)
    assert documents == {"rows.jsonl#1": "one", "second": "two\r\n", "7": "three", "rows.jsonl#16": "last"}
    assert quarantined == {
        "bad-json": (3, ["rows.jsonl#5", "rows.jsonl#6", "rows.jsonl#14"]),
        "binary": (1, ["rows.jsonl#12"]),
        "empty": (1, ["rows.jsonl#10"]),
        "invalid-unicode": (1, ["rows.jsonl#11"]),
        "invalid-utf8": (1, ["rows.jsonl#13"]),
        "missing-field": (2, ["rows.jsonl#7", "rows.jsonl#8"]),
        "not-text": (1, ["rows.jsonl#9"]),
        "too-large": (1, ["rows.jsonl#15"]),
    }


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind) -> None:
    texts = [f"text {n}" for n in range(40)]
    column = pa.array(texts, pa.binary() if kind == pa.binary() else pa.string()).cast(kind)
    pq.write_table(pa.table({"text": column, "other": list(range(40))}), tmp_path / "a.parquet", row_group_size=7)
    documents, quarantined = read(tmp_path)
    assert documents == {f"a.parquet#{n + 1}": text for n, text in enumerate(texts)}
    assert quarantined == {}


def test_damaged_parquet(tmp_path) -> None:
    table = pa.table({"id": ["x", "y", None, "z"], "text": ["one", None, "three", "z" * (CAP + 1)]})
    pq.write_table(table, tmp_path / "good.parquet")
    pq.write_table(pa.table({"other": ["a"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    broken = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"text": broken}), tmp_path / "utf8.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-40])
    documents, quarantined = read(tmp_path)
    assert documents == {"x": "one", "good.parquet#3": "three"}
    assert quarantined == {
        "damaged-parquet": (1, ["cut.parquet"]),
        "empty": (1, ["none.parquet"]),
        "invalid-utf8": (1, ["utf8.parquet#1"]),
        "missing-field": (2, ["y", "other.parquet"]),
        "not-text": (2, ["numbers.parquet#1", "numbers.parquet#2"]),
        "too-large": (1, ["z"]),
    }


def test_only_the_first_names_are_kept(tmp_path) -> None:
    (tmp_path / "good.txt").write_text("good")
    for n in range(9):
        (tmp_path / f"empty-{n}.txt").touch()
    _, quarantined = read(tmp_path)
    assert quarantined["empty"] == (9, [f"empty-{n}.txt" for n in range(5)])


def test_missing_path_is_told_before_anything_is_read(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a")
    sources = [SourceSettings(path=tmp_path), SourceSettings(path=tmp_path / "nowhere")]
    with pytest.raises(DataError) as error:
        next(read_documents(sources, max_document_bytes=CAP, quarantine=Quarantine()))
    assert (error.value.code, error.value.where) == ("data.missing", str(tmp_path / "nowhere"))


def test_source_without_a_usable_document(tmp_path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "a.txt").write_text("a")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match="1 binary") as error:
        read(tmp_path / "good", tmp_path / "bad")
    assert error.value.code == "data.no-documents"
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(DataError, match="1 empty"):
        read(tmp_path / "rows.jsonl")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="set aside: nothing"):
        read(tmp_path / "void")


# -- joined documents, names, the hub ----------------------------------------------------------------------------------


def joined(path: Path, **settings) -> tuple[dict[str, str], dict[str, tuple[int, list[str]]]]:
    quarantine = Quarantine()
    sources = [SourceSettings(path=path, **settings)]
    documents = {d.id: d.text for d in read_documents(sources, max_document_bytes=CAP, quarantine=quarantine)}
    return documents, {reason: (q.count, list(q.first)) for reason, q in quarantine.record().items()}


@pytest.fixture
def tree(tmp_path) -> Path:
    files = {
        "alpha/src/b.py": "b = 2\n",
        "alpha/a.py": "a = 1\n\n\n",
        "alpha/.git/config": "hidden",
        "alpha/logo.png": "GIF\0",
        "beta/chapter-10.txt": "ten",
        "beta/chapter-2.txt": "two",
        "beta/chapter-1.txt": "one",
        "loose.txt": "loose",
    }
    for name, text in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "tree"


def test_repositories_are_one_document_each_with_the_paths_of_their_files(tree) -> None:
    documents, quarantined = joined(tree, documents="repositories", name="code", header="# {path}")
    assert documents == {
        "code/alpha": "# alpha/a.py\na = 1\n\n\n# alpha/src/b.py\nb = 2\n",
        "code/beta": "# beta/chapter-1.txt\none\n\n\n# beta/chapter-2.txt\ntwo\n\n\n# beta/chapter-10.txt\nten\n",
        "code/tree": "# loose.txt\nloose\n",
    }
    assert quarantined == {"binary": (1, ["code/alpha/logo.png"]), "hidden": (1, ["code/alpha/.git"])}


def test_sets_are_the_files_of_a_folder_in_natural_order(tree) -> None:
    documents, _ = joined(tree, documents="sets")
    assert documents == {
        "alpha": "a = 1\n",
        "alpha/src": "b = 2\n",
        "beta": "one\n\n\ntwo\n\n\nten\n",
        "tree": "loose\n",
    }


def test_a_joined_document_above_the_cap_is_set_aside(tree) -> None:
    for n in range(3):
        (tree / "beta" / f"long-{n}.txt").write_text("x" * 400)
    documents, quarantined = joined(tree, documents="sets")
    assert "beta" not in documents
    assert quarantined["too-large"] == (1, ["beta"])


def test_a_name_goes_before_every_id(tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": 1}\n')
    documents, quarantined = joined(tmp_path, name="web")
    assert documents == {"web/rows.jsonl#1": "one"}
    assert quarantined == {"not-text": (1, ["web/rows.jsonl#2"])}


class Hub:
    """Stands for huggingface_hub."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.fails = False

    def snapshot_download(self, **asked) -> None:
        self.asked.append(asked)
        folder = Path(asked["local_dir"])
        (folder / ".cache").mkdir(parents=True, exist_ok=True)
        if self.fails:
            raise OSError("no network")
        (folder / "rows.jsonl").write_text('{"text": "one"}\n')


def test_the_hub_is_loaded_once_at_its_commit(tmp_path, monkeypatch) -> None:
    package, commit = Hub(), "0123456789" * 4
    monkeypatch.setattr(hub, "_package", lambda: package)
    source = SourceSettings(path=tmp_path / "set", hub=f"owner/name@{commit}", files=("data/*.jsonl",))
    package.fails = True
    with pytest.raises(DataError) as error:
        hub.fetch_sources([source])
    assert error.value.code == "data.hub"
    assert not (tmp_path / "set").exists()
    package.fails = False
    hub.fetch_sources([source])
    hub.fetch_sources([source])
    assert len(package.asked) == 2, "and not again"
    assert package.asked[1] == {
        "repo_id": "owner/name",
        "repo_type": "dataset",
        "revision": commit,
        "allow_patterns": ["data/*.jsonl"],
        "local_dir": tmp_path / ".set.loading",
    }
    assert joined(tmp_path / "set")[0] == {"rows.jsonl#1": "one"}
    assert sorted(os.listdir(tmp_path)) == ["set"]


def test_the_hub_needs_its_package_and_a_pinned_commit(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    source = SourceSettings(path=tmp_path / "set", hub=f"owner/name@{'a' * 40}")
    with pytest.raises(ConfigError) as error:
        hub.fetch_sources([source])
    assert error.value.code == "data.no-hub"
    with pytest.raises(ValueError, match="pattern"):
        SourceSettings(path=tmp_path / "set", hub="owner/name@main")
