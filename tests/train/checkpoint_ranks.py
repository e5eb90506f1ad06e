"""What ranks do in the tests of checkpoints: a small decoder cut by FSDP over a mesh, and an updater of the same form.

Every number is a function of its name, its place and a seed, so the whole tensors are known without any rank.
"""

import math
from pathlib import Path

import torch
from toy_training import VERSIONS, frequencies, shape
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from longspan.model.decoder import Decoder
from longspan.train.checkpoint import CheckpointStore, Progress
from longspan.train.peers import ALONE, Peers

CODES = 5  # bytes of a row of weights, as states of 8 bits have


def small(*, mlp_width=9):
    """A decoder with dims of 9 and 29: cut by four, 9 rows leave a rank with none, and 29 leave one with fewer."""
    return Decoder(shape(mlp_width=mlp_width), frequencies())


def whole(name, size, *, seed, dtype=torch.float32):
    """The numbers of a tensor: distinct, exact in float32."""
    count = math.prod(size)
    start = sum(map(ord, name)) * 131 + seed * 7919
    return ((torch.arange(count) * 37 + start) % 100_003).remainder(251 if dtype == torch.uint8 else 100_003).to(
        dtype
    ).reshape(size)


class States:
    """States like an optimizer's: one of the weight's form, bytes by the weight's rows, and a count that all hold."""

    def __init__(self, decoder):
        self._states = {}
        for name, weight in decoder.named_parameters():
            weight = weight.detach()
            self._states[f"exp_avg/{name}"] = torch.zeros_like(weight)
            self._states[f"codes/{name}"] = torch.cat([torch.zeros_like(weight.flatten(1) if weight.ndim > 1 else weight[:, None])[:, :1]] * CODES, 1).to(torch.uint8)
            self._states[f"step/{name}"] = torch.zeros(())

    def tensors(self):
        return dict(self._states)


def made(mesh):
    """The decoder and its states; `mesh` is (replicate, shard), or None for whole tensors."""
    decoder = small()
    if mesh is not None:
        ranks = init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard"))
        for block in decoder.blocks:
            fully_shard(block, mesh=ranks)
        fully_shard(decoder, mesh=ranks)
    return decoder, States(decoder)


def tensors_of(decoder, states):
    return dict(decoder.named_parameters()) | states.tensors()


@torch.no_grad()
def fill(decoder, states, seed):
    """Give every tensor its numbers, each rank the rows that it holds."""
    for name, tensor in tensors_of(decoder, states).items():
        numbers = whole(name, tensor.shape, seed=seed, dtype=tensor.dtype)
        if isinstance(tensor, DTensor):
            rows, start = place_of(tensor)
            tensor.to_local().copy_(numbers[start : start + rows])
        else:
            tensor.copy_(numbers)


def place_of(tensor):
    """How many rows of dim 0 this rank holds, and the first of them: even pieces, rounded up, until none are left."""
    mesh = tensor.device_mesh
    piece = -(-tensor.shape[0] // mesh.size(1))
    start = min(piece * mesh.get_local_rank(1), tensor.shape[0])
    return min(piece, tensor.shape[0] - start), start


def wrong(decoder, states, seed):
    """Names of tensors that do not have their numbers on this rank."""
    found = []
    for name, tensor in tensors_of(decoder, states).items():
        numbers = whole(name, tensor.shape, seed=seed, dtype=tensor.dtype)
        local = tensor
        if isinstance(tensor, DTensor):
            rows, start = place_of(tensor)
            local, numbers = tensor.to_local(), numbers[start : start + rows]
        if not torch.equal(local.detach(), numbers):
            found.append(name)
    return found


def store_for(folder, peers=ALONE, **changes):
    values = {"keep": 2, "identity": {"recipe": {"seed": 1}}, "versions": VERSIONS, "warn": lambda text: None}
    return CheckpointStore(Path(folder), peers=peers, **values | changes)


def save(store, decoder, states, step):
    """One save whose numbers have the step for a seed."""
    fill(decoder, states, step)
    store.save(Progress(step=step, tokens=7 * step), decoder=decoder, updater=states)


def saved(world, folder, mesh, saving, steps):
    peers = Peers(world)
    decoder, states = made(mesh)
    with store_for(folder, peers, saving=saving) as store:
        store.prepare(decoder, states)
        for step in steps:
            save(store, decoder, states, step)
            fill(decoder, states, 99)  # training goes on
    return [0 for tensor in tensors_of(decoder, states).values() if isinstance(tensor, DTensor) and tensor.to_local().numel() == 0]


def loaded(world, mesh, folders, step):
    """What is wrong after reading each folder's newest checkpoint, which should be of that step."""
    peers = Peers(world)
    found = []
    for folder in folders:
        decoder, states = made(mesh)
        fill(decoder, states, 55)
        checkpoint = store_for(folder, peers).latest()
        checkpoint.restore(decoder, states)
        found.append((checkpoint.progress.step, wrong(decoder, states, step)))
    return found
