"""Coming together and parting: process groups with deadlines, and the name of whoever is lost.

The only file that reads the environment, what torchrun says about this rank, and tells NCCL by it, which has no other
ear.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_group, _get_default_store

from longspan.parallel.mesh import AXES, Mesh
from longspan.parallel.pulse import Mark, Place, Progress, Pulse, first_line, lost
from longspan.parallel.watch import Watch, end_process
from longspan.utils.errors import LongspanError

PAUSE_SECONDS = 0.05  # between two looks for a word
# NCCL's own threads would abort the process at the first failed message, before anybody has named the lost rank; and
# torchrun asks them to. They keep their timeout for the log.
_NCCL_LEAVES_IT_TO_THE_WATCH = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
_NCCL_PATIENCE = 3  # deadlines until NCCL calls an exchange late: the watch has long spoken


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


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The ranks that exchange with each other along one axis of the mesh, and which of them this one is."""

    rank: int = 0
    size: int = 1
    group: distributed.ProcessGroup | None = field(default=None, repr=False)
    world: "World | None" = field(default=None, repr=False)

    def named(self, operation: str) -> str:
        """An exchange by its full name, with the phase and the part of a pass to which it belongs."""
        return operation if self.world is None else self.world.progress.named(operation)

    @contextmanager
    def within(self, operation: str, *, waits: bool = False, patient: bool = False) -> Iterator[None]:
        """Turn the failure of an exchange into `parallel.lost`: this rank, the operation, and who is to blame.

        `waits` tells that the device will wait for the exchange in here, `patient` that no deadline holds for it.
        """
        world, place = self.world, Place(0, operation, waits=True)
        with ExitStack() as stack:
            if world is not None:
                place = stack.enter_context(world.progress.within(operation, waits=waits, patient=patient))
            try:
                yield
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as cause:
                if world is None:
                    raise lost(self.rank, place, "a rank is lost", where=first_line(cause)) from cause
                world.progress.failed = True
                culprits = world.pulse.culprits()
                raise lost(world.launch.rank, place, culprits, where=first_line(cause)) from cause

    def wait(self, work: distributed.Work) -> None:
        """Wait for an exchange, on a CPU no longer than the deadline; on a GPU the watch minds it."""
        if self.world is not None and self.world.device.type == "cpu":
            work.wait(timedelta(seconds=self.world.deadline_seconds))  # gloo ignores that of a group of a mesh
        else:
            work.wait()


ALONE = Axis()


@dataclass(frozen=True, kw_only=True)
class World:
    """All ranks of a run. `device` is this rank's own; `progress` tells the watch what it is doing."""

    launch: Launch
    device: torch.device
    deadline_seconds: float
    progress: Progress = field(repr=False)
    pulse: Pulse = field(repr=False)
    watch: Watch = field(repr=False)
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
        axis = Axis(rank=rank, size=size, group=mesh.get_group(name), world=self)
        if self.device.type == "cuda":
            # All ranks have to be in NCCL's first call, and some may have nothing to send.
            _be_patient(mesh.get_group(name), self.deadline_seconds)
            with axis.within(f"first call on {name}"):
                distributed.barrier(axis.group)
        return axis

    def say(self, topic: str, word: str) -> None:
        """Let all ranks know a word."""
        self.store.set(f"word/{topic}", word)

    def hear(self, topic: str, *, poll: Callable[[], None] = lambda: None) -> str:
        """The word on a topic, waited for as long as it takes; `poll` is called while waiting and may raise."""
        with self.everyone.within(f"waiting for {topic}", patient=True):
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
        self.watch.stop()
        self.pulse.stop()
        distributed.destroy_process_group()


def join(launch: Launch, *, device_type: str, deadline_seconds: float, store: Store | None = None) -> World:
    """Meet the other ranks: gloo between CPUs, NCCL between GPUs; no rank waits in an exchange beyond the deadline.

    Without `store` the ranks meet where torchrun says. Raises `parallel.join` if they do not come. From here on a watch
    ends the process with status 75 when the run is lost and no exception can say so.
    """
    device = torch.device(device_type, launch.local_rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.update(_NCCL_LEAVES_IT_TO_THE_WATCH)
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
            where=first_line(cause),
            fix="start as many ranks as torchrun was told, all able to reach the first one's address",
        ) from cause
    if device.type == "cuda":
        _be_patient(_get_default_group(), deadline_seconds)
    beat_seconds, rank = min(1.0, deadline_seconds / 20), launch.rank
    progress = Progress(_mark if device.type == "cuda" else None)
    meeting = store or _get_default_store()
    pulse = Pulse(meeting, progress, rank=rank, ranks=launch.ranks, beat_seconds=beat_seconds)
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    watch = Watch(
        pulse,
        progress,
        rank=rank,
        deadline_seconds=deadline_seconds,
        beat_seconds=beat_seconds,
        end=partial(end_process, error_file=Path(error_file) if error_file else None),
    )
    return World(
        launch=launch,
        device=device,
        deadline_seconds=deadline_seconds,
        progress=progress,
        pulse=pulse,
        watch=watch,
        store=PrefixStore("words", meeting),
    )


def _mark() -> Mark:
    mark: Mark = torch.cuda.current_stream().record_event()
    return mark


def _be_patient(group: distributed.ProcessGroup, deadline_seconds: float) -> None:
    """Give NCCL's exchanges in a group so long that the watch speaks before NCCL does."""
    backend = group._get_backend(torch.device("cuda"))
    backend._set_default_timeout(timedelta(seconds=_NCCL_PATIENCE * deadline_seconds))
