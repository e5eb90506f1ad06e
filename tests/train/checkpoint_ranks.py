"""What ranks do in the tests of checkpoints: a small decoder cut by FSDP over a mesh, and states of the same form.

Every number is a function of its name, its place and a seed, so whole tensors are known without any rank.
"""

import errno
import math
import os
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from toy_training import VERSIONS, frequencies, kill_at_operation, shape

from longspan.model.decoder import Decoder
from longspan.train import manifest, shardfiles
from longspan.train.checkpoint import CheckpointStore, Progress
from longspan.train.peers import ALONE, Peers
from longspan.utils.errors import LongspanError
from longspan.utils.files import storage_errors

CODES = 5  # bytes that go with a row of a weight, as states of 8 bits do


def small():
    """A decoder with dims of 9 and 29: cut by four, 9 rows leave one rank with none, and 29 rows one with fewer."""
    return Decoder(shape(mlp_width=9), frequencies())


def whole(name, size, *, seed, dtype=torch.float32):
    """The numbers of a tensor, exact in its type."""
    most = 251 if dtype == torch.uint8 else 100_003
    start = sum(map(ord, name)) * 131 + seed * 7919
    return ((torch.arange(math.prod(size)) * 37 + start) % most).to(dtype).reshape(size)


class States:
    """States like an optimizer's: one of the weight's form, bytes by the weight's rows, and a count that all hold."""

    def __init__(self, decoder):
        self._states = {}
        for name, weight in decoder.named_parameters():
            weight = weight.detach()
            self._states[f"exp_avg/{name}"] = torch.zeros_like(weight)
            self._states[f"codes/{name}"] = _codes(weight)
            self._states[f"step/{name}"] = torch.zeros(())

    def tensors(self):
        return dict(self._states)


def _codes(weight):
    size = (weight.shape[0], CODES)
    if not isinstance(weight, DTensor):
        return torch.zeros(size, dtype=torch.uint8)
    local = torch.zeros((weight.to_local().shape[0], CODES), dtype=torch.uint8)
    return DTensor.from_local(
        local, weight.device_mesh, weight.placements, run_check=False, shape=torch.Size(size), stride=(CODES, 1)
    )


def made(mesh):
    """The decoder and its states; `mesh` is (replicate, shard), or None for whole tensors."""
    decoder = small()
    if mesh is not None:
        ranks = init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard"))
        for block in decoder.blocks:
            fully_shard(block, mesh=ranks)
        fully_shard(decoder, mesh=ranks)
        assert all(weight.placements == (Replicate(), Shard(0)) for weight in decoder.parameters())
    return decoder, States(decoder)


def _parts(decoder, states, seed):
    """Name, the part that this rank holds, and what belongs there: rows in even pieces, rounded up, while they last."""
    for name, tensor in (dict(decoder.named_parameters()) | states.tensors()).items():
        numbers, part = whole(name, tensor.shape, seed=seed, dtype=tensor.dtype), tensor.detach()
        if isinstance(tensor, DTensor):
            piece = -(-tensor.shape[0] // tensor.device_mesh.size(1))
            start = piece * tensor.device_mesh.get_local_rank(1)
            numbers, part = numbers[start : start + piece], part.to_local()
        yield name, part, numbers


def fill(decoder, states, seed):
    """Give every tensor its numbers."""
    for _, part, numbers in _parts(decoder, states, seed):
        part.copy_(numbers)


def wrong(decoder, states, seed):
    """Names of tensors that do not have their numbers on this rank."""
    return [name for name, part, numbers in _parts(decoder, states, seed) if not torch.equal(part, numbers)]


def empty(decoder, states):
    """How many tensors this rank has no row of."""
    return sum(part.numel() == 0 for _, part, _ in _parts(decoder, states, 0))


def store_for(folder, *, peers=ALONE, **changes):
    values = {"keep": 2, "identity": {"recipe": {"seed": 1}}, "versions": VERSIONS, "warn": lambda text: None}
    return CheckpointStore(Path(folder), peers=peers, **values | changes)


def save(store, decoder, states, step):
    """One save whose numbers have the step for their seed."""
    fill(decoder, states, step)
    store.save(Progress(step=step, tokens=7 * step), decoder=decoder, updater=states)


# -- on ranks --------------------------------------------------------------------------------------------------------


def saved(world, folder, mesh, saving, steps=(1, 2)):
    """Save on every rank, asynchronously only after the next step has changed all numbers; how many shards are empty.

    A world of one rank holds whole tensors when there is no mesh.
    """
    decoder, states = made(mesh)
    may_write = threading.Event()
    real = shardfiles.write_tensors

    def write(path, tensors, **options):
        assert may_write.wait(60)
        return real(path, tensors, **options)

    shardfiles.write_tensors = write
    with store_for(folder, peers=Peers(world), saving=saving) as store:
        store.prepare(decoder, states)
        for step in steps:
            if saving == "blocking":
                may_write.set()
            save(store, decoder, states, step)
            fill(decoder, states, 99)
            may_write.set()
            store.finish()
            may_write.clear()
    return empty(decoder, states)


def loaded(world, mesh, folders, step):
    """Step, and what is wrong, after reading the newest checkpoint of each folder, whose seed is `step`."""
    peers = Peers(world)
    decoder, states = made(mesh)
    found = []
    for folder in folders:
        fill(decoder, states, 55)
        checkpoint = store_for(folder, peers=peers).latest()
        checkpoint.restore(decoder, states)
        found.append((checkpoint.progress.step, wrong(decoder, states, step)))
    return found


def outcome(work):
    """What went wrong, as its class, code and words; None if nothing did."""
    try:
        work()
    except LongspanError as error:
        return type(error).__name__, error.code, error.what
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return type(error).__name__, None, str(error)
    return None


@contextmanager
def _replaced(where, name, value):
    kept = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, kept)


