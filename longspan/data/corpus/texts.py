"""From the files of a package to the text of a work."""

import contextlib
import gzip
import html
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from longspan.data.corpus.markup import page_text
from longspan.data.corpus.works import Work
from longspan.utils.errors import DataError

LEAST_CHARACTERS = 500  # of a file: less is an index, a redirect, a licence
LEAST_STRINGS = 500  # of a novel in a file of R: less is no novel
INDEX = re.compile(  # files that list what is elsewhere, and translations
    r"genindex|searchindex|search\.html|modindex|classlist|_8h_source|functions_|globals_|namespacemembers|allclasses"
    r"|index-all|index-files|deprecated-list|overview-tree|package-tree|package-use|class-use|doc-index|jquery"
    r"|changelog|/de/|/fr/|/es/|/ja/"
)
R_STRING = 9  # the type of a string in R's serialization


def work_text(work: Work, folder: Path) -> str:
    """The text of a work out of its unpacked packages. Raises `DataError` when nothing of it is there."""
    read = {
        "documents": _documents,
        "parts": _parts,
        "dictionary": lambda files, _: "\n".join(_decoded(gzip.decompress(file.read_bytes())) for file in files),
        "commentary": _commentary,
        "novel": _novel,
        "summaries": _summaries,
    }[work.read]
    text = read(chosen(work, folder), work)
    text = re.sub(r"[\0\b\x1f]", "", text)  # marks of info files; a NUL would make a text a binary file
    text = re.sub(r"\n{4,}", "\n\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()
    if not text:
        raise DataError(
            "corpus.empty",
            f"the package {work.package} holds nothing of {work.name}",
            fix="its layout may have changed: name the version that the table of works was made for",
        )
    return f"{text}\n"


def chosen(work: Work, folder: Path) -> list[Path]:
    """The files of a work in the natural order of their paths; links are left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path: f"/{path.relative_to(folder).as_posix()}" for path in paths}
    keep, drop = re.compile(work.keep), re.compile(work.drop)
    found = [path for path in paths if keep.search(names[path]) and not drop.search(names[path])]
    if work.read == "documents":
        found = [path for path in found if not INDEX.search(names[path])]
    return sorted(found, key=lambda path: natural(names[path]))


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts chapter-2 before chapter-10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _documents(files: list[Path], _: Work) -> str:
    found: dict[str, None] = {}  # keeps the order, and drops what comes twice
    for file in files:
        content = file.read_bytes()
        text = _decoded(gzip.decompress(content) if file.suffix == ".gz" else content)
        text = page_text(text) if re.search(r"\.x?html(\.gz)?$", file.name) else text.strip()
        if len(text) >= LEAST_CHARACTERS:
            found[text] = None
    return "\n\n\n".join(found)


def _parts(files: list[Path], _: Work) -> str:
    return "\n\n".join(_decoded(file.read_bytes()).strip() for file in files)


def _commentary(files: list[Path], _: Work) -> str:
    """SWORD's compressed blocks: Old Testament, then New."""
    found = []
    for part in ("ot", "nt"):
        sizes = [file for file in files if file.name == f"{part}.bzs"]
        blocks = [file for file in files if file.name == f"{part}.bzz"]
        if sizes and blocks:
            data = blocks[0].read_bytes()
            for start, size, _length in struct.iter_unpack("<III", sizes[0].read_bytes()):
                found.append(_decoded(zlib.decompress(data[start : start + size])))
    text = re.sub(r"<(?:br|p|div|lb)\b[^>]*>|</(?:p|div)>", "\n", "".join(found))
    return html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\0", "\n")


def _summaries(files: list[Path], _: Work) -> str:
    """An encyclopedia: the first paragraph of every article under its title."""
    found = [entry for file in files for entry in json.loads(file.read_bytes()).values()]
    return "\n\n".join(f"{entry['title']}\n{entry['extract']}" for entry in found)


def _novel(files: list[Path], work: Work) -> str:
    """Lines of the one novel that begins with the title, from a lazy-load database of R."""
    for file in files:
        for blob in _inflated(file.read_bytes()):
            lines = list(_r_strings(blob))
            if len(lines) > LEAST_STRINGS and lines[0].casefold() == work.title.casefold():
                return "\n".join(lines)
    return ""


def _inflated(data: bytes) -> Iterator[bytes]:
    """Every zlib stream that follows its big-endian length, with or without a byte for its type."""
    at = data.find(b"\x78")
    while at >= 0:
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj().decompress(data[at:])
        at = data.find(b"\x78", at + 1)


def _r_strings(blob: bytes) -> Iterator[str]:
    """Every string of a serialized object: flags that end in its type, its length, its bytes."""
    at = 0
    while at + 8 <= len(blob):
        flags, length = struct.unpack_from(">ii", blob, at)
        if 0 <= flags < 2**20 and flags & 0xFF == R_STRING and 0 <= length <= len(blob) - at - 8:
            yield _decoded(blob[at + 8 : at + 8 + length])
            at += 8 + length
        else:
            at += 1


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")
