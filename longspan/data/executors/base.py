"""What every executor is, and the one step that datatrove carries out for it: running the command of a part."""

import importlib
import signal
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.config import Settings
from longspan.utils.errors import ConfigError, DataError

STOP = "stop"  # a file of this name in the folder keeps parts from beginning


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Parts to be worked on, by number, in any order and any place that sees `folder`.

    `command` followed by a number does one. Logs go into `folder`.
    """

    numbers: tuple[int, ...]
    command: tuple[str, ...]
    folder: Path


class Executor(Settings, ABC):
    """Settings of one way to run parts."""

    @abstractmethod
    def require(self) -> None:
        """Raise `ConfigError` when a package or program is missing that this executor needs."""

    @abstractmethod
    def run(self, tasks: Tasks) -> None:
        """Work on all parts and return when they are done. Raises `DataError` that names the log when one fails."""


@dataclass(frozen=True)
class PartStep:
    """A step of a datatrove pipeline: the part that stands at the task's rank, as a process of its own."""

    command: tuple[str, ...]
    numbers: tuple[int, ...]
    folder: str

    def __call__(self, _: Any, rank: int, world_size: int) -> None:
        """Run the part's command; its output goes to a log that is named when it fails."""
        assert world_size == len(self.numbers), "one task a part"
        if Path(self.folder, STOP).exists():
            return
        log = Path(self.folder, f"part-{self.numbers[rank]:05d}.log")
        with log.open("wb") as file:
            done = subprocess.run(
                [*self.command, str(self.numbers[rank])], stdout=file, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode:
            killed = ", killed, perhaps for memory: take fewer workers" if done.returncode == -signal.SIGKILL else ""
            raise RuntimeError(f"exit status {done.returncode}{killed}; see {log}")


def datatrove(kind: str, module: str) -> Any:
    """A module of datatrove. Raises `ConfigError` that names the extra to install when it is missing."""
    try:
        return importlib.import_module(f"datatrove.{module}")
    except ImportError as error:
        raise ConfigError(
            "curate.missing-package",
            f"the executor {kind} needs a package that is not installed: {error}",
            where="recipe: data.curate.executor",
            fix='pip install "longspan[curate]" (and ray, for ray), or leave the executor out',
        ) from None


def failed(tasks: Tasks, cause: Exception) -> DataError:
    """The error for parts that did not end well."""
    return DataError(
        "curate.part-failed",
        f"a part of the curation failed: {cause}",
        where=str(tasks.folder),
        fix="read the log, mend the cause, and run the same command again: parts that are done stay done",
    )
