"""Coming together and parting: process groups with deadlines, and the name of whoever is lost.

The only file that reads the environment: what torchrun says about this rank.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store, _set_pg_timeout

from longspan.parallel.mesh import AXES, Mesh
from longspan.utils.errors import LongspanError

_VERDICT, _LEFT = "verdict", -1
PAUSE_SECONDS = 0.2  # between two looks for a word
BEATS = 5  # of a pulse: so many without a sign, and a rank counts as lost


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Which of how many ranks this process is, and which of how many of its machine."""

    rank: int
    ranks: int
    local_rank: int = 0
    local_ranks: int = 1


def launched() -> Launch | None:
    """What torchrun says; None if this process was started alone. Raises `parallel.launch` for half an answer."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = [os.environ.get(name, "") for name in names]
    if not any(found):
        return None
    if not all(value.isdecimal() for value in found):
        said = ", ".join(f"{name}={value!r}" for name, value in zip(names, found, strict=True))
        raise LongspanError(
            "parallel.launch",
            "some of torchrun's variables are missing or no numbers",
            where=f"environment: {said}",
            fix="start with torchrun, or unset them to run on one device",
        )
    rank, ranks, local_rank, local_ranks = map(int, found)
    return Launch(rank=rank, ranks=ranks, local_rank=local_rank, local_ranks=local_ranks)


@dataclass(frozen=True)
class _Sign:
    beat: int  # _LEFT from a rank that parted from the others
    operations: int
    operation: str


def _verdict(before: dict[int, _Sign], after: dict[int, _Sign]) -> str:
    silent = [rank for rank in after if after[rank].beat == before[rank].beat != _LEFT]
    if silent:
        return "; ".join(f"rank {rank} is gone or stopped, last seen in {after[rank].operation}" for rank in silent)
    left = [rank for rank in after if after[rank].beat == _LEFT]
    if left:
        return "; ".join(f"rank {rank} left before, after {after[rank].operation}" for rank in left)
    least = min(sign.operations for sign in after.values())
    behind = [(rank, sign.operation) for rank, sign in after.items() if sign.operations == least]
    return "; ".join(f"rank {rank} is alive, but got no further than {operation}" for rank, operation in behind)


class Pulse:
    """A sign of life in the store that all ranks read: how often this rank beat, and what it is doing."""

    def __init__(self, store: Store, launch: Launch, *, beat_seconds: float) -> None:
        self._store = PrefixStore("pulse", store.clone())  # type: ignore[attr-defined]
        self._launch, self._seconds = launch, beat_seconds
        self.operations, self.operation = 0, "start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def enter(self, operation: str) -> None:
        """From now on this rank is in that operation."""
        self.operations, self.operation = self.operations + 1, operation

    def stop(self) -> None:
        """No more signs from here but that this rank has left."""
        self._over.set()
        self._thread.join()
        with suppress(RuntimeError):  # the store may have left first
            self._sign(_LEFT)

    def culprits(self) -> str:
        """Who holds the others up, in words: ranks that give no sign; if all do, those that are furthest behind.

        The first rank that asks finds out; the others, who may come when it has left, read what it found.
        """
        try:
            if self._store.check([_VERDICT]):
                return self._store.get(_VERDICT).decode()
            before = self._read()
            time.sleep(BEATS * self._seconds)
            found = _verdict(before, self._read())
            self._store.set(_VERDICT, found)
        except RuntimeError as cause:  # the store went with the rank or the launcher that kept it
            return f"the store of the ranks is gone, and with it rank 0 or the launcher ({_first_line(cause)})"
        return found

    def _read(self) -> dict[int, _Sign]:
        """The last sign of every other rank."""
        found = {}
        for rank in range(self._launch.ranks):
            if rank == self._launch.rank:
                continue
            text = self._store.get(str(rank)).decode() if self._store.check([str(rank)]) else "0 0 start"
            beat, operations, name = text.split(" ", 2)
            found[rank] = _Sign(int(beat), int(operations), name)
        return found

    def _run(self) -> None:
        beat = 0
        with suppress(RuntimeError):  # nobody is left to read it
            while not self._over.is_set():
                beat += 1
                self._sign(beat)
                self._over.wait(self._seconds)

    def _sign(self, beat: int) -> None:
        self._store.set(str(self._launch.rank), f"{beat} {self.operations} {self.operation}")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The ranks that exchange with each other along one axis of the mesh, and which of them this one is."""

    rank: int = 0
    size: int = 1
    group: distributed.ProcessGroup | None = field(default=None, repr=False)
    world: "World | None" = field(default=None, repr=False)

    @contextmanager
    def within(self, operation: str) -> Iterator[None]:
        """Turn the failure of an exchange into `parallel.lost`: this rank, the operation, and who is to blame."""
        pulse = self.world and self.world.pulse
        if pulse:
            pulse.enter(operation)
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as cause:
            rank = self.world.launch.rank if self.world else self.rank
            raise LongspanError(
                "parallel.lost",
                f"rank {rank} waited in vain in {operation}: {pulse.culprits() if pulse else 'a rank is lost'}",
                where=_first_line(cause),
                fix="look at the log of the rank that is named; the same command goes on from the last checkpoint",
            ) from cause

    def wait(self, work: distributed.Work) -> None:
        """Wait for an exchange, on a CPU no longer than the deadline; NCCL minds its own."""
        if self.world is not None and self.world.device.type == "cpu":
            work.wait(timedelta(seconds=self.world.deadline_seconds))  # gloo ignores that of a group of a mesh
        else:
            work.wait()


