"""Both stores of a job are built whole or not at all, used again when right, and kept when replaced."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longspan.data.build import Stores, build_stores, is_held_out
from longspan.data.settings import DataSettings, SourceSettings
from longspan.utils.errors import DataError, StorageError

TEXTS = {"a.txt": "one two three 123", "b/c.txt": "four five\r\n<|endoftext|> six", "b/d.txt": "seven", "bad.txt": ""}


@pytest.fixture
def corpus(tmp_path) -> Path:
    for name, text in TEXTS.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "corpus"


@pytest.fixture
def build(corpus, tmp_path, tokenizer):
    def run(progress=None, **settings) -> Stores:
        data = DataSettings(**{"sources": (SourceSettings(path=corpus),), "held_out": ("b/d*",), **settings})
        return build_stores(
            tmp_path / "tokens", data, tokenizer=tokenizer, vocabulary=320, separator=0, progress=progress
        )

    return run


def texts(store, tokenizer) -> dict[str, str]:
    result = {}
    for number, name in enumerate(store.documents):
        ids = store.read(number, 0, int(store.lengths[number])).tolist()
        assert ids[-1] == 0
        assert 0 not in ids[:-1]
        result[name] = tokenizer.decode(ids[:-1])
    return result


def test_documents_end_up_in_their_store(build, tokenizer, tmp_path) -> None:
    stores = build()
    assert texts(stores.train, tokenizer) == {name: TEXTS[name] for name in ("a.txt", "b/c.txt")}
    assert texts(stores.held_out, tokenizer) == {"b/d.txt": "seven"}
    assert stores.train.manifest.origin.quarantine["empty"].first == ("bad.txt",)
    assert stores.train.fingerprint == stores.held_out.fingerprint
    assert sorted(os.listdir(tmp_path)) == ["corpus", "tokens"]


def test_progress_ends_at_the_total(build) -> None:
    seen: list[tuple[int, int]] = []
    build(progress=lambda done, total: seen.append((done, total)))
    total = sum(len(text.encode()) for text in TEXTS.values())
    # first the survey, which finds out how much there is, then the work
    assert seen == [(0, 17), (0, 17 + 28), (0, total), (17, total), (17 + 28, total), (total, total)]


def test_the_survey_can_be_stopped(build, tmp_path) -> None:
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        raise KeyboardInterrupt

    build()
    with pytest.raises(KeyboardInterrupt):
        build(progress=stop)
    assert seen == [(0, 17)], "a finished store is surveyed as well"
    assert sorted(os.listdir(tmp_path)) == ["corpus", "tokens"]


def at_work(action):
    """`action` at the first progress of the work itself, after the survey."""
    return lambda done, total: action() if done else None


def test_finished_stores_are_used_again(build, tmp_path) -> None:
    build()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")}
    build(progress=at_work(lambda: pytest.fail("built again")))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")} == before


@pytest.mark.parametrize("change", ["text", "name", "split", "bad"])
def test_other_contents_build_beside_and_keep_the_old(build, corpus, tmp_path, change) -> None:
    first = build()
    settings = {}
    if change == "text":
        (corpus / "a.txt").write_text("one two three 124")
    elif change == "name":
        (corpus / "a.txt").rename(corpus / "e.txt")
    elif change == "split":
        settings = {"held_out": ("a*",)}
    else:
        (corpus / "bad2.txt").touch()
    second = build(**settings)
    assert second.train.fingerprint != first.train.fingerprint
    assert Stores.open(tmp_path / "tokens.old-1").train.fingerprint == first.train.fingerprint
    third = build(held_out=("b/c*",))
    assert third.held_out.documents == ("b/c.txt",)
    assert Stores.open(tmp_path / "tokens.old-2").train.fingerprint == second.train.fingerprint


def test_damaged_store_is_neither_used_nor_replaced(build, tmp_path) -> None:
    build()
    path = tmp_path / "tokens" / "held_out" / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as error:
        build()
    assert error.value.where == str(path)
    assert path.exists()


def test_failed_build_leaves_nothing_and_harms_nothing(build, tmp_path) -> None:
    def fail() -> None:
        assert (tmp_path / ".tokens.building").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(progress=at_work(fail))
    assert os.listdir(tmp_path) == ["corpus"]
    first = build()
    with pytest.raises(KeyboardInterrupt):
        build(progress=at_work(fail), held_out=("a*",))
    assert sorted(os.listdir(tmp_path)) == ["corpus", "tokens"]
    assert Stores.open(tmp_path / "tokens").train.fingerprint == first.train.fingerprint


def test_full_disk(build, tmp_path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError) as error:
            build()
    assert error.value.code == "storage.full"
    assert os.listdir(tmp_path) == ["corpus"]
    build()


KILLED = """
import os, signal, sys
from pathlib import Path
from longspan.data.build import build_stores
from longspan.data.settings import DataSettings, SourceSettings
from longspan.data.tokenize import load_tokenizer
folder = Path(sys.argv[1])
build_stores(
    folder / "tokens",
    DataSettings(sources=(SourceSettings(path=folder / "corpus"),), held_out=("b/d*",)),
    tokenizer=load_tokenizer(folder),
    vocabulary=320,
    separator=0,
    progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done > 20 else None,
)
"""


def test_killed_build_starts_again(build, tmp_path, tokenizer) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "tokens").exists()
    assert (tmp_path / ".tokens.building").exists()
    stores = build()
    assert texts(stores.train, tokenizer) == {name: TEXTS[name] for name in ("a.txt", "b/c.txt")}
    assert not (tmp_path / ".tokens.building").exists()


WORK = """
import os, signal, sys
from pathlib import Path
from longspan.data import store
from longspan.data.build import build_stores
from longspan.data.settings import DataSettings, SourceSettings
from longspan.data.tokenize import load_tokenizer
folder, left = Path(sys.argv[1]), int(sys.argv[2])
real = os.fsync

