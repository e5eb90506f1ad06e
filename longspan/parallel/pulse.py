"""Signs of life in a store that all ranks read: how far each rank is, and who is lost or behind."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from torch.distributed.distributed_c10d import PrefixStore, Store

from longspan.utils.errors import LongspanError

_VERDICT, _LEFT = "verdict", -1
BEATS = 5  # of a pulse: so many without a sign, and a rank counts as lost
_MOST_NAMES = 8  # of ranks in one sentence


class Mark(Protocol):
    """A place in a device's queue of work."""

    def query(self) -> bool:
        """Whether the device has come to it."""


@dataclass(frozen=True)
class Place:
    """How far a rank is: how many exchanges it has begun, the latest of them, and whether it waits in it."""

    operations: int
    operation: str
    waits: bool = False


@dataclass(frozen=True)
class _Wait:
    place: Place
    arrived: Mark
    passed: Mark


class Progress:
    """How far this rank is, told by its main thread: on the host, and on a device that works behind it.

    A host gives a device work for minutes ahead and then blocks in a synchronisation that says nothing. So `mark`,
    where there is a device, puts a mark into its queue before and after every wait for an exchange: between the two the
    device waits, outside it computes, however long that takes. `phase` and `part` name what exchanges belong to.
    """

    def __init__(self, mark: Callable[[], Mark] | None = None) -> None:
        self._mark = mark
        self._host = self._passed = Place(0, "start")
        self._device: Place | None = None  # while it is behind the host
        self._waits: deque[_Wait] = deque()
        self.phase = self.part = ""
        self.failed = False  # the main thread speaks for itself

    def named(self, operation: str) -> str:
        """An exchange with the phase and the part that are at work, such as "sum of gradients, backward of layer 3"."""
        at_work = " of ".join(filter(None, (self.phase, self.part)))
        return f"{operation}, {at_work}" if at_work else operation

    @contextmanager
    def within(self, operation: str, *, waits: bool = False, patient: bool = False) -> Iterator[Place]:
        """This rank is in that exchange; with `waits` its device is going to wait for it.

        `patient` is for what may take as long as it likes while the others live; not all ranks do it, so it is not
        counted.
        """
        place = self._host = Place(self._host.operations + (not patient), operation, waits=not patient)
        arrived = self._mark() if waits and self._mark else None
        try:
            yield place
            if arrived is not None and self._mark is not None:
                self._waits.append(_Wait(place, arrived, self._mark()))
        finally:
            self._host = Place(place.operations, operation)

    @property
    def place(self) -> Place:
        """Where the device was when it was last looked at, or where the host is, when the device is behind nothing."""
        return self._device or self._host

    def look(self) -> Place:
        """Ask the device how far it is. One thread calls this, never the main one."""
        try:
            while self._waits and self._waits[0].passed.query():
                self._passed = self._waits.popleft().place
            if not self._waits:
                self._device = None
            elif self._waits[0].arrived.query():
                self._device = self._waits[0].place
            else:
                self._device = Place(self._passed.operations, self._passed.operation)
        except RuntimeError:  # the device failed, which the main thread will hear
            self._waits.clear()
            self._device = None
        return self.place


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself: how often it beat, and how far it is."""

    beat: int  # _LEFT from a rank that parted from the others
    operations: int
    operation: str


def verdict(before: dict[int, Sign], after: dict[int, Sign]) -> str:
    """Who holds the others up, in words: who gives no sign; if all do, who left; if nobody did, who is behind."""
    silent = [rank for rank in after if after[rank].beat == before[rank].beat != _LEFT]
    if silent:
        return _named(silent, after, "is gone or stopped, last seen in")
    left = [rank for rank in after if after[rank].beat == _LEFT]
    if left:
        return _named(left, after, "left before, after")
    least = min(sign.operations for sign in after.values())
    behind = [rank for rank, sign in after.items() if sign.operations == least]
    return _named(behind, after, "is alive, but got no further than")


def _named(ranks: list[int], signs: dict[int, Sign], how: str) -> str:
    told = [f"rank {rank} {how} {signs[rank].operation}" for rank in ranks[:_MOST_NAMES]]
    return "; ".join(told + ([f"and {len(ranks) - _MOST_NAMES} more"] if len(ranks) > _MOST_NAMES else []))


def lost(rank: int, place: Place, culprits: str, *, where: str) -> LongspanError:
    """The error of a rank that waited in vain, or that nobody waits for any more."""
    how = "waited in vain in" if place.waits else "gives up after"
    return LongspanError(
        "parallel.lost",
        f"rank {rank} {how} {place.operation}: {culprits}",
        where=where,
        fix="look at the log of the rank that is named; the same command goes on from the last checkpoint",
    )


class Pulse:
    """Writes this rank's sign of life at every beat, and looks after the next rank.

    Every rank reads one other, so the store is not asked more often than ranks times beats; whoever finds the next one
    silent asks for all. `beats` counts what this rank has written, `quiet_beats` those since the next rank's last
    sign, and `found` is what another rank found out, if one did.
    """

    def __init__(self, store: Store, progress: Progress, *, rank: int, ranks: int, beat_seconds: float) -> None:
        self._store = PrefixStore("pulse", store.clone())  # type: ignore[attr-defined]
        self._progress, self._rank, self._ranks, self._seconds = progress, rank, ranks, beat_seconds
        self.beats = self.quiet_beats = 0
        self.found = ""
        self._next: Sign | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more signs from here but that this rank has left."""
        self._over.set()
        self._thread.join(BEATS * self._seconds)  # a store that does not answer keeps nobody
        if not self._thread.is_alive():
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
            found = verdict(before, self._read())
            self._store.set(_VERDICT, found)
        except RuntimeError as cause:  # the store went with the rank or the launcher that kept it
            return f"the store of the ranks is gone, and with it rank 0 or the launcher ({first_line(cause)})"
        return found

    def _read(self) -> dict[int, Sign]:
        """The last sign of every other rank."""
        return {rank: self._sign_of(rank) for rank in range(self._ranks) if rank != self._rank}

    def _sign_of(self, rank: int) -> Sign:
        text = self._store.get(str(rank)).decode() if self._store.check([str(rank)]) else "0 0 start"
        beat, operations, name = text.split(" ", 2)
        return Sign(int(beat), int(operations), name)

    def _run(self) -> None:
        with suppress(RuntimeError):  # a store that is gone is told by beats that stand still
            while not self._over.is_set():
                self._sign(self.beats + 1)
                self._look_after_the_next()
                self.beats += 1
                self._over.wait(self._seconds)

    def _look_after_the_next(self) -> None:
        if self._ranks > 1:
            sign = self._sign_of((self._rank + 1) % self._ranks)
            same = self._next is not None and sign.beat == self._next.beat != _LEFT
            self.quiet_beats, self._next = self.quiet_beats + 1 if same else 0, sign
        if not self.found and self._store.check([_VERDICT]):
            self.found = self._store.get(_VERDICT).decode()

    def _sign(self, beat: int) -> None:
        place = self._progress.place
        self._store.set(str(self._rank), f"{beat} {place.operations} {place.operation}")


def first_line(cause: BaseException) -> str:
    """The first line of what an exception says, its name if it says nothing."""
    return (str(cause).splitlines() or [type(cause).__name__])[0]
