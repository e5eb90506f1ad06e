"""Checkpoints that survive a kill at any moment: written aside, hashed, renamed, verified, never overwritten."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from longspan.model.decoder import Decoder
from longspan.rope.frequencies import Frequencies, read_frequencies
from longspan.train.background import Background, HostCopy
from longspan.train.checkpointfolder import CheckpointFolder, checked_manifest
from longspan.train.manifest import check_hashes
from longspan.train.optimizer import Updater
from longspan.train.peers import ALONE, Peers
from longspan.train.shardfiles import (
    OPTIMIZER,
    WEIGHTS,
    SavedTensors,
    State,
    form,
    local_part,
    state_bytes,
    write_share,
)
from longspan.utils.errors import CheckpointError, Interrupted, StorageError
from longspan.utils.values import canonical_sha256, differences

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
    sha256: str  # of the weights: of their file, or of the hashes of several
    identity: dict[str, Any]  # the recipe, data and starting model it was made with, as the store was given them
    versions: dict[str, Any]  # of packages and machine, its device, threads and ranks included
    files: tuple[str, ...]
    peers: Peers = field(repr=False)

    def restore(self, decoder: Decoder, updater: Updater | None = None) -> None:
        """Put the saved weights, position frequencies and, when one is given, the optimizer's states into place.

        Every rank calls this; it may hold other parts than the ranks that saved, whole tensors or cut ones. Weights
        that require no gradient are not part of a checkpoint and stay as they are.
        Raises `CheckpointError` when names, shapes or types are those of another model.
        """
        state = _state(decoder, updater)
        self.peers.agree(lambda: self._fill(state))
        decoder.frequencies = self.frequencies

    def _fill(self, state: State) -> None:
        found = {kind: SavedTensors(self.folder, _of_kind(kind, self.files)) for kind in state}
        for kind, tensors in state.items():
            wanted = {name: form(tensor) for name, tensor in tensors.items()}
            saved = found[kind].forms
            if saved != wanted:
                in_order = {name: saved[name] for name in wanted if name in saved} | saved
                _refuse("model", differences(in_order, wanted), self.folder)
        for kind, tensors in state.items():
            found[kind].fill(tensors)


@dataclass(frozen=True)
class _Request:
    """A state to be saved, as it was when it was asked for: the manifest but for the files, and the tensors."""

    manifest: dict[str, Any]
    state: State  # shapes, and how they are cut
    held: Mapping[str, Tensor]  # the numbers that this rank holds


class CheckpointStore:
    """The checkpoints of one run in one folder, newest first in every look-up.

    `identity` is whatever decides the weights (recipe, data, starting model), as JSON: a checkpoint that was made
    under another one is refused. `versions`, with device, threads and ranks, is noted in the manifest and decides bits
    only. `warn` hears of checkpoints set aside, and of one that training goes on from with other versions.

    `saving` says whether training halts until a checkpoint is on disk (`blocking`), or until its tensors are copied to
    host memory (`async`). With several ranks all of them see one folder and call the same methods in the same order,
    each with its own `peers`; what goes wrong on one is raised on all, and rank 0 alone warns.

    As a context manager it waits at the end for the save in flight.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        identity: Mapping[str, Any],
        versions: Mapping[str, str],
        warn: Callable[[str], None],
        saving: Literal["async", "blocking"] = "blocking",
        peers: Peers = ALONE,
    ) -> None:
        assert keep >= 2, "one checkpoint is none: the newest may turn out damaged"
        self._folder = CheckpointFolder(folder)
        self._keep = keep
        self._identity = json.loads(json.dumps(identity))  # as it reads back: tuples are lists
        self._versions = dict(versions)
        self._warn = warn if peers.rank == 0 else _silent
        self._saving = saving
        self._peers = peers
        self._seen_by_all = peers.group is None
        self._verified: dict[Path, Checkpoint] = {}
        self._copy: HostCopy | None = None
        self._in_flight: Background | None = None

    def prepare(self, decoder: Decoder, updater: Updater) -> None:
        """Before training: drop what a kill left half-written, and make sure that disk and host memory have room.

        Raises `StorageError` (`storage.space`) unless one checkpoint more than are kept will fit, and `LongspanError`
        (`checkpoint.host-memory`) when there is no room for the copy of an asynchronous save.
        """
        state = _state(decoder, updater)
        self._peers.lead(lambda: self._folder.make_room(each_bytes=state_bytes(state), keep=self._keep))
        self._require_one_folder()
        if self._saving == "async":
            copy = self._copy = HostCopy(decoder.device)
            self._peers.agree(lambda: copy.reserve(_held(state)))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None; damaged ones on the way are renamed aside and told.

        Raises `CheckpointError` when it belongs to another recipe or to a newer version of longspan, or when not all
        ranks see the folder.
        """
        self._require_one_folder()
        for folder in self._folders():
            checkpoint = self._verify(folder)
            if checkpoint is None:
                continue
            if checkpoint.identity != self._identity:
                _refuse("recipe", differences(checkpoint.identity, self._identity), folder)
            self._peers.lead(partial(self._folder.point_to, folder))
            return checkpoint
        return None

    def save(self, progress: Progress, *, decoder: Decoder, updater: Updater) -> None:
        """Write the state durably, verify it, move `latest.json`, and only then delete what is no longer kept.

        An asynchronous save returns once the state is copied; one that is still in flight is waited for first, and
        what went wrong with it is raised. Raises `StorageError`; whatever was saved before is untouched then.
        """
        self.finish()
        state = _state(decoder, updater)
        held = _held(state)
        manifest = {
            "progress": asdict(progress),
            "frequencies": asdict(decoder.frequencies),
            "identity": self._identity,
            "versions": self._versions_with(decoder),
        }
        if self._copy is None:
            self._write(_Request(manifest, state, held))
        else:
            request = _Request(manifest, state, self._copy.take(held))
            self._in_flight = Background(lambda: self._write(request), name="checkpoint")

    def finish(self) -> None:
        """Wait until the save in flight, if there is one, is durable, and raise what went wrong with it."""
        if self._in_flight is not None:
            writer, self._in_flight = self._in_flight, None
            writer.finish()

    def retire(self) -> None:
        """Delete all but the newest `keep` verified checkpoints; damaged ones do not count and are set aside."""
        kept = 0
        for folder in self._folders():
            if kept == self._keep:
                self._verified.pop(folder, None)
                self._peers.lead(partial(self._folder.delete, folder))
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None or issubclass(kind, Interrupted):
                self.finish()
            elif issubclass(kind, Exception):  # whoever stops the process at once does not wait
                self._finish_after_failure()
        finally:
            if self._copy is not None and self._in_flight is None:
                self._copy.close()

    def _finish_after_failure(self) -> None:
        """After an error of the run itself: a save that a lost rank holds up must not keep it from ending."""
        if self._in_flight is None or not self._in_flight.ended(within_seconds=self._peers.deadline_seconds):
            return
        try:
            self.finish()
        except Exception as failure:  # noqa: BLE001 - the error of the run is the one to raise
            self._warn(f"the checkpoint that was being written is lost: {failure}")

    def _versions_with(self, decoder: Decoder) -> dict[str, Any]:
        here = {"device": decoder.device.type, "threads": torch.get_num_threads(), "ranks": self._peers.ranks}
        return {**self._versions, **here}

    def _require_one_folder(self) -> None:
        if self._seen_by_all:
            return
        token = self._peers.lead(self._folder.leave_token)
        self._peers.agree(lambda: self._folder.find_token(token))
        self._peers.lead(lambda: self._folder.drop_token(token))
        self._seen_by_all = True

    def _folders(self) -> list[Path]:
        """All checkpoints, newest first, as rank 0 sees them."""
        return [self._folder.path / name for name in self._peers.lead(self._folder.names)]

    def _write(self, request: _Request) -> None:
        step = request.manifest["progress"]["step"]
        temporary = self._folder.path / self._peers.lead(lambda: self._folder.make_temporary(step))
        try:
            shares = self._peers.agree(
                lambda: write_share(temporary, request.state, held=request.held, peers=self._peers)
            )
            files = {name: record for share in shares for name, record in share.items()}
            self._peers.lead(lambda: self._folder.publish(temporary, {**request.manifest, "files": files}))
        except BaseException:
            if self._peers.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        final = self._folder.of_step(step)
        if self._verify(final) is None:
            raise StorageError(
                "storage.verify",
                "the disk gave back other bytes than were written",
                where=str(final),
                fix="check the disk, then run the same command again: older checkpoints are whole",
            )
        self._peers.lead(lambda: self._folder.point_to(final))
        self.retire()

    def _verify(self, folder: Path) -> Checkpoint | None:
        """The checkpoint if manifest, sizes and hashes are right; else None, and the folder is set aside."""
        if folder in self._verified:
            return self._verified[folder]
        peers = self._peers
        try:
            content = peers.lead(lambda: checked_manifest(folder))
            files = content["files"]
            # Each rank reads back what its neighbour wrote.
            share = [name for index, name in enumerate(sorted(files), start=1) if index % peers.ranks == peers.rank]
            peers.agree(lambda: check_hashes(folder, files, share))
        except CheckpointError as damage:
            if damage.code != "checkpoint.damaged":
                raise
            self._set_aside(folder, damage)
            return None
        weights = {name: files[name]["sha256"] for name in _of_kind(WEIGHTS, files)}
        checkpoint = Checkpoint(
            folder=folder,
            progress=Progress(**content["progress"]),
            frequencies=read_frequencies(content["frequencies"]),
            sha256=next(iter(weights.values())) if len(weights) == 1 else canonical_sha256(weights),
            identity=content["identity"],
            versions={"ranks": 1} | content["versions"],
            files=tuple(files),
            peers=peers,
        )
        self._verified[folder] = checkpoint
        return checkpoint

    def _set_aside(self, folder: Path, damage: CheckpointError) -> None:
        aside = self._peers.lead(lambda: self._folder.set_aside(folder))
        self._warn(f"{folder.name} is damaged ({damage.what}) and was renamed to {aside}")


def _silent(text: str) -> None:
    """What ranks other than the first say."""


def _state(decoder: Decoder, updater: Updater | None) -> dict[str, dict[str, Tensor]]:
    """The trained weights and, when an updater is given, its states."""
    weights: dict[str, Tensor] = {name: weight for name, weight in decoder.named_parameters() if weight.requires_grad}
    return {WEIGHTS: weights} if updater is None else {WEIGHTS: weights, OPTIMIZER: updater.tensors()}


def _held(state: State) -> dict[str, Tensor]:
    return {name: local_part(tensor) for tensors in state.values() for name, tensor in tensors.items()}


def _of_kind(kind: str, files: Iterable[str]) -> list[str]:
    return [name for name in files if name.startswith(kind)]


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
