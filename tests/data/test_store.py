"""What is written is read back, and nothing damaged opens."""

import hashlib
import json

import numpy as np
import pytest

from longspan.data.store import Origin, StoreWriter, TokenStore
from longspan.utils.errors import DataError, StorageError

DOCUMENTS = [[5, 6, 7], [], [8], [9] * 1_000]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_round_trip(tmp_path, make_store, vocabulary, dtype) -> None:
    documents = [*DOCUMENTS, [vocabulary - 1, 0]]
    store = make_store(tmp_path / "s", documents, vocabulary=vocabulary, separator=3)
    flat = [i for ids in documents for i in [*ids, 3]]
    assert np.fromfile(tmp_path / "s" / "tokens-00000.bin", dtype=dtype).tolist() == flat
    assert np.fromfile(tmp_path / "s" / "index.bin", dtype="<i8").tolist() == [0, 4, 4, 1, 5, 2, 7, 1001, 1008, 3]
    assert store.documents == tuple(f"document-{n}" for n in range(5))
    assert (store.tokens, len(store), store.separator, store.fingerprint) == (len(flat), 5, 3, "test")
    for number, ids in enumerate(documents):
        whole = [*ids, 3]
        assert store.read(number, 0, len(whole)).tolist() == whole
        assert store.read(number, 1, len(whole) - 1).tolist() == whole[1:]
    assert store.read(0, 0, 2).dtype == np.int64
    for name, record in json.loads((tmp_path / "s" / "manifest.json").read_text())["files"].items():
        content = (tmp_path / "s" / name).read_bytes()
        assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_empty_store(tmp_path, make_store) -> None:
    store = make_store(tmp_path / "s", [], vocabulary=10, separator=0)
    assert (len(store), store.tokens) == (0, 0)


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 5), (4, 1), (1, -1)])
def test_reading_outside_a_document_cannot_happen(tmp_path, make_store, start, length) -> None:
    store = make_store(tmp_path / "s", DOCUMENTS, vocabulary=10, separator=0)
    with pytest.raises(AssertionError, match="outside"):
        store.read(0, start, length)


@pytest.mark.parametrize("name", ["tokens-00000.bin", "index.bin", "documents-00000.json"])
def test_damaged_files_are_named(tmp_path, make_store, name) -> None:
    make_store(tmp_path / "s", DOCUMENTS, vocabulary=10, separator=0)
    path = tmp_path / "s" / name
    content = path.read_bytes()

    def error() -> DataError:
        with pytest.raises(DataError) as raised:
            TokenStore.open(tmp_path / "s")
        assert (raised.value.code, raised.value.where) == ("data.store-damaged", str(path))
        return raised.value

    path.write_bytes(content[:5] + bytes([content[5] ^ 1]) + content[6:])
    assert "hash differs" in error().what
    path.write_bytes(content[:-1])
    assert "bytes where" in error().what
    path.unlink()
    assert "is missing" in error().what


def test_sizes_are_checked_even_without_hashes(tmp_path, make_store) -> None:
    make_store(tmp_path / "s", DOCUMENTS, vocabulary=10, separator=0)
    path = tmp_path / "s" / "tokens-00000.bin"
    content = path.read_bytes()
    path.write_bytes(b"\1" + content[1:])
    assert TokenStore.open(tmp_path / "s", verify=False).read(0, 0, 1).tolist() != [5]
    path.write_bytes(content[:-2])
    with pytest.raises(DataError, match="bytes where"):
        TokenStore.open(tmp_path / "s", verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "no manifest"),
        ({"surprise": 1}, "no manifest"),
        ({"tokens": "many"}, "no manifest"),
        ({"files": {}}, "lacks a file"),
        ({"tokens": 3}, "counts do not agree"),
        ({"documents": 3}, "counts do not agree"),
        ({"dtype": "<u4"}, "counts do not agree"),
    ],
)
def test_damaged_manifest(tmp_path, make_store, change, message) -> None:
    make_store(tmp_path / "s", DOCUMENTS, vocabulary=10, separator=0)
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as error:
        TokenStore.open(tmp_path / "s")
    assert (error.value.code, error.value.where) == ("data.store-damaged", str(path))


