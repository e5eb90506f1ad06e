"""Files inside the wheels and archives that a user downloads: they are read, nothing in them is run."""

import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from longspan.utils.errors import DataError


def member(files: Sequence[Path], name: str, *, from_: str) -> bytes:
    """The bytes of the first member whose path ends in `name` of some zip files, or of a plain file of that name.

    Raises `DataError` when none has it; `from_` then says where it may be had.
    """
    for file in files:
        try:
            if not zipfile.is_zipfile(file):
                if file.as_posix().endswith(f"/{name}"):
                    return file.read_bytes()
                continue
            with zipfile.ZipFile(file) as archive:
                for path in archive.namelist():
                    if f"/{path}".endswith(f"/{name}"):
                        return archive.read(path)
        except (OSError, zipfile.BadZipFile) as cause:
            raise _missing(name, f"{file}: {cause}", from_) from cause
    raise _missing(name, ", ".join(map(str, files)) or "no files are named", from_)


@cache
def word_list(files: tuple[Path, ...], name: str) -> list[str]:
    """The lines of one of wonderwords' lists. Raises as `member` does."""
    fix = "pip download --no-deps wonderwords==3.0.1"
    return [word.rstrip() for word in member(files, name, from_=fix).decode().splitlines()]


def _missing(name: str, where: str, from_: str) -> DataError:
    return DataError(
        "eval.ruler-files",
        f"{name} is needed to make RULER's prompts as published, and is not there",
        where=where,
        fix=f"name a file that has it under files: {from_}",
    )