def fsync(handle):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)

os.fsync = fsync
store.StoreWriter.__init__.__kwdefaults__["shard_bytes"] = 300
build_stores(
    folder / "tokens",
    DataSettings(sources=(SourceSettings(path=folder / "corpus"),), held_out=("1*",)),
    tokenizer=load_tokenizer(folder),
    vocabulary=320,
    separator=0,
)
"""


@pytest.mark.parametrize("write", [2, 40])
def test_killed_at_any_shard_the_store_is_that_of_one_go(tmp_path, tokenizer, make_prose, write) -> None:
    """F19: the process dies at its n-th durable write; run again, it ends with the same bytes."""
    root = Path(__file__).parents[2]
    for name in ("whole", "killed"):
        (tmp_path / name / "corpus").mkdir(parents=True)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        for n in range(40):
            (tmp_path / name / "corpus" / f"{n:02d}.txt").write_text(make_prose(300 + 17 * n, seed=n))

    def build_in(name: str, writes: int) -> int:
        words = [sys.executable, "-c", WORK, str(tmp_path / name), str(writes)]
        return subprocess.run(words, cwd=root, check=False).returncode

    assert build_in("killed", write) == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob(".tokens.building/train/shard-*")}
    assert (write > 2) == bool(kept)
    assert build_in("killed", 10**6) == 0
    assert build_in("whole", 10**6) == 0
    whole, again = (Stores.open(tmp_path / name / "tokens") for name in ("whole", "killed"))
    assert len(whole.train.manifest.shards) > 5
    for one, two in ((whole.train, again.train), (whole.held_out, again.held_out)):
        assert one.manifest == two.manifest
    assert sorted(os.listdir(tmp_path / "killed")) == ["corpus", "tokenizer.json", "tokens"]


def test_a_long_document_can_be_stopped_in_the_middle(corpus, build, make_prose) -> None:
    (corpus / "a.txt").write_text(make_prose(900_000))
    seen: list[int] = []
    build(progress=lambda done, total: seen.append(done))
    assert seen.count(0) > 3, "three documents in the survey, then between stretches of the first"


def test_sources_that_change_under_the_build(build, corpus, tmp_path) -> None:
    def change() -> None:
        (corpus / "b" / "c.txt").write_text("other words")

    with pytest.raises(DataError, match="changed") as error:
        build(progress=at_work(change))
    assert error.value.code == "data.sources-changed"
    assert os.listdir(tmp_path) == ["corpus"]


def test_share_splits_whole_documents(corpus, build) -> None:
    for n in range(400):
        (corpus / f"{n}.txt").write_text(f"text {n}")
    stores = build(held_out=(), held_out_share=0.25)
    train, held_out = set(stores.train.documents), set(stores.held_out.documents)
    assert not train & held_out
    assert train | held_out == {*TEXTS, *(f"{n}.txt" for n in range(400))} - {"bad.txt"}
    assert 65 <= len(held_out) <= 140  # 403 documents at 1/4; four standard deviations are 35
    more = build(held_out=("7*",), held_out_share=0.5)
    assert held_out < set(more.held_out.documents)


def test_split_depends_on_the_id_only(corpus) -> None:
    half = DataSettings(sources=(SourceSettings(path=corpus),), held_out=("x/*.md", "half \ud83d"), held_out_share=0.5)
    assert is_held_out("x/y/z.md", half)
    assert is_held_out("half \ud83d", half)
    assert [is_held_out(f"{n}", half) for n in range(8)] == [is_held_out(f"{n}", half) for n in range(8)]
    assert {is_held_out(f"{n}", half) for n in range(50)} == {True, False}


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"held_out": ("*",)}, "data.nothing-to-train"),
        ({"held_out": ("b/d*", "emma.txt")}, "data.nothing-held-out"),
        ({"held_out": (), "held_out_share": 1e-9}, "data.nothing-held-out"),
    ],
)
def test_splits_that_cannot_be_meant(build, settings, code) -> None:
    with pytest.raises(DataError) as error:
        build(progress=at_work(lambda: pytest.fail("work began")), **settings)
    assert error.value.code == code


def test_text_without_cut_points_is_set_aside(corpus, build) -> None:
    (corpus / "line.txt").write_text("x" * 1_000_100 + " y")
    stores = build()
    assert stores.train.manifest.origin.quarantine["no-cut-point"].first == ("line.txt",)
    assert "line.txt" not in stores.train.documents


def test_long_single_line(corpus, build, tokenizer, make_prose) -> None:
    text = make_prose(400_000).replace("\n", " ")
    (corpus / "line.txt").write_text(text)
    stores = build()
    number = stores.train.documents.index("line.txt")
    assert tokenizer.decode(stores.train.read(number, 0, int(stores.train.lengths[number]) - 1).tolist()) == text
