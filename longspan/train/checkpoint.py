"""Checkpoints that survive a kill at any moment: written aside, hashed, renamed, verified, never overwritten."""

import json
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longspan.model.decoder import Decoder
from longspan.model.tensorfile import Entry, Held, file_bytes, read_entries, write_tensors
from longspan.rope.frequencies import Frequencies, read_frequencies
from longspan.train.optimizer import Updater
from longspan.utils.errors import CheckpointError, StorageError
from longspan.utils.files import fsync_folder, read_json, sha256, storage_errors, write_json
from longspan.utils.values import canonical_sha256, differences

SCHEMA = 1
WEIGHTS, OPTIMIZER, MANIFEST, LATEST = "model.safetensors", "optimizer.safetensors", "manifest.json", "latest.json"
NAME = re.compile(r"step-(\d{6,})")
LISTED_DIFFERENCES = 12


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has come: whole steps, and the rows of the stage that they have used up."""

    step: int = 0
    stage: int = 0
    step_in_stage: int = 0
    rows_in_stage: int = 0
    tokens: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk whose manifest, sizes and hashes have been verified."""

    folder: Path
    progress: Progress
    frequencies: Frequencies
    sha256: str  # of the weights file
    identity: dict[str, Any]  # the recipe, data and starting model it was made with, as the store was given them
    versions: dict[str, Any]  # of packages and machine, its device and threads included

    def restore(self, decoder: Decoder, updater: Updater | None = None) -> None:
        """Put the saved weights, position frequencies and, when one is given, the optimizer's states into place.

        Weights that require no gradient are not part of a checkpoint and stay as they are.
        Raises `CheckpointError` when names, shapes or types are those of another model.
        """
        self._fill(WEIGHTS, _trained(decoder))
        if updater is not None:
            self._fill(OPTIMIZER, updater.tensors())
        decoder.frequencies = self.frequencies

    @torch.no_grad()
    def _fill(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        entries = read_entries(self.folder / file, codes=file == OPTIMIZER)
        saved = {name: _form(entry) for name, entry in entries.items()}
        wanted = {name: _form(Held(tensor)) for name, tensor in tensors.items()}
        if saved != wanted:
            _refuse("model", differences(saved, wanted), self.folder / file)
        for name, entry in entries.items():
            tensors[name].copy_(entry.read())


class CheckpointStore:
    """The checkpoints of one run in one folder, newest first in every look-up.

    `identity` is whatever decides the weights (recipe, data, starting model), as JSON: a checkpoint that was made
    under another one is refused. `versions`, with device and threads, is noted in the manifest and decides bits only.
    `warn` hears of checkpoints set aside, and of one that training goes on from with other versions.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        identity: Mapping[str, Any],
        versions: Mapping[str, str],
        warn: Callable[[str], None],
    ) -> None:
        assert keep >= 2, "one checkpoint is none: the newest may turn out damaged"
        self.folder = folder
        self._keep = keep
        self._identity = json.loads(json.dumps(identity))  # as it reads back: tuples are lists
        self._versions = dict(versions)
        self._warn = warn
        self._verified: dict[Path, Checkpoint] = {}

    def prepare(self, decoder: nn.Module, updater: Updater) -> None:
        """Before training: drop what a kill left half-written, and make sure that the disk has room.

        Raises `StorageError` (`storage.space`) unless one checkpoint more than are kept will fit.
        """
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob("*.tmp-*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            each_bytes = sum(file_bytes(tensors, None) for tensors in _files(decoder, updater).values())
            have_bytes = sum(file.stat().st_size for folder in self._folders() for file in folder.iterdir())
            free_bytes = shutil.disk_usage(self.folder).free
        need_bytes = (self._keep + 1) * each_bytes - have_bytes
        if free_bytes < need_bytes:
            raise StorageError(
                "storage.space",
                f"checkpoints need {need_bytes:,} bytes and {free_bytes:,} are free "
                f"({self._keep} kept and one being written, {each_bytes:,} bytes each)",
                where=str(self.folder),
                fix="free some space, or write the run to another disk",
            )

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None; damaged ones on the way are renamed aside and told.

        Raises `CheckpointError` when it belongs to another recipe or to a newer version of longspan.
        """
        for folder in self._folders():
            checkpoint = self._verify(folder)
            if checkpoint is None:
                continue
            if checkpoint.identity != self._identity:
                _refuse("recipe", differences(checkpoint.identity, self._identity), folder)
            self._point_to(checkpoint)
            return checkpoint
        return None

    def save(self, progress: Progress, *, decoder: Decoder, updater: Updater) -> Checkpoint:
        """Write the state durably, verify it, move `latest.json`, and only then delete what is no longer kept.

        Raises `StorageError`; whatever was saved before is untouched then.
        """
        final = self.folder / f"step-{progress.step:06d}"
        temporary = final.with_name(f"{final.name}.tmp-{uuid.uuid4().hex[:8]}")
        try:
            with storage_errors(final):
                temporary.mkdir(parents=True)
                hashes = {
                    name: write_tensors(temporary / name, tensors, dtype=None)
                    for name, tensors in _files(decoder, updater).items()
                }
            files = {name: {"bytes": (temporary / name).stat().st_size, "sha256": hashes[name]} for name in hashes}
            self._write_manifest(temporary, progress, decoder, files)
            with storage_errors(final):
                temporary.rename(final)
                fsync_folder(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        checkpoint = self._verify(final)
        if checkpoint is None:
            raise StorageError(
                "storage.verify",
                "the disk gave back other bytes than were written",
                where=str(final),
                fix="check the disk, then run the same command again: older checkpoints are whole",
            )
        self._point_to(checkpoint)
        self.retire()
        return checkpoint

    def retire(self) -> None:
        """Delete all but the newest `keep` verified checkpoints; damaged ones do not count and are set aside."""
        kept = 0
        for folder in self._folders():
            if kept == self._keep:
                self._verified.pop(folder, None)
                # Renamed first, so that a kill while deleting leaves no folder that looks damaged.
                doomed = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
                with storage_errors(folder):
                    folder.rename(doomed)
                    shutil.rmtree(doomed)
            elif self._verify(folder) is not None:
                kept += 1

    def warn_of_other_bits(self, checkpoint: Checkpoint, decoder: Decoder) -> None:
        """Tell what differs between the checkpoint's making and this process that may change the bits of training."""
        now = self._versions_with(decoder)
        if found := differences(checkpoint.versions, now):
            outcome = "will" if checkpoint.versions.get("device") != now["device"] else "may"
            self._warn(
                f"{checkpoint.folder.name} was saved elsewhere or with other versions: training goes on, but its bits "
                f"{outcome} differ from those of a run that was never stopped ({_listed(found)})"
            )

    def _versions_with(self, decoder: Decoder) -> dict[str, Any]:
        return {**self._versions, "device": decoder.device.type, "threads": torch.get_num_threads()}

    def _write_manifest(self, folder: Path, progress: Progress, decoder: Decoder, files: Mapping[str, Any]) -> None:
        content = {
            "schema": SCHEMA,
            "progress": asdict(progress),
            "frequencies": asdict(decoder.frequencies),
            "files": files,
            "identity": self._identity,
            "versions": self._versions_with(decoder),
        }
        # Written last, atomically and with the folder synced: a folder with a manifest has everything else.
        write_json(folder / MANIFEST, {"sha256": canonical_sha256(content), "content": content})

    def _verify(self, folder: Path) -> Checkpoint | None:
        """The checkpoint if manifest, sizes and hashes are right; else None, and the folder is set aside."""
        if folder in self._verified:
            return self._verified[folder]
        try:
            content = _read_manifest(folder)
            if content["progress"]["step"] != _step_of(folder):
                raise _damaged(f"{MANIFEST} is that of step {content['progress']['step']}", folder)
            _check_files(folder, content["files"])
        except CheckpointError as damage:
            if damage.code != "checkpoint.damaged":
                raise
            self._set_aside(folder, damage)
            return None
        checkpoint = Checkpoint(
            folder=folder,
            progress=Progress(**content["progress"]),
            frequencies=read_frequencies(content["frequencies"]),
            sha256=content["files"][WEIGHTS]["sha256"],
            identity=content["identity"],
            versions=content["versions"],
        )
        self._verified[folder] = checkpoint
        return checkpoint

    def _folders(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if NAME.fullmatch(path.name)]
        return sorted(found, key=_step_of, reverse=True)

    def _set_aside(self, folder: Path, damage: CheckpointError) -> None:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
            number += 1
        with storage_errors(folder):
            folder.rename(aside)
            fsync_folder(self.folder)
        self._warn(f"{folder.name} is damaged ({damage.what}) and was renamed to {aside.name}")

    def _point_to(self, checkpoint: Checkpoint) -> None:
        # A hint for people and scripts; longspan itself trusts only what it has verified.
        value = {"folder": checkpoint.folder.name, "step": checkpoint.progress.step}
        try:
            right = read_json(self.folder / LATEST, error=CheckpointError) == value
        except CheckpointError:
            right = False
        if not right:
            write_json(self.folder / LATEST, value)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _trained(decoder: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in decoder.named_parameters() if weight.requires_grad}


def _form(tensor: Held | Entry) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tensor.shape}"


def _files(decoder: nn.Module, updater: Updater) -> dict[str, dict[str, Held]]:
    state: dict[str, Mapping[str, Tensor]] = {WEIGHTS: _trained(decoder), OPTIMIZER: updater.tensors()}
    return {file: {name: Held(tensor) for name, tensor in tensors.items()} for file, tensors in state.items()}


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's manifest, its own hash verified.

    Raises `CheckpointError`: `checkpoint.damaged`, or `checkpoint.schema` for one that this version cannot read,
    and `StorageError` when the disk does not answer.
    """
    try:
        manifest = read_json(folder / MANIFEST, error=CheckpointError, code="checkpoint.damaged")
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise _unreadable(folder, error.__cause__) from error
        raise
    whole = isinstance(manifest, dict) and manifest.keys() == {"sha256", "content"}
    if not whole or manifest["sha256"] != canonical_sha256(manifest["content"]):
        raise _damaged(f"{MANIFEST} does not agree with its hash", folder)
    content: dict[str, Any] = manifest["content"]
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            "checkpoint.schema",
            f"the checkpoint has format {content['schema']}, this version reads {SCHEMA}",
            where=str(folder),
            fix="use the version of longspan that wrote it (named in its manifest.json)",
        )
    return content


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Compare sizes, then hashes, with the manifest; raises `CheckpointError` that names the file."""
    try:
        for name in (WEIGHTS, OPTIMIZER):
            path = folder / name
            if not path.is_file():
                raise _damaged(f"{name} is missing", folder)
            if path.stat().st_size != files[name]["bytes"]:
                raise _damaged(f"{name} has {path.stat().st_size:,} bytes, not {files[name]['bytes']:,}", folder)
        for name in (WEIGHTS, OPTIMIZER):
            if sha256(folder / name) != files[name]["sha256"]:
                raise _damaged(f"{name} does not agree with its hash", folder)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _damaged(what: str, folder: Path) -> CheckpointError:
    return CheckpointError("checkpoint.damaged", what, where=str(folder), fix="restore it from a copy if there is one")


def _unreadable(folder: Path, error: OSError) -> StorageError:
    # Not the checkpoint's fault as far as one can tell: it must not be set aside for a disk that is away.
    what = f"a checkpoint cannot be read: {error.strerror or error}"
    fix = "check the disk and the permissions, then run the same command again"
    return StorageError("storage.read", what, where=str(folder), fix=fix)


def _listed(found: list[str]) -> str:
    more = len(found) - LISTED_DIFFERENCES
    return "; ".join(found[:LISTED_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _refuse(kind: str, found: list[str], where: Path) -> None:
    raise CheckpointError(
        f"checkpoint.other-{kind}",
        f"the checkpoint was made with another {kind}: {_listed(found)}",
        where=str(where),
        fix="go back to what it was made with, or choose another output folder",
    )