def one_rank_fails(world, folder, faults, bad_rank, saving):
    """For every fault a save, one in which one rank fails, and one that works again; what was heard of the second."""
    peers = Peers(world)
    return [_one_fails(world, peers, Path(folder) / fault, fault, bad_rank, saving) for fault in faults]


def _one_fails(world, peers, folder, fault, bad_rank, saving):
    decoder, states = made((1, world.launch.ranks))
    with store_for(folder, peers=peers, saving=saving) as store:
        store.prepare(decoder, states)
        save(store, decoder, states, 1)
        store.finish()
        fill(decoder, states, 2)
        with _failing(fault, decoder) if world.launch.rank == bad_rank else nullcontext():
            heard = outcome(lambda: _save_and_wait(store, decoder, states, 2))
        save(store, decoder, states, 3)
    return heard


@contextmanager
def _failing(fault, decoder):
    """One way to fail."""

    def full(path, tensors, **options):
        with storage_errors(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    def bug(*arguments, **options):
        raise ValueError("no such thing")

    if fault == "nan":
        decoder.blocks[0].up.weight.detach().to_local()[0, 0] = math.nan
        yield
    elif fault == "plan":
        with _replaced(shardfiles.DefaultSavePlanner, "create_local_plan", bug):
            yield
    else:
        with _replaced(shardfiles, "write_tensors", full if fault == "full" else bug):
            yield


def _save_and_wait(store, decoder, states, step):
    store.save(Progress(step=step), decoder=decoder, updater=states)
    store.finish()


def other_folder(world, folder):
    """Rank 1 looks elsewhere."""
    place = f"{folder}-{world.launch.rank}"
    Path(place).mkdir()
    peers = Peers(world)
    decoder, states = made((1, world.launch.ranks))
    return (
        outcome(lambda: store_for(place, peers=peers).prepare(decoder, states)),
        outcome(store_for(place, peers=peers).latest),
    )


def newest(world, folders, mesh):
    """Of each folder the step of the newest checkpoint, what is wrong after reading it, and what was told."""
    peers = Peers(world)
    decoder, states = made(mesh)
    found = []
    for folder in folders:
        told = []
        checkpoint = store_for(folder, peers=peers, warn=told.append).latest()
        checkpoint.restore(decoder, states)
        found.append((checkpoint.progress.step, wrong(decoder, states, checkpoint.progress.step), told))
    return found


def one_rank_cannot_read(world, folder):
    """The disk does not answer one rank, then another."""

    def failing(path):
        raise OSError(errno.EIO, "Input/output error")

    peers = Peers(world)
    heard = []
    for bad_rank in range(world.launch.ranks):
        store = store_for(folder, peers=peers)
        with _replaced(manifest, "sha256", failing) if world.launch.rank == bad_rank else nullcontext():
            heard.append(outcome(store.latest))
    return heard


def one_rank_dies(world, folder, saving):
    """Rank 1 ends in the middle of the second save; what the others hear."""
    decoder, states = made((1, world.launch.ranks))
    store = store_for(folder, peers=Peers(world), saving=saving)
    store.prepare(decoder, states)
    save(store, decoder, states, 1)
    store.finish()
    if world.launch.rank == 1:
        shardfiles.write_tensors = lambda *arguments, **options: os._exit(9)
    return outcome(lambda: _save_and_wait(store, decoder, states, 2))


def killed_at(world, folder, rank, number, saving):
    """Two saves, and a third and fourth in which one rank is killed at its `number`-th operation; whether it lived."""
    decoder, states = made((1, world.launch.ranks))
    with store_for(folder, peers=Peers(world), saving=saving) as store:
        store.prepare(decoder, states)
        for step in (1, 2):
            save(store, decoder, states, step)
        store.finish()
        if world.launch.rank == rank:
            kill_at_operation(number, Path(folder))
        save(store, decoder, states, 3)
    return True


def agreed(world):
    """What comes of agreeing on values and on failures."""
    peers = Peers(world)

    def fail_from(first):
        def work():
            if world.launch.rank >= first:
                raise LongspanError("a.code", f"words of {world.launch.rank}", where="here", fix="that")
            return world.launch.rank

        return work

    return (
        peers.agree(lambda: {"rank": world.launch.rank, "text": "é" * world.launch.rank}),
        peers.lead(lambda: f"of {world.launch.rank}"),
        outcome(lambda: peers.agree(fail_from(1))),
    )