def test_unfinished_store_does_not_open(tmp_path) -> None:
    origin = Origin(vocabulary=10, separator=0, tokenizer_sha256="", fingerprint="", quarantine={})
    with StoreWriter(tmp_path / "s", origin) as writer:
        writer.add("a", [np.array([1, 2], dtype=np.uint32)])
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        TokenStore.open(tmp_path / "s")


def test_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").touch()
    origin = Origin(vocabulary=10, separator=0, tokenizer_sha256="", fingerprint="", quarantine={})
    with pytest.raises(StorageError):
        StoreWriter(tmp_path / "file" / "s", origin)


@pytest.mark.parametrize("shard_bytes", [1, 8, 20, 2_000, 10**6])
def test_shards_hold_whole_documents_and_read_as_one(tmp_path, make_store, shard_bytes) -> None:
    documents = [*DOCUMENTS, [11, 12], [13] * 7]
    store = make_store(tmp_path / "s", documents, vocabulary=100, separator=3, shard_bytes=shard_bytes)
    # Two bytes a token, a separator each; a shard ends with the document that reaches `shard_bytes`.
    shards, held = [], 0
    for ids in documents:
        held += len(ids) + 1
        if 2 * held >= shard_bytes:
            shards.append(held)
            held = 0
    expected = (*shards, held) if held else tuple(shards)
    assert store.manifest.shards == expected
    for number, ids in enumerate(documents):
        whole = [*ids, 3]
        for start in range(len(whole) if len(whole) < 10 else 2):
            assert store.read(number, start, len(whole) - start).tolist() == whole[start:]
    files = {*json.loads((tmp_path / "s" / "manifest.json").read_text())["files"], "manifest.json"}
    assert files == {p.name for p in (tmp_path / "s").iterdir() if not p.name.startswith("shard-")}


def test_one_hash_stands_for_the_whole_store(tmp_path, make_store) -> None:
    def whole(name: str, documents: list[list[int]], **more) -> str:
        return make_store(tmp_path / name, documents, vocabulary=100, separator=3, **more).manifest.sha256

    assert whole("a", DOCUMENTS) == whole("b", DOCUMENTS)
    assert whole("c", [*DOCUMENTS[:-1], [9] * 999 + [8]]) != whole("a2", DOCUMENTS)
    path = tmp_path / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"sha256": "0" * 64}))
    with pytest.raises(DataError, match="hash of the whole"):
        TokenStore.open(tmp_path / "a")


def test_a_writer_goes_on_after_its_whole_shards(tmp_path, make_store) -> None:
    origin = Origin(vocabulary=100, separator=3, tokenizer_sha256="none", fingerprint="test", quarantine={})
    documents = [[n] * 5 for n in range(10)]
    whole = make_store(tmp_path / "whole", documents, vocabulary=100, separator=3, shard_bytes=24).manifest.sha256
    for stop in range(11):
        folder = tmp_path / str(stop)
        with StoreWriter(folder, origin, shard_bytes=24) as writer:
            for number in range(stop):
                writer.add(f"document-{number}", [np.array(documents[number], dtype=np.uint32)])
        with StoreWriter(folder, origin, shard_bytes=24) as writer:
            assert writer.done == stop // 2 * 2
            for number in range(writer.done, 10):
                pieces = [np.array([i], dtype=np.uint32) for i in documents[number]]
                writer.add(f"document-{number}", pieces)
            writer.finish()
        assert TokenStore.open(folder).manifest.sha256 == whole
    with StoreWriter(tmp_path / "bad", origin, shard_bytes=24) as writer:
        writer.add("a", [np.arange(12, dtype=np.uint32)])
    (tmp_path / "bad" / "tokens-00000.bin").write_bytes(b"other")
    with pytest.raises(DataError, match="bytes where"):
        StoreWriter(tmp_path / "bad", origin)
