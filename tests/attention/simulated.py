"""Many ranks in one process: a thread each, and a network that counts in the place of torch's.

A message travels when both sides have asked for it, which is all that NCCL promises. It is read then, so a buffer that
its sender changed in between is seen.
"""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import distributed

from longspan.parallel import exchange
from longspan.parallel.dist import ALONE, Axis
from longspan.parallel.mesh import AXES
from longspan.parallel.pulse import Progress

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Message:
    axis: str
    operation: str
    sender: int
    receiver: int
    size: int  # bytes


@dataclass
class Network:
    """Who has asked for what, and everything that went from rank to rank."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    failures: list[BaseException] = field(default_factory=list)
    waiting: dict[tuple, list] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    def post(self, key, entry, match):
        """Put an entry beside those of its kind; `match` looks whether they are complete."""
        with self.lock:
            match(self.waiting.setdefault(key, []), entry)


@dataclass
class Group:
    """The ranks of an axis as one of them sees them."""

    network: Network
    axis: str
    members: tuple[int, ...]
    me: int  # among the members
    operation: str = ""
    collectives: Counter = field(default_factory=Counter)

    @property
    def rank(self):
        return self.members[self.me]

    def note(self, receiver, size):
        self.network.messages.append(Message(self.axis, self.operation, self.rank, self.members[receiver], size))


class Noted(Progress):
    """The progress of a real rank; its group hears which operation it is in."""

    def __init__(self, group):
        super().__init__()
        self.group = group

    def within(self, operation, **how):
        """Enter an operation."""
        self.group.operation = operation
        return super().within(operation, **how)


@dataclass
class Work:
    network: Network
    finished: threading.Event = field(default_factory=threading.Event)

    def wait(self):
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.finished.wait(0.2):
            if self.network.failures:
                raise RuntimeError("another rank failed")
            if time.monotonic() > until:
                raise RuntimeError("the ranks wait for each other")


# -- messages between two ----------------------------------------------------------------------------------------------


@dataclass
class Sending:
    op: object
    tensor: torch.Tensor
    group: Group
    group_peer: int
    work: Work | None = None
    as_posted: torch.Tensor | None = None


def batch_isend_irecv(batch):
    """All sends and receives of a batch, each as one piece of work."""
    for entry in batch:
        group, network = entry.group, entry.group.network
        entry.work, peer = Work(network), group.members[entry.group_peer]
        sends = entry.op is distributed.isend
        if sends:
            assert entry.tensor.is_contiguous()
            entry.as_posted = entry.tensor.clone()
            group.note(entry.group_peer, entry.tensor.nbytes)
        pair = (group.rank, peer) if sends else (peer, group.rank)
        network.post(("messages", group.axis, *pair), entry, _deliver)
    return [entry.work for entry in batch]


def _deliver(queue, entry):
    """The oldest send of a pair belongs to its oldest receive."""
    other = next((x for x in queue if (x.op is distributed.isend) != (entry.op is distributed.isend)), None)
    if other is None:
        queue.append(entry)
        return
    queue.remove(other)
    sent, arrived = (entry, other) if entry.op is distributed.isend else (other, entry)
    assert (sent.tensor.shape, sent.tensor.dtype) == (arrived.tensor.shape, arrived.tensor.dtype)
    assert torch.equal(sent.tensor, sent.as_posted), "changed while it was on its way"
    arrived.tensor.copy_(sent.tensor)
    for work in (sent.work, arrived.work):
        work.finished.set()


# -- collectives -------------------------------------------------------------------------------------------------------


def all_gather(out, x, *, group, async_op):
    """Everybody's x, one after another."""
    for other in range(len(group.members)):
        if other != group.me:
            group.note(other, x.nbytes)

    def finish(entries):
        for _, target, _, _ in entries:
            target.copy_(torch.cat([source for _, _, source, _ in entries]))

    return _collective("all-gather", group, out, x, finish)


def reduce_scatter(out, x, *, group, async_op):
    """The sum over ranks of each part of x, to the rank whose turn it is."""
    count = len(group.members)
    for other in range(count):
        if other != group.me:
            group.note(other, x.nbytes // count)

    def finish(entries):
        total = torch.stack([source for _, _, source, _ in entries]).sum(0).view(count, -1)
        for at, target, _, _ in entries:
            target.copy_(total[at])

    return _collective("reduce-scatter", group, out, x, finish)


def _collective(kind, group, out, x, finish):
    assert out.is_contiguous()
    assert x.is_contiguous()
    group.collectives[kind] += 1  # all members make the same calls in the same order
    work = Work(group.network)

    def match(entries, entry):
        entries.append(entry)
        if len(entries) == len(group.members):
            finish(sorted(entries, key=lambda entry: entry[0]))
            for _, _, _, done in entries:
                done.finished.set()

    key = (kind, group.axis, group.members, group.collectives[kind])
    group.network.post(key, (group.me, out, x, work), match)
    return work


# -- ranks -------------------------------------------------------------------------------------------------------------


def axes_of(network, mesh, rank):
    """A rank's axes as `World.axes` gives them."""
    found = {}
    for name, at, size in zip(AXES, mesh.place(rank), mesh.sizes, strict=True):
        if size == 1:
            found[name] = ALONE
            continue
        group = Group(network, name, mesh.peers(name, rank), at)
        world = SimpleNamespace(
            progress=Noted(group),
            pulse=SimpleNamespace(culprits=lambda: "nobody"),
            device=SimpleNamespace(type="simulated"),
            launch=SimpleNamespace(rank=rank),
        )
        found[name] = Axis(rank=at, size=size, group=group, world=world)
    return found


@contextmanager
def _counted():
    """The exchanges of this process go through the network."""
    stand_in = SimpleNamespace(
        isend=distributed.isend,
        irecv=distributed.irecv,
        P2POp=Sending,
        batch_isend_irecv=batch_isend_irecv,
    )
    with (
        patch.object(exchange, "distributed", stand_in),
        patch.multiple(exchange, _all_gather=all_gather, _reduce_scatter=reduce_scatter),
    ):
        yield


def simulate(mesh, function):
    """What `function(axes)` gives on each rank, and the messages of each of its `yield`s, phase by phase.

    The function is a generator: at a `yield` all ranks wait for each other; what it returns is its answer.
    """
    network = Network()
    answers, phases = [None] * mesh.ranks, []

    def turn():
        assert not any(network.waiting[key] for key in network.waiting if key[0] == "messages"), "sent to nobody"
        phases.append(list(network.messages))
        network.messages.clear()

    barrier = threading.Barrier(mesh.ranks, action=turn, timeout=PATIENCE_SECONDS)

    def rank_of(rank):
        try:
            steps = function(axes_of(network, mesh, rank))
            while True:
                try:
                    next(steps)
                except StopIteration as stop:
                    answers[rank] = stop.value
                    return
                barrier.wait()
        except BaseException as error:  # noqa: BLE001 - whatever it was, the test has to see it
            network.failures.append(error)
            barrier.abort()

    with _counted():
        threads = [threading.Thread(target=rank_of, args=(rank,), daemon=True) for rank in range(mesh.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if network.failures:
        raise network.failures[0]
    return answers, phases
