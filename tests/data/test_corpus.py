"""Texts out of packages: what tools give is faked, what comes of it is written out by hand."""

import gzip
import io
import json
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from longspan import cli
from longspan.data.corpus import fetch, packages, texts
from longspan.data.corpus.markup import page_text
from longspan.data.corpus.works import WORKS, Work
from longspan.data.settings import SourceSettings
from longspan.data.sources import Quarantine, read_documents
from longspan.utils.errors import ConfigError, DataError

LONG = "word " * 120  # above the least characters


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>one<p>two", "one\n\ntwo"),
        ("<body><nav>menu</nav><h1>Head</h1>body &amp; soul<script>x()</script></body>", "Head\nbody & soul"),
        ("<body>out<main><p>in</main></body>", "in"),
        ('<div class="body"><div class="sphinxsidebar">side</div>text</div>', "text"),
        ('<body><div class="wy-grid-for-nav">page<div class="t-navbar">bar</div></div></body>', "page"),
        ('<div role="main">first</div><main>second</main>', "first"),
        ("<p>a\n  b</p><pre>a\n  b</pre>", "a b\n\na\n  b"),
        ("<table><tr><td>1<td>2</tr><tr><td>3</td></tr></table>", "1\t2\t\n\n3\t"),
        ('<h2>T<a class="headerlink" href="#t">¶</a></h2>', "T"),
        ("<ul><li>x<li>y</ul>", "x\n\ny"),
        ("</div><p>stray ends</b></p>", "stray ends"),
    ],
)
def test_a_page_is_read_as_people_read_it(page: str, text: str) -> None:
    assert page_text(page).replace("\t\n", "\t\n").strip() == text.strip()


def work(**changes: Any) -> Work:
    value = {"name": "w", "tool": "apt", "package": "p", "licence": "free", "keep": r"\.(txt|html)(\.gz)?$"}
    return Work(**value | changes)


def put(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_files_are_joined_in_natural_order_without_repeats_and_scraps(tmp_path: Path) -> None:
    put(tmp_path, "doc/part-10.txt", f"ten {LONG}")
    put(tmp_path, "doc/part-2.txt.gz", gzip.compress(f"tw\0\b\x1fo  \n\n\n\n\n{LONG}".encode()))
    put(tmp_path, "doc/part-3.html", f"<main><p>three {LONG}</p></main>")
    put(tmp_path, "doc/part-4.txt", f"ten {LONG}")
    put(tmp_path, "doc/scrap.txt", "too short")
    put(tmp_path, "doc/genindex.html", f"<p>{LONG}")
    put(tmp_path, "doc/de/part-1.txt", f"eins {LONG}")
    (tmp_path / "doc" / "part-0.txt").symlink_to(tmp_path / "doc" / "part-10.txt")
    words = LONG.strip()
    assert texts.work_text(work(), tmp_path) == f"two\n\n\n{words}\n\n\nthree {words}\n\n\nten {words}\n"


def test_other_readers(tmp_path: Path) -> None:
    put(tmp_path, "usr/share/dictd/x.dict.dz", gzip.compress(b"an entry"))
    assert texts.work_text(work(read="dictionary", keep=r"\.dz$"), tmp_path) == "an entry\n"
    put(tmp_path, "s/10.txt", "second")
    put(tmp_path, "s/9.txt", "first")
    assert texts.work_text(work(read="parts", keep=r"/s/"), tmp_path) == "first\n\nsecond\n"
    put(
        tmp_path,
        "all.json",
        json.dumps({"A": {"title": "A", "extract": "about a"}, "B": {"title": "B", "extract": "b"}}),
    )
    assert texts.work_text(work(read="summaries", keep=r"\.json$"), tmp_path) == "A\nabout a\n\nB\nb\n"
    for part in ("nt", "ot"):
        blocks = [zlib.compress(f"{part} {n}<br/>&amp;<i>x</i>\0".encode()) for n in (1, 2)]
        put(tmp_path, f"z/{part}.bzz", b"".join(blocks))
        sizes = ((0, len(blocks[0]), 9), (len(blocks[0]), len(blocks[1]), 9))
        put(tmp_path, f"z/{part}.bzs", b"".join(struct.pack("<III", *entry) for entry in sizes))
    expected = "".join(f"{part} {n}\n&x\n" for part in ("ot", "nt") for n in (1, 2))
    assert texts.work_text(work(read="commentary", keep=r"\.bz[sz]$"), tmp_path) == expected


def test_a_novel_out_of_a_file_of_r(tmp_path: Path) -> None:
    def blob(title: str) -> bytes:
        lines = [title, "", *(f"line {n} of {title}" for n in range(600))]
        strings = (struct.pack(">ii", 0x00040009, len(line)) + line.encode() for line in lines)
        packed = zlib.compress(b"X\n\0\0\0\x03head" + b"".join(strings))
        return struct.pack(">i", 77) + packed

    put(tmp_path, "data/Rdata.rdb", blob("OTHER") + b"2" + blob("EMMA"))
    found = texts.work_text(work(read="novel", keep=r"\.rdb$", title="Emma"), tmp_path).splitlines()
    assert found[:3] == ["EMMA", "", "line 0 of EMMA"]
    assert len(found) == 602
    with pytest.raises(DataError) as error:
        texts.work_text(work(read="novel", keep=r"\.rdb$", title="Persuasion"), tmp_path)
    assert error.value.code == "corpus.empty"


def tools(monkeypatch: pytest.MonkeyPatch, *, fails: tuple[str, ...] = ()) -> list[str]:
    """Tools that make a small package of the name that they are asked for; what was loaded is remembered."""
    loaded: list[str] = []

    def run(command: list[str], *, cwd: Path | None = None, **_: Any) -> "subprocess.CompletedProcess[str]":
        name = command[-1]
        if command[0] == "dpkg":
            with zipfile.ZipFile(command[2]) as archive:
                archive.extractall(command[3])
            return subprocess.CompletedProcess(command, 0, "", "")
        loaded.append(name)
        if name in fails:
            return subprocess.CompletedProcess(command, 100, "", f"E: Unable to locate package {name}\n")
        assert cwd is not None
        content = f"text of {name} {LONG}".encode()
        if command[0] == "npm":
            with tarfile.open(cwd / "scope-name-0.4.0.tgz", "w:gz") as archive:
                entry = tarfile.TarInfo("package/a.txt")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        else:
            file = "name_1%3a2.5-1_all.deb" if command[0] == "apt-get" else "name-0.0.7-py3-none-any.whl"
            with zipfile.ZipFile(cwd / file, "w") as archive:
                archive.writestr("a.txt", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setattr(packages.shutil, "which", lambda program: program)
    return loaded


SOME = (
    work(name="one", package="deb-one"),
    work(name="two", package="deb-one"),
    work(name="three", tool="npm", package="@scope/name@0.4.0"),
    work(name="four", tool="pip", package="name==0.0.7"),
)


def test_one_file_a_work_with_its_licence_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, told = tools(monkeypatch), []
    found = fetch.fetch_corpus(tmp_path / "c", tell=told.append, works=SOME)
    assert sorted(loaded) == ["@scope/name@0.4.0", "deb-one", "name==0.0.7"]  # a package of two works once
    assert found["works"] == 4
    assert found["left_out"] == {}
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "c" / "texts").iterdir())
    assert (tmp_path / "c" / "texts" / "two.txt").read_text() == f"text of deb-one {LONG.strip()}\n"
    table = (tmp_path / "c" / "LICENCES.md").read_text()
    assert [line.split(" | ")[2] for line in table.splitlines()[-4:]] == ["1:2.5-1", "1:2.5-1", "0.4.0", "0.0.7"]
    sources = (SourceSettings(path=tmp_path / "c" / "texts"),)
    documents = read_documents(sources, max_document_bytes=2**20, quarantine=Quarantine())
    assert [document.id for document in documents] == ["four.txt", "one.txt", "three.txt", "two.txt"]

    loaded.clear()
    (tmp_path / "c" / "texts" / "three.txt").write_text("cut sh")
    assert fetch.fetch_corpus(tmp_path / "c", tell=told.append, works=SOME) == found
    assert loaded == ["@scope/name@0.4.0"]
    assert (tmp_path / "c" / "LICENCES.md").read_text() == table