ALONE = Axis()


@dataclass(frozen=True, kw_only=True)
class World:
    """All ranks of a run. `device` is this rank's own."""

    launch: Launch
    device: torch.device
    deadline_seconds: float
    pulse: Pulse = field(repr=False)
    store: Store = field(repr=False)

    def axes(self, mesh: Mesh) -> dict[str, Axis]:
        """This rank's place and its peers on each axis. Every rank calls this. Raises `parallel.mesh`."""
        mesh.check(self.launch.ranks)
        made = init_device_mesh(self.device.type, mesh.sizes, mesh_dim_names=AXES)
        place = mesh.place(self.launch.rank)
        return {name: self.axis(made, name, rank=at) for name, at in zip(AXES, place, strict=True)}

    def axis(self, mesh: DeviceMesh, name: str, *, rank: int) -> Axis:
        """One axis of a mesh of torch's, on which this rank has place `rank`. Its ranks all call this."""
        size = mesh[name].size()
        if size == 1:
            return ALONE
        group = mesh.get_group(name)
        if self.device.type == "cuda":
            # Groups of a mesh have torch's own deadline otherwise. All ranks have to be in NCCL's first call, and some
            # may have nothing to send.
            _set_pg_timeout(timedelta(seconds=self.deadline_seconds), group)
            distributed.barrier(group)
        return Axis(rank=rank, size=size, group=group, world=self)

    def say(self, topic: str, word: str) -> None:
        """Let all ranks know a word."""
        self.store.set(f"word/{topic}", word)

    def hear(self, topic: str, *, poll: Callable[[], None] = lambda: None) -> str:
        """The word on a topic, waited for as long as it takes; `poll` is called while waiting and may raise."""
        with self.everyone.within(f"waiting for {topic}"):
            while not self.store.check([f"word/{topic}"]):
                poll()
                time.sleep(PAUSE_SECONDS)
            return self.store.get(f"word/{topic}").decode()

    @property
    def everyone(self) -> Axis:
        """All ranks as one axis."""
        return Axis(rank=self.launch.rank, size=self.launch.ranks, world=self)

    def leave(self) -> None:
        """Part from the others; a rank that failed leaves without a word to them."""
        self.pulse.stop()
        distributed.destroy_process_group()


def join(launch: Launch, *, device_type: str, deadline_seconds: float, store: Store | None = None) -> World:
    """Meet the other ranks: gloo between CPUs, NCCL between GPUs; no exchange takes longer than the deadline.

    Without `store` the ranks meet where torchrun says. Raises `parallel.join` if they do not come.
    """
    device = torch.device(device_type, launch.local_rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    deadline = timedelta(seconds=deadline_seconds)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",  # words between hosts need no device
            store=store,
            rank=launch.rank,
            world_size=launch.ranks,
            timeout=deadline,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as cause:
        raise LongspanError(
            "parallel.join",
            f"rank {launch.rank} of {launch.ranks} did not meet the others within {deadline_seconds:g} s",
            where=_first_line(cause),
            fix="start as many ranks as torchrun was told, all able to reach the first one's address",
        ) from cause
    meeting = store or _get_default_store()
    pulse = Pulse(meeting, launch, beat_seconds=min(1.0, deadline_seconds / 20))
    words = PrefixStore("words", meeting)
    return World(launch=launch, device=device, deadline_seconds=deadline_seconds, pulse=pulse, store=words)


def _first_line(cause: BaseException) -> str:
    return (str(cause).splitlines() or [type(cause).__name__])[0]
