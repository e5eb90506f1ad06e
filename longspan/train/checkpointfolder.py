"""What happens to folders of checkpoints on disk: found, made, moved into place, set aside, deleted."""

import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.train.manifest import check_sizes, damaged, read_manifest, write_manifest
from longspan.utils.errors import CheckpointError, StorageError
from longspan.utils.files import fsync_folder, read_json, storage_errors, write_json

LATEST = "latest.json"
NAME = re.compile(r"step-(\d{6,})")


class CheckpointFolder:
    """The folder that holds all checkpoints of a run, as one process sees it. Every method may raise `StorageError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of_step(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.path / f"step-{step:06d}"

    def names(self) -> list[str]:
        """Checkpoints that nothing is known to be wrong with, newest first."""
        found = [path.name for path in self.path.glob("step-*") if NAME.fullmatch(path.name)]
        return sorted(found, key=_step_of, reverse=True)

    def make_room(self, *, each_bytes: int, keep: int) -> None:
        """Drop what a kill left half-written. Raises `storage.space` unless one more than are kept will fit."""
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self.path.glob("*.tmp-*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            have_bytes = sum(file.stat().st_size for name in self.names() for file in (self.path / name).iterdir())
            free_bytes = shutil.disk_usage(self.path).free
        need_bytes = (keep + 1) * each_bytes - have_bytes
        if free_bytes < need_bytes:
            raise StorageError(
                "storage.space",
                f"checkpoints need {need_bytes:,} bytes and {free_bytes:,} are free "
                f"({keep} kept and one being written, {each_bytes:,} bytes each)",
                where=str(self.path),
                fix="free some space, or write the run to another disk",
            )

    def leave_token(self) -> str:
        """The name of a new empty file, by which others tell whether they see this folder."""
        token = self.path / _temporary("ranks")
        with storage_errors(token):
            self.path.mkdir(parents=True, exist_ok=True)
            token.touch()
        return token.name

    def find_token(self, name: str) -> None:
        """Raise `checkpoint.not-shared` unless the file that rank 0 left is here."""
        if not (self.path / name).exists():
            raise CheckpointError(
                "checkpoint.not-shared",
                "this folder is not the one that rank 0 sees",
                where=str(self.path),
                fix="give the run an output on a disk that all machines share",
            )

    def drop_token(self, name: str) -> None:
        """Delete it."""
        with storage_errors(self.path):
            (self.path / name).unlink()

    def make_temporary(self, step: int) -> str:
        """The name of a new folder to write the checkpoint of a step in."""
        made = self.path / _temporary(self.of_step(step).name)
        with storage_errors(made):
            made.mkdir(parents=True)
        return made.name

    def publish(self, temporary: Path, manifest: Mapping[str, Any]) -> None:
        """Write the manifest of a checkpoint that is complete but for it, and move it into place."""
        final = self.of_step(manifest["progress"]["step"])
        write_manifest(temporary, manifest)
        with storage_errors(final):
            temporary.rename(final)
            fsync_folder(self.path)

    def set_aside(self, checkpoint: Path) -> str:
        """Rename a damaged checkpoint, and return its new name."""
        number = 1
        while (aside := checkpoint.with_name(f"{checkpoint.name}.damaged-{number}")).exists():
            number += 1
        with storage_errors(checkpoint):
            checkpoint.rename(aside)
            fsync_folder(self.path)
        return aside.name

    def delete(self, checkpoint: Path) -> None:
        """Delete one, renamed first, so that a kill while deleting leaves no folder that looks damaged."""
        doomed = checkpoint.with_name(_temporary(checkpoint.name))
        with storage_errors(checkpoint):
            checkpoint.rename(doomed)
            shutil.rmtree(doomed)

    def point_to(self, checkpoint: Path) -> None:
        """Let `latest.json` name it: a hint for people and scripts; longspan trusts only what it has verified."""
        value = {"folder": checkpoint.name, "step": _step_of(checkpoint.name)}
        try:
            right = read_json(self.path / LATEST, error=CheckpointError) == value
        except CheckpointError:
            right = False
        if not right:
            write_json(self.path / LATEST, value)


def checked_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, of its step, and with its files in their sizes; raises as `read_manifest`."""
    content = read_manifest(checkpoint)
    if content["progress"]["step"] != _step_of(checkpoint.name):
        raise damaged(f"manifest.json is that of step {content['progress']['step']}", checkpoint)
    check_sizes(checkpoint, content["files"])
    return content


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def _temporary(name: str) -> str:
    return f"{name}.tmp-{uuid.uuid4().hex[:8]}"