def test_what_cannot_be_had_is_told_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(monkeypatch, fails=("deb-one",))
    monkeypatch.setattr(packages.shutil, "which", lambda program: None if program == "npm" else program)
    told: list[str] = []
    found = fetch.fetch_corpus(tmp_path, tell=told.append, works=SOME)
    assert set(found["left_out"]) == {"one", "two", "three"}
    assert "Unable to locate package deb-one" in found["left_out"]["one"]
    assert "npm cannot be found" in found["left_out"]["three"]
    assert found["works"] == 1
    with pytest.raises(DataError, match="none of 2 works") as error:
        fetch.fetch_corpus(tmp_path, ("one", "t*o"), tell=told.append, works=SOME)
    assert error.value.code == "corpus.nothing"
    with pytest.raises(ConfigError, match="no work is called 'thre'") as mistake:
        fetch.fetch_corpus(tmp_path, ("thre",), tell=told.append, works=SOME)
    assert mistake.value.fix == "did you mean 'three'?"


def test_a_tool_that_is_missing_and_a_package_that_is_not_there_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools(monkeypatch, fails=("gone",))
    with pytest.raises(DataError) as error:
        packages.fetch_package("apt", "gone", tmp_path / "x")
    assert error.value.code == "corpus.package"
    monkeypatch.setattr(packages.shutil, "which", lambda program: None)
    with pytest.raises(DataError) as missing:
        packages.require("apt")
    assert missing.value.code == "corpus.tool"


def test_the_table_of_works_names_each_once() -> None:
    names = [entry.name for entry in WORKS]
    assert len(names) == len(set(names)) == 28
    assert {"emma", "moby-dick", "postgresql"} <= set(names)


def test_the_verb_passes_its_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []

    def fake(folder: Path, names: list[str], *, tell: Any) -> dict[str, Any]:
        seen.append((folder, names))
        return {"corpus": str(folder), "works": 1, "bytes": 9, "left_out": {}}

    monkeypatch.setattr(fetch, "fetch_corpus", fake)
    assert cli.main(["fetch", "corpus", "emma", "l*", "--to", "there", "--json"]) == cli.OK
    assert seen == [(Path("there"), ["emma", "l*"])]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["works"] == 1
